#include "apps/bench/reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/reference.h"
#include "mllama/masks.h"
#include "nn/rope.h"

namespace mllama {
namespace {

constexpr const char* text = "language_model.model.";
constexpr const char* vision_tower = "vision_model.";

/// softmax(q k^T / sqrt(head_dim)) v over what `visible` says, of keys and values that are kept as
/// `kv_dtype`.
Rows attend(const Rows& q, const Rows& k, const Rows& v, int64_t head_dim, Visibility visible,
            Compute compute, DType kv_dtype) {
    Rows out(q.count, q.width);
    Attention args;
    args.q = q.values.data();
    args.queries = q.count;
    args.keys = k.count;
    args.heads = q.width / head_dim;
    args.kv_heads = k.width / head_dim;
    args.head_dim = head_dim;
    args.q_stride = q.width;
    args.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    args.visible = visible;
    args.kv_dtype = kv_dtype;
    const KvLayout layout = args.layout();
    const int64_t heads = KvLayout::blocks(k.count) * layout.kv_heads;  // of all blocks
    std::vector<uint32_t> keys(static_cast<size_t>(heads * layout.key_units()));
    std::vector<uint32_t> values(static_cast<size_t>(heads * layout.value_units()));
    static_assert(sizeof keys[0] == KvLayout::unit_bytes);
    const auto scale_count = static_cast<size_t>(layout.scaled() ? heads * KvLayout::block : 0);
    std::vector<float> key_scales(scale_count), value_scales(scale_count);
    reference::store_keys(k.values.data(), k.count, k.width, layout, 0, keys.data(),
                          key_scales.data());
    reference::store_values(v.values.data(), v.count, v.width, layout, 0, values.data(),
                            value_scales.data());
    args.k = keys.data();
    args.v = values.data();
    args.k_scales = key_scales.data();
    args.v_scales = value_scales.data();
    reference::attention(args, compute, out.values.data(), out.width);
    return out;
}

}  // namespace

// ---- both towers ----

Rows ReferenceModel::linear(const std::string& name, const Rows& x, int64_t out_features,
                            bool with_bias, Activation activation) const {
    const WeightLoader& loader = name.starts_with("vision_model.") ? vision_ : text_;
    const Linear layer = with_bias ? loader.linear_with_bias(name, out_features, x.width)
                                   : loader.linear(name, out_features, x.width);
    Epilogue epilogue;
    epilogue.bias = with_bias ? layer.bias.data<float>() : nullptr;
    epilogue.activation = activation;
    Rows out(x.count, out_features);
    const Matrix matrix = layer.weight.matrix();
    ops::parallel_for(x.count, [&](int64_t r) {  // the only haste
        reference::linear(x.row(r), 1, x.width, matrix, epilogue, layer.compute, out.row(r),
                          out.width);
    });
    return out;
}

void ReferenceModel::add(Rows& h, float scale, const Rows& branch) {
    for (size_t i = 0; i < h.values.size(); ++i) h.values[i] += scale * branch.values[i];
}

float ReferenceModel::tanh_gate(const std::string& name) const {
    const Tensor gate = weight(name, {1});
    return static_cast<float>(std::tanh(reference::element(gate.data(), gate.dtype(), 0)));
}

// ---- text ----

Rows ReferenceModel::rms_norm(const std::string& name, const Rows& x) const {
    const Tensor w = weight(name + ".weight", {x.width});
    Rows out(x.count, x.width);
    reference::rms_norm(x.values.data(), x.count, x.width, w.data(), w.dtype(),
                        config_.text.rms_norm_eps, out.values.data());
    return out;
}

void ReferenceModel::norm_heads(const std::string& name, Rows& x) const {
    Rows heads(x.count * x.width / config_.text.head_dim(), config_.text.head_dim());
    heads.values = x.values;
    x.values = rms_norm(name, heads).values;
}

void ReferenceModel::self_attention(const std::string& layer, const Rows& cos, const Rows& sin,
                                    Rows& h) const {
    const TextConfig& c = config_.text;
    const Rows x = rms_norm(layer + "input_layernorm", h);
    Rows q = linear(layer + "self_attn.q_proj", x, c.hidden_size);
    Rows k = linear(layer + "self_attn.k_proj", x, c.kv_size());
    const Rows v = linear(layer + "self_attn.v_proj", x, c.kv_size());
    for (Rows* rotated : {&q, &k}) {
        reference::rope(rotated->values.data(), rotated->count, rotated->width / c.head_dim(),
                        c.head_dim(), rotated->width, cos.values.data(), sin.values.data());
    }
    const Rows out = attend(q, k, v, c.head_dim(), causal(0), attention_.text, attention_.kv_dtype);
    add(h, 1.0f, linear(layer + "self_attn.o_proj", out, c.hidden_size));
}

void ReferenceModel::cross_attention(const std::string& layer, const Rows& vision, Rows& h) const {
    const TextConfig& c = config_.text;
    const Rows x = rms_norm(layer + "input_layernorm", h);
    Rows q = linear(layer + "cross_attn.q_proj", x, c.hidden_size);
    Rows k = linear(layer + "cross_attn.k_proj", vision, c.kv_size());
    const Rows v = linear(layer + "cross_attn.v_proj", vision, c.kv_size());
    norm_heads(layer + "cross_attn.q_norm", q);
    norm_heads(layer + "cross_attn.k_norm", k);
    const Rows out = attend(q, k, v, c.head_dim(), {}, attention_.text, attention_.kv_dtype);
    add(h, tanh_gate(layer + "cross_attn_attn_gate"),
        linear(layer + "cross_attn.o_proj", out, c.hidden_size));
}

void ReferenceModel::text_mlp(const std::string& layer, float scale, Rows& h) const {
    const TextConfig& c = config_.text;
    const Rows x = rms_norm(layer + "post_attention_layernorm", h);
    Rows gate = linear(layer + "mlp.gate_proj", x, c.intermediate_size, false, c.hidden_act);
    const Rows up = linear(layer + "mlp.up_proj", x, c.intermediate_size);
    for (size_t i = 0; i < gate.values.size(); ++i) gate.values[i] *= up.values[i];
    add(h, scale, linear(layer + "mlp.down_proj", gate, c.hidden_size));
}

Rows ReferenceModel::logits(std::span<const int64_t> ids, const Rows* vision,
                            int64_t real_tiles) const {
    const TextConfig& c = config_.text;
    const auto rows = static_cast<int64_t>(ids.size());
    Rows seen;  // the vision rows of real tiles: every row of the text sees these
    if (vision) {
        seen = Rows(real_tiles * config_.vision.num_patches(), vision->width);
        std::copy_n(vision->values.begin(), seen.values.size(), seen.values.begin());
    }
    std::vector<int64_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), int64_t{0});
    Tensor cos_table = Tensor::empty({rows, c.head_dim() / 2}, DType::f32);
    Tensor sin_table = Tensor::empty({rows, c.head_dim() / 2}, DType::f32);
    RotaryEmbedding(c.head_dim(), c.rope).angles(Tensor::from(positions), cos_table, sin_table);
    Rows cos(rows, c.head_dim() / 2);
    Rows sin(rows, c.head_dim() / 2);
    std::copy_n(cos_table.data<float>(), cos.values.size(), cos.values.begin());
    std::copy_n(sin_table.data<float>(), sin.values.size(), sin.values.begin());

    const Tensor embeddings =
        weight(std::string(text) + "embed_tokens.weight", {c.embedding_rows(), c.hidden_size});
    Rows h(rows, c.hidden_size);
    reference::embedding(ids.data(), rows, embeddings.data(), embeddings.dtype(), c.hidden_size,
                         h.values.data());
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
        const std::string layer = text + ("layers." + std::to_string(i) + ".");
        if (!c.is_cross_attention(i)) {
            self_attention(layer, cos, sin, h);
            text_mlp(layer, 1.0f, h);
        } else if (vision) {
            cross_attention(layer, seen, h);
            text_mlp(layer, tanh_gate(layer + "cross_attn_mlp_gate"), h);
        }
    }
    return linear("language_model.lm_head", rms_norm(std::string(text) + "norm", h), c.vocab_size);
}

