#include "mllama/text.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>
#include <utility>

namespace mllama {
namespace {

GatedMlp load_mlp(const TextConfig& c, const WeightLoader& weights, const std::string& name) {
    GatedMlp mlp;
    mlp.gate = weights.linear(name + "gate_proj", c.intermediate_size, c.hidden_size);
    mlp.up = weights.linear(name + "up_proj", c.intermediate_size, c.hidden_size);
    mlp.down = weights.linear(name + "down_proj", c.hidden_size, c.intermediate_size);
    mlp.activation = c.hidden_act;
    return mlp;
}

/// What both kinds of layer have: norms, projections, feed-forward network. `attention`:
/// "self_attn" or "cross_attn".
template <class Layer>
Layer load_common(const TextConfig& c, const WeightLoader& weights, const std::string& name,
                  const std::string& attention) {
    Layer layer;
    layer.input_layernorm =
        weights.rms_norm(name + "input_layernorm", c.hidden_size, c.rms_norm_eps);
    layer.q_proj = weights.linear(name + attention + ".q_proj", c.hidden_size, c.hidden_size);
    layer.k_proj = weights.linear(name + attention + ".k_proj", c.kv_size(), c.hidden_size);
    layer.v_proj = weights.linear(name + attention + ".v_proj", c.kv_size(), c.hidden_size);
    layer.o_proj = weights.linear(name + attention + ".o_proj", c.hidden_size, c.hidden_size);
    layer.post_attention_layernorm =
        weights.rms_norm(name + "post_attention_layernorm", c.hidden_size, c.rms_norm_eps);
    layer.mlp = load_mlp(c, weights, name + "mlp.");
    return layer;
}

CrossAttentionLayer load_cross_attention(const TextConfig& c, const WeightLoader& weights,
                                         const std::string& name) {
    auto layer = load_common<CrossAttentionLayer>(c, weights, name, "cross_attn");
    layer.q_norm = weights.rms_norm(name + "cross_attn.q_norm", c.head_dim(), c.rms_norm_eps);
    layer.k_norm = weights.rms_norm(name + "cross_attn.k_norm", c.head_dim(), c.rms_norm_eps);
    layer.attn_gate = weights.tanh_gate(name + "cross_attn_attn_gate");
    layer.mlp_gate = weights.tanh_gate(name + "cross_attn_mlp_gate");
    return layer;
}

/// Normalises every head of x (rows, heads * head_dim) for itself, in place.
void norm_heads(const RmsNorm& norm, Tensor& x) {
    const int64_t head_dim = norm.weight.numel();
    assert(head_dim > 0);
    Tensor heads = x.view({x.numel() / head_dim, head_dim});
    norm.forward(heads, heads);
}

/// The keys of the pictures that a row sees: their real tiles. A row that sees none is given all
/// keys or none, as the reference does.
void add_image_query(const Sequence& sequence, ImageSpan span, Reference reference,
                     KeyVisibility& visible) {
    const std::vector<ImageKeys>& images = sequence.images();
    for (int64_t i = span.first; i < span.last; ++i) {
        const ImageKeys& keys = images[static_cast<size_t>(i)];
        visible.add_range({keys.begin, keys.real_end});
    }
    if (span.empty() && reference == Reference::transformers) {
        visible.add_range({0, images.back().end});
    }
    visible.end_query();
}

}  // namespace

void TextModel::Batch::clear() {
    parts.clear();
    rows = 0;
    image_rows = 0;
    ids.clear();
    positions.clear();
    kept = 0;
    pasts.clear();
    images.clear();
    sees_image.clear();
    blind = recorded = false;
    trace = nullptr;
    on = {};
}

TextModel::TextModel(const ModelConfig& config, const WeightLoader& weights, Reference reference)
    : config_(config.text),
      image_token_id_(config.image_token_id),
      reference_(reference),
      attention_scale_(1.0f / std::sqrt(static_cast<float>(config.text.head_dim()))),
      rotary_embedding_(config.text.head_dim(), config.text.rope) {
    const TextConfig& c = config_;
    const std::string name = "language_model.model.";
    embed_tokens_ =
        weights.matrix(name + "embed_tokens.weight", {c.embedding_rows(), c.hidden_size});
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
        const std::string layer = name + "layers." + std::to_string(i) + ".";
        if (c.is_cross_attention(i)) {
            layers_.emplace_back(load_cross_attention(c, weights, layer));
        } else {
            layers_.emplace_back(load_common<SelfAttentionLayer>(c, weights, layer, "self_attn"));
        }
    }
    norm_ = weights.rms_norm(name + "norm", c.hidden_size, c.rms_norm_eps);
    lm_head_ = weights.linear("language_model.lm_head", c.vocab_size, c.hidden_size);
}