// ---- vision ----

Rows ReferenceModel::layer_norm(const std::string& name, float eps, const Rows& x) const {
    const Tensor w = weight(name + ".weight", {x.width});
    const Tensor b = weight(name + ".bias", {x.width});
    Rows out(x.count, x.width);
    reference::layer_norm(x.values.data(), x.count, x.width, w.data(), b.data(), w.dtype(), eps,
                          out.values.data());
    return out;
}

void ReferenceModel::add_tile_entry(const std::string& table, int64_t width, float scale,
                                    const ProcessedImage& image, int64_t tile, Rows& rows) const {
    const VisionConfig& c = config_.vision;
    const Tensor entries = weight(table, {c.num_aspect_ratio_ids(), c.max_num_tiles * width});
    const int64_t begin = (image.aspect_ratio_id * c.max_num_tiles + tile) * width;
    for (int64_t i = 0; i < rows.count * rows.width; ++i) {
        // An entry of one row is added to every row.
        const double entry = reference::element(entries.data(), entries.dtype(), begin + i % width);
        rows.values[static_cast<size_t>(i)] += static_cast<float>(scale * entry);
    }
}

Rows ReferenceModel::embed_tile(const ProcessedImage& image, int64_t tile) const {
    const VisionConfig& c = config_.vision;
    const std::string name = vision_tower;
    const int64_t side = c.patches_per_side();
    const float* pixels = image.pixel_values.data();
    Rows patches(side * side, c.patch_pixels());
    for (int64_t p = 0; p < patches.count && tile < image.num_tiles; ++p) {
        for (int64_t i = 0; i < patches.width; ++i) {
            const int64_t channel = i / (c.patch_size * c.patch_size);
            const int64_t y = p / side * c.patch_size + i / c.patch_size % c.patch_size;
            const int64_t x = p % side * c.patch_size + i % c.patch_size;
            patches.row(p)[i] =
                pixels[((tile * c.num_channels + channel) * c.image_size + y) * c.image_size + x];
        }
    }
    const Tensor convolution = weight(name + "patch_embedding.weight",
                                      {c.hidden_size, c.num_channels, c.patch_size, c.patch_size});
    Rows embedded(patches.count, c.hidden_size);
    reference::linear(
        patches.values.data(), patches.count, patches.width,
        {convolution.data(), convolution.dtype(), c.hidden_size, patches.width, patches.width}, {},
        attention_.vision, embedded.values.data(), embedded.width);
    add_tile_entry(name + "pre_tile_positional_embedding.embedding.weight", c.hidden_size,
                   tanh_gate(name + "pre_tile_positional_embedding.gate"), image, tile, embedded);

    Rows positions(c.num_patches(), c.hidden_size);  // the class token, and the patches
    const Tensor class_token = weight(name + "class_embedding", {c.hidden_size});
    reference::convert(class_token.data(), class_token.dtype(), positions.row(0), DType::f32,
                       c.hidden_size);
    std::copy(embedded.values.begin(), embedded.values.end(), positions.row(1));
    const std::string gated = name + "gated_positional_embedding.";
    const float gate = tanh_gate(gated + "gate");
    const Tensor plain = weight(gated + "embedding", {c.num_patches(), c.hidden_size});
    reference::add_scaled(positions.values.data(), plain.data(), plain.dtype(), 1.0f - gate,
                          plain.numel());
    add_tile_entry(gated + "tile_embedding.weight", c.num_patches() * c.hidden_size, gate, image,
                   tile, positions);

    Rows padded(c.padded_patches(), c.hidden_size);
    const Rows normed = layer_norm(name + "layernorm_pre", 1e-5f, positions);
    std::copy(normed.values.begin(), normed.values.end(), padded.values.begin());
    return padded;
}