/// The attentions that the parts ask for, and their probabilities for those who asked.
void TextModel::attend(size_t layer, Compute compute, Workspace& workspace) const {
    std::vector<ops::AttentionCall>& calls = workspace.attentions;
    ops::attention(calls, {config_.head_dim(), attention_scale_}, compute);
    const Batch& batch = workspace.batch;
    if (batch.trace && batch.trace->attention) {
        for (size_t i = 0; i < calls.size(); ++i)
            report_attention(batch, batch.parts[i], layer, calls[i]);
    }
    calls.clear();  // they hold on to memory of the sequences
}

void TextModel::report_attention(const Batch& batch, const Part& part, size_t layer,
                                 const ops::AttentionCall& call) const {
    Tensor weights = Tensor::empty({config_.num_attention_heads, call.q.rows(), call.kv.keys},
                                   DType::f32, call.q.device());
    ops::attention_weights(call.q, call.kv, {config_.head_dim(), attention_scale_}, call.key_bias,
                           call.visible, weights);
    batch.trace->attention(part.place, static_cast<int64_t>(layer), weights.to(Device::cpu));
}

void TextModel::self_attention(const SelfAttentionLayer& layer, size_t index, Workspace& workspace,
                               Tensor& h) const {
    const Batch& batch = workspace.batch;
    Arena& scratch = workspace.on(h.device());
    const TextConfig& c = config_;
    const Arena::Scope scope(scratch);
    const DType dtype = Linear::activation_dtype({&layer.q_proj, &layer.k_proj, &layer.v_proj,
                                                  &layer.o_proj, &layer.mlp.gate, &layer.mlp.up},
                                                 h.rows());
    Tensor x = scratch.take(h.shape(), dtype);  // (rows, hidden_size)
    {
        const Arena::Scope attention_scope(scratch);
        const int64_t k_begin = c.hidden_size, v_begin = k_begin + c.kv_size();
        // Side by side, so that one call rotates all heads of q and k.
        Tensor qkv = scratch.take({batch.rows, v_begin + c.kv_size()});
        Tensor q = qkv.cols(0, k_begin);        // (rows, num_attention_heads * head_dim)
        Tensor k = qkv.cols(k_begin, v_begin);  // (rows, num_key_value_heads * head_dim)
        Tensor v = qkv.cols(v_begin, qkv.cols());
        layer.input_layernorm.forward(h, x);
        Linear::forward_all(x, {{layer.q_proj, q}, {layer.k_proj, k}, {layer.v_proj, v}});
        const Batch::Tensors& here = batch.on[h.device()];
        Tensor rotated = qkv.cols(0, v_begin);
        ops::rope(rotated, c.head_dim(), here.cos, here.sin);
        for (const Part& part : batch.parts) {
            const KvCache& cache = part.input->sequence->self_attention[index];
            Tensor past;  // of a recorded step: its place in the text is read when it runs
            if (batch.recorded) past = here.pasts.rows(part.index, part.index + 1);
            workspace.stores.push_back(
                cache.store_call(k.rows(part.begin, part.end), v.rows(part.begin, part.end), past));
            workspace.attentions.push_back({q.rows(part.begin, part.end),
                                            batch.recorded
                                                ? cache.keys_values(past)
                                                : cache.keys_values(part.end - part.begin),
                                            Tensor(), causal(batch.recorded ? 0 : part.position),
                                            x.rows(part.begin, part.end)});
        }
        ops::store_keys_values(workspace.stores);
        workspace.stores.clear();
        attend(index, layer.q_proj.compute, workspace);
        layer.o_proj.add_to(h, x);
    }
    layer.post_attention_layernorm.forward(h, x);
    layer.mlp.add_to(h, x, 1.0f, scratch);
}

void TextModel::cross_attention(const CrossAttentionLayer& layer, size_t index,
                                Workspace& workspace, Tensor& h) const {
    const Batch& batch = workspace.batch;
    Arena& scratch = workspace.on(h.device());
    const TextConfig& c = config_;
    const Batch::Tensors& here = batch.on[h.device()];
    const Arena::Scope scope(scratch);
    const DType dtype = Linear::activation_dtype(
        {&layer.q_proj, &layer.o_proj, &layer.mlp.gate, &layer.mlp.up}, h.rows());
    Tensor x = scratch.take(h.shape(), dtype);  // (image_rows, hidden_size)
    {
        const Arena::Scope attention_scope(scratch);
        Tensor q = scratch.take(
            {batch.image_rows, c.hidden_size});  // (image_rows, num_attention_heads * head_dim)
        layer.input_layernorm.forward(h, x);
        layer.q_proj.forward(x, q);
        norm_heads(layer.q_norm, q);
        for (const Part& part : batch.parts) {
            if (part.begin >= batch.image_rows) break;
            const Sequence& sequence = *part.input->sequence;
            const Visibility visible{here.images.first + part.begin, here.images.ranges};
            workspace.attentions.push_back(
                {q.rows(part.begin, part.end), sequence.cross_attention[index].keys_values(),
                 sequence.key_bias(h.device()), visible, x.rows(part.begin, part.end)});
        }
        attend(index, layer.q_proj.compute, workspace);
        layer.o_proj.add_to(h, x, layer.attn_gate);
    }
    layer.post_attention_layernorm.forward(h, x);
    if (!batch.blind) {
        layer.mlp.add_to(h, x, layer.mlp_gate, scratch);
        return;
    }
    Tensor mlp_out = scratch.take(h.shape());  // (image_rows, hidden_size)
    mlp_out.fill_zero();
    layer.mlp.add_to(mlp_out, x, layer.mlp_gate, scratch);
    ops::scale_rows(mlp_out, here.row_factor);
    ops::add_scaled(h, mlp_out, 1.0f);
}

/// Gives every new token its row, its position and the pictures that it sees.
void TextModel::lay_out(std::span<const SequenceInput> inputs, Batch& batch) const {
    for (const bool with_images : {true, false}) {
        int64_t logits = 0;
        for (size_t place = 0; place < inputs.size(); ++place) {
            const SequenceInput& input = inputs[place];
            Sequence& sequence = *input.sequence;
            if (sequence.has_images() == with_images) {
                const auto count = static_cast<int64_t>(input.ids.size());
                const auto index = static_cast<int64_t>(batch.parts.size());
                batch.parts.push_back({&input, place, index, batch.rows, batch.rows + count,
                                       sequence.length(), logits});
                batch.pasts.push_back(sequence.length());
                for (int64_t i = 0; i < count; ++i) {
                    const int64_t id = input.ids[static_cast<size_t>(i)];
                    const ImageSpan span = sequence.image_rule.next(id == image_token_id_);
                    assert(sequence.image_rule.images() <= sequence.num_images());
                    batch.ids.push_back(id);
                    batch.positions.push_back(sequence.length() + i);
                    if (!with_images) continue;
                    add_image_query(sequence, span, reference_, batch.images);
                    batch.sees_image.push_back(span.empty() ? 0.0f : 1.0f);
                }
                batch.rows += count;
            }
            logits += input.logits_to_keep;
        }
        batch.kept = logits;
        if (with_images) batch.image_rows = batch.rows;
    }
    const auto blind = [](float sees) { return sees == 0.0f; };
    batch.blind = std::any_of(batch.sees_image.begin(), batch.sees_image.end(), blind);
}