void ReferenceModel::vision_layer(const std::string& layer, bool gated, int64_t real_tiles,
                                  Rows& h) const {
    const VisionConfig& c = config_.vision;
    const TileLayout all_tiles = TileLayout::of(real_tiles, c.max_num_tiles, false);
    const KeyVisibility visible = tile_visibility(all_tiles, c.num_patches(), c.padded_patches());
    const Rows x = layer_norm(layer + "input_layernorm", c.norm_eps, h);
    const Rows q = linear(layer + "self_attn.q_proj", x, c.hidden_size);
    const Rows k = linear(layer + "self_attn.k_proj", x, c.hidden_size);
    const Rows v = linear(layer + "self_attn.v_proj", x, c.hidden_size);
    const Rows out = attend(q, k, v, c.head_dim(), visible.of_all(), attention_.vision, DType::f32);
    add(h, gated ? tanh_gate(layer + "gate_attn") : 1.0f,
        linear(layer + "self_attn.o_proj", out, c.hidden_size));
    const Rows y = layer_norm(layer + "post_attention_layernorm", c.norm_eps, h);
    const Rows inner = linear(layer + "mlp.fc1", y, c.intermediate_size, true, c.hidden_act);
    add(h, gated ? tanh_gate(layer + "gate_ffn") : 1.0f,
        linear(layer + "mlp.fc2", inner, c.hidden_size, true));
}