/// The batch's numbers as tensors of a device.
void TextModel::bring(Batch& batch, Arena& arena) const {
    Batch::Tensors& here = batch.on[arena.device()];
    Parcel parcel(arena, batch.packed);
    here.ids = parcel.take_copy(std::span<const int64_t>(batch.ids));
    here.positions = parcel.take_copy(std::span<const int64_t>(batch.positions));
    here.pasts = parcel.take_copy(std::span<const int64_t>(batch.pasts));
    here.images = batch.images.on(parcel);
    if (batch.blind) here.row_factor = parcel.take_copy(std::span<const float>(batch.sees_image));
    parcel.send();
    here.cos = arena.take({batch.rows, config_.head_dim() / 2});
    here.sin = arena.take({batch.rows, config_.head_dim() / 2});
}

/// Logits (kept, vocab_size) of the last rows of each sequence, in the order of the caller's batch.
Tensor TextModel::kept_logits(const Batch& batch, const Tensor& h, Arena& scratch) const {
    Tensor logits = scratch.take({batch.kept, config_.vocab_size});
    const Arena::Scope scope(scratch);
    Tensor last = scratch.take({batch.kept, config_.hidden_size});
    for (const Part& part : batch.parts) {
        const int64_t count = part.input->logits_to_keep;
        Tensor rows = last.rows(part.logits, part.logits + count);
        ops::convert(h.rows(part.end - count, part.end), rows);
    }
    norm_.forward(last, last);
    lm_head_.forward(last, logits);
    return logits;
}

Device TextModel::layer_device(size_t layer) const {
    return std::visit([](const auto& l) { return l.input_layernorm.weight.device(); },
                      layers_[layer]);
}

std::vector<Device> TextModel::layer_devices() const {
    std::vector<Device> devices;
    for (size_t i = 0; i < layers_.size(); ++i) devices.push_back(layer_device(i));
    return devices;
}

bool TextModel::all_on(Device device) const {
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (layer_device(i) != device) return false;
    }
    return embed_tokens_.device() == device && norm_.weight.device() == device;
}

void TextModel::for_each_tensor_of_layer(int64_t layer, const std::function<void(Tensor&)>& visit) {
    std::visit([&](auto& l) { l.for_each_tensor(visit); }, layers_[static_cast<size_t>(layer)]);
}

void TextModel::for_each_tensor_before(const std::function<void(Tensor&)>& visit) {
    visit(embed_tokens_);
}

void TextModel::for_each_tensor_behind(const std::function<void(Tensor&)>& visit) {
    norm_.for_each_tensor(visit);
    lm_head_.for_each_tensor(visit);
}

/// What the operations of a step depend on beside the contents of tensors: see Recording::run.
void TextModel::describe(const Workspace& workspace, std::vector<int64_t>& key) const {
    const auto address = [](const void* p) {
        return static_cast<int64_t>(reinterpret_cast<intptr_t>(p));
    };
    const auto address_of = [&](const Tensor& tensor) {
        return tensor.defined() ? address(tensor.data()) : 0;
    };
    const Batch& batch = workspace.batch;
    key.clear();
    for (const Arena& arena : workspace.arenas) key.push_back(address(arena.start()));
    key.insert(key.end(), {batch.rows, batch.image_rows, batch.kept, batch.blind ? 1 : 0});
    for (const Part& part : batch.parts) {
        const Sequence& sequence = *part.input->sequence;
        key.insert(key.end(), {part.logits, part.input->logits_to_keep});
        for (const Device device : {Device::cpu, Device::cuda})
            key.push_back(address_of(sequence.key_bias(device)));
        for (const auto* caches : {&sequence.self_attention, &sequence.cross_attention}) {
            for (const KvCache& cache : *caches) {
                if (cache.capacity() == 0) continue;
                const KeysValues kv = cache.keys_values();
                key.push_back(cache.capacity());
                for (const Tensor* tensor : {&kv.k, &kv.v, &kv.k_scales, &kv.v_scales})
                    key.push_back(address_of(*tensor));
            }
        }
        for (const KvCache& cache : sequence.cross_attention) key.push_back(cache.length());
    }
    const Batch::Tensors& here = batch.on[Device::cuda];
    key.insert(key.end(), {address(here.images.first), address(here.images.ranges),
                           address_of(here.row_factor), address_of(here.cos)});
}

/// From the rows' ids to logits (kept rows, vocab_size), where lm_head is.
Tensor TextModel::run_layers(Workspace& workspace) const {
    const Batch& batch = workspace.batch;
    const ForwardTrace* trace = batch.trace;
    for (const Device device : {Device::cpu, Device::cuda}) {
        Batch::Tensors& here = workspace.batch.on[device];
        if (here.cos.defined()) rotary_embedding_.angles(here.positions, here.cos, here.sin);
    }
    const auto report = [&](size_t layer, const Tensor& state) {
        if (!trace || !trace->hidden_state) return;
        for (const Part& part : batch.parts) {
            trace->hidden_state(part.place, static_cast<int64_t>(layer),
                                state.rows(part.begin, part.end).to(Device::cpu));
        }
    };
    const auto moved = [&](const Tensor& h, Device device) {
        if (h.device() == device) return h;
        Tensor there = workspace.on(device).take(h.shape());
        there.copy_from(h);
        return there;
    };
    const Device first = embed_tokens_.device();
    Tensor h = workspace.on(first).take({batch.rows, config_.hidden_size});
    ops::embedding(batch.on[first].ids, embed_tokens_, h);
    for (size_t i = 0; i < layers_.size(); ++i) {
        const auto* self = std::get_if<SelfAttentionLayer>(&layers_[i]);
        if (!self && batch.image_rows == 0) continue;
        report(i, h);
        const Device device = layer_device(i);
        h = moved(h, device);
        if (self) {
            self_attention(*self, i, workspace, h);
        } else {
            Tensor image_rows = h.rows(0, batch.image_rows);
            cross_attention(std::get<CrossAttentionLayer>(layers_[i]), i, workspace, image_rows);
        }
    }
    h = moved(h, norm_.weight.device());
    if (trace && trace->hidden_state) {
        Tensor last = workspace.on(h.device()).take(h.shape());
        norm_.forward(h, last);
        report(layers_.size(), last);
    }
    return kept_logits(batch, h, workspace.on(h.device()));
}

/// A forward, but for its logits (kept rows, vocab_size) being where lm_head is.
Tensor TextModel::run(std::span<const SequenceInput> inputs, Workspace& workspace,
                      const ForwardTrace* trace) const {
    Batch& batch = workspace.batch;
    batch.clear();
    workspace.stores.clear();  // what an exception left
    workspace.attentions.clear();
    batch.trace = trace;
    lay_out(inputs, batch);
    for (Arena& arena : workspace.arenas) arena.reset();
    const bool on_cpu = all_on(Device::cpu);
    const bool on_gpu = all_on(Device::cuda);
    if (!on_gpu) bring(batch, workspace.on(Device::cpu));
    if (!on_cpu) bring(batch, workspace.on(Device::cuda));
    for (const Part& part : batch.parts) {
        for (KvCache& cache : part.input->sequence->self_attention)
            if (cache.width() > 0) cache.make_room(part.end - part.begin);
    }
    const bool a_token_each = batch.rows == static_cast<int64_t>(batch.parts.size());
    batch.recorded = on_gpu && a_token_each && !trace;
    Tensor logits;
    if (batch.recorded) {
        describe(workspace, workspace.key);
        // Other forwards between the repetitions have their logits elsewhere.
        workspace.recording.run(workspace.key,
                                [&] { workspace.recorded_logits = run_layers(workspace); });
        logits = workspace.recorded_logits;
    } else {
        logits = run_layers(workspace);
    }
    for (const Part& part : batch.parts) {
        Sequence& sequence = *part.input->sequence;
        const int64_t tokens = part.end - part.begin;
        for (KvCache& cache : sequence.self_attention)
            if (cache.width() > 0) cache.advance(tokens);
        sequence.advance(tokens);
    }
    return logits;
}