Rows ReferenceModel::encode_image(const ProcessedImage& image) const {
    const VisionConfig& c = config_.vision;
    const std::string name = vision_tower;
    Rows h(c.max_num_tiles * c.padded_patches(), c.hidden_size);
    for (int64_t tile = 0; tile < c.max_num_tiles; ++tile) {
        const Rows embedded = embed_tile(image, tile);
        std::copy(embedded.values.begin(), embedded.values.end(), h.row(tile * c.padded_patches()));
    }
    std::vector<Rows> states;  // behind each local layer
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
        vision_layer(name + "transformer.layers." + std::to_string(i) + ".", false, image.num_tiles,
                     h);
        states.push_back(h);
    }
    h = layer_norm(name + "layernorm_post", 1e-5f, h);
    const std::string post_tile = name + "post_tile_positional_embedding.";
    const float gate = tanh_gate(post_tile + "gate");
    for (int64_t tile = 0; tile < c.max_num_tiles; ++tile) {
        Rows rows(c.padded_patches(), c.hidden_size);
        add_tile_entry(post_tile + "embedding.weight", c.hidden_size, gate, image, tile, rows);
        for (size_t i = 0; i < rows.values.size(); ++i)
            h.row(tile * c.padded_patches())[i] += rows.values[i];
    }
    for (int64_t i = 0; i < c.num_global_layers; ++i) {
        vision_layer(name + "global_transformer.layers." + std::to_string(i) + ".", true,
                     image.num_tiles, h);
    }

    // The final state, then the kept states feature by feature.
    const auto kept = static_cast<int64_t>(c.intermediate_layers_indices.size());
    Rows features(c.max_patches(), c.vision_output_dim);
    for (int64_t r = 0; r < features.count; ++r) {
        const int64_t from = r / c.num_patches() * c.padded_patches() + r % c.num_patches();
        std::copy_n(h.row(from), c.hidden_size, features.row(r));
        for (int64_t i = 0; i < c.hidden_size * kept; ++i) {
            const auto layer = c.intermediate_layers_indices[static_cast<size_t>(i % kept)];
            features.row(r)[c.hidden_size + i] =
                states[static_cast<size_t>(layer)].row(from)[i / kept];
        }
    }
    return linear("multi_modal_projector", features, config_.text.hidden_size, true);
}

}  // namespace mllama