Tensor TextModel::forward(std::span<const SequenceInput> inputs, Workspace& workspace,
                          const ForwardTrace* trace) const {
    return workspace.host_logits.of(run(inputs, workspace, trace));
}

std::span<const int64_t> TextModel::most_probable(std::span<const SequenceInput> inputs,
                                                  Workspace& workspace) const {
    const Tensor logits = run(inputs, workspace, nullptr);
    const int64_t kept = workspace.batch.kept;
    if (kept == 0) return {};
    reserve_tokens(kept, workspace);
    Tensor ids(workspace.results.storage(), 0, {kept}, DType::i64);
    ops::argmax(logits, ids);
    const Tensor host = workspace.host_results.of(ids);
    return {host.data<int64_t>(), static_cast<size_t>(kept)};
}

namespace {

constexpr int64_t top_bytes(int64_t rows, int64_t k) {
    return rows * k * (dtype_size(DType::i64) + dtype_size(DType::f32));
}

/// What lies in `bytes` (top_bytes or more): ids, behind them logits, both (rows, k).
TopLogits top_logits_in(const Tensor& bytes, int64_t rows, int64_t k) {
    TopLogits top;
    top.ids = Tensor(bytes.storage(), 0, {rows, k}, DType::i64);
    top.logits = Tensor(bytes.storage(), top.ids.bytes(), {rows, k}, DType::f32);
    return top;
}

}  // namespace

TopLogits TextModel::top_logits(std::span<const SequenceInput> inputs, int64_t k,
                                Workspace& workspace) const {
    const Tensor logits = run(inputs, workspace, nullptr);
    const int64_t kept = workspace.batch.kept;
    if (kept == 0) return {};
    reserve_top_logits(kept, k, workspace);
    TopLogits found = top_logits_in(workspace.results, kept, k);
    ops::top_k(logits, found.logits, found.ids);
    const Tensor both = workspace.results.rows(0, top_bytes(kept, k));
    TopLogits top = top_logits_in(workspace.host_results.of(both), kept, k);
    top.all = logits;
    return top;
}

Tensor TextModel::on_host(const Tensor& logits, Workspace& workspace) const {
    return workspace.host_logits.of(logits);
}

void TextModel::reserve_results(int64_t bytes, Workspace& workspace) const {
    const Device device = norm_.weight.device();  // and lm_head's
    if (workspace.results.numel() < bytes)
        workspace.results = Tensor::empty({bytes}, DType::u8, device);
    workspace.host_results.reserve(bytes, device);
}

void TextModel::reserve_tokens(int64_t rows, Workspace& workspace) const {
    reserve_results(rows * dtype_size(DType::i64), workspace);
}

void TextModel::reserve_top_logits(int64_t rows, int64_t k, Workspace& workspace) const {
    reserve_results(top_bytes(rows, k), workspace);
    reserve_logits(1, workspace);  // of a row that needs more than those
}

void TextModel::reserve_logits(int64_t rows, Workspace& workspace) const {
    workspace.host_logits.reserve(rows * config_.vocab_size * dtype_size(DType::f32),
                                  norm_.weight.device());
}

void TextModel::add_image(Sequence& sequence, const VisionRows& image, Workspace& workspace) const {
    const int64_t rows_per_tile = image.rows.rows() / image.layout.tiles();
    const Arena::Scope on_cpu(workspace.on(Device::cpu)), on_gpu(workspace.on(Device::cuda));
    // Brought where they are needed, and rounded, once for all layers.
    PerDevice<Tensor> image_rows, rounded_rows;
    const auto rows_in = [&](Device device, DType dtype) -> const Tensor& {
        Tensor& here = image_rows[device];
        if (!here.defined()) here = image.rows.to(device);
        if (here.dtype() == dtype) return here;
        Tensor& rounded = rounded_rows[device];
        if (!rounded.defined()) {
            rounded = workspace.on(device).take(here.shape(), dtype);
            ops::convert(here, rounded);
        }
        return rounded;
    };
    for (size_t i = 0; i < layers_.size(); ++i) {
        const auto* layer = std::get_if<CrossAttentionLayer>(&layers_[i]);
        if (!layer) continue;
        KvCache& cache = sequence.cross_attention[i];
        cache.reserve(cache.length() + image.rows.rows());
        const DType dtype =
            Linear::activation_dtype({&layer->k_proj, &layer->v_proj}, rows_per_tile);
        const Tensor& here = rows_in(cache.device(), dtype);
        Arena& scratch = workspace.on(cache.device());
        const Arena::Scope scope(scratch);
        Tensor k = scratch.take(
            {rows_per_tile, config_.kv_size()});  // (num_patches, num_key_value_heads * head_dim)
        Tensor v = scratch.take({rows_per_tile, config_.kv_size()});
        for (int64_t tile = 0; tile < image.layout.tiles(); ++tile) {
            const Tensor rows = here.rows(tile * rows_per_tile, (tile + 1) * rows_per_tile);
            Linear::forward_all(rows, {{layer->k_proj, k}, {layer->v_proj, v}});
            norm_heads(layer->k_norm, k);
            cache.append(k, v);
        }
    }
    sequence.add_image(image.layout, rows_per_tile);
}

void TextModel::for_each_linear(bool with_image,
                                const std::function<void(const Linear&)>& visit) const {
    const auto visit_common = [&](const auto& layer) {
        for (const Linear* linear :
             {&layer.q_proj, &layer.o_proj, &layer.mlp.gate, &layer.mlp.up, &layer.mlp.down}) {
            visit(*linear);
        }
    };
    for (const auto& layer : layers_) {
        if (const auto* self = std::get_if<SelfAttentionLayer>(&layer)) {
            visit_common(*self);
            visit(self->k_proj);
            visit(self->v_proj);
        } else if (with_image) {
            visit_common(std::get<CrossAttentionLayer>(layer));
        }
    }
}

// Of the layers: a quantised checkpoint leaves lm_head as it was.

Compute TextModel::compute() const {
    const auto q_proj = [](const auto& layer) { return layer.q_proj.compute; };
    return layers_.empty() ? lm_head_.compute : std::visit(q_proj, layers_[0]);
}

std::string_view TextModel::weight_type_name() const {
    const auto q_proj = [](const auto& layer) { return layer.q_proj.weight.type_name(); };
    return layers_.empty() ? lm_head_.weight.type_name() : std::visit(q_proj, layers_[0]);
}

int64_t TextModel::bytes_per_token(bool with_image) const {
    int64_t bytes = lm_head_.weight.bytes();
    for_each_linear(with_image, [&](const Linear& linear) { bytes += linear.weight.bytes(); });
    return bytes;
}

double TextModel::multiply_adds_per_row(bool with_image) const {
    int64_t weights = 0;
    for_each_linear(with_image, [&](const Linear& linear) { weights += linear.weight.numel(); });
    return static_cast<double>(weights);
}

}  // namespace mllama
