#include "mllama/vision.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

namespace mllama {
namespace {

/// layernorm_pre and layernorm_post use the default of torch, whatever the config says.
constexpr float outer_norm_eps = 1e-5f;

VisionEncoderLayer load_layer(const VisionConfig& c, const WeightLoader& weights,
                              const std::string& name, bool gated) {
    VisionEncoderLayer layer;
    layer.input_layernorm = weights.layer_norm(name + "input_layernorm", c.hidden_size, c.norm_eps);
    layer.q_proj = weights.linear(name + "self_attn.q_proj", c.hidden_size, c.hidden_size);
    layer.k_proj = weights.linear(name + "self_attn.k_proj", c.hidden_size, c.hidden_size);
    layer.v_proj = weights.linear(name + "self_attn.v_proj", c.hidden_size, c.hidden_size);
    layer.o_proj = weights.linear(name + "self_attn.o_proj", c.hidden_size, c.hidden_size);
    layer.post_attention_layernorm =
        weights.layer_norm(name + "post_attention_layernorm", c.hidden_size, c.norm_eps);
    layer.mlp.fc1 = weights.linear_with_bias(name + "mlp.fc1", c.intermediate_size, c.hidden_size);
    layer.mlp.fc2 = weights.linear_with_bias(name + "mlp.fc2", c.hidden_size, c.intermediate_size);
    layer.mlp.activation = c.hidden_act;
    if (gated) {
        layer.gate_attn = weights.tanh_gate(name + "gate_attn");
        layer.gate_ffn = weights.tanh_gate(name + "gate_ffn");
    }
    return layer;
}

TileEmbedding load_tile_embedding(const VisionConfig& c, const WeightLoader& weights,
                                  const std::string& name) {
    return {weights.vector(name + ".embedding.weight",
                           {c.num_aspect_ratio_ids(), c.max_num_tiles * c.hidden_size}),
            weights.tanh_gate(name + ".gate")};
}

/// Row `aspect_ratio_id` of a table, seen as (max_num_tiles, rows of a tile, width), tile `tile`:
/// (rows of a tile, width).
Tensor tile_entry(const Tensor& table, int64_t aspect_ratio_id, int64_t tile, int64_t width,
                  int64_t rows_of_a_tile) {
    const Tensor row = table.rows(aspect_ratio_id, aspect_ratio_id + 1);
    return row.view({row.numel() / width, width})
        .rows(tile * rows_of_a_tile, (tile + 1) * rows_of_a_tile);
}

/// All elements are equal: in their bits, or in value, as 0 and -0 are. Usually the bits are, and those
/// of a picture are compared in a millisecond.
bool same_values(const Tensor& a, const Tensor& b) {
    const int64_t n = a.numel();
    if (std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes())) == 0) return true;
    if (a.dtype() == DType::f32)
        return std::equal(a.data<float>(), a.data<float>() + n, b.data<float>());
    const auto to_f32 = a.dtype() == DType::bf16 ? bf16_to_f32 : f16_to_f32;
    return std::equal(a.data<uint16_t>(), a.data<uint16_t>() + n, b.data<uint16_t>(),
                      [to_f32](uint16_t x, uint16_t y) { return to_f32(x) == to_f32(y); });
}

}  // namespace

void TileEmbedding::add_to(Tensor& rows, int64_t aspect_ratio_id, int64_t tile) const {
    ops::add_to_rows(rows, tile_entry(embedding, aspect_ratio_id, tile, rows.cols(), 1), gate);
}

void PositionEmbedding::add_to(Tensor& rows, int64_t aspect_ratio_id, int64_t tile) const {
    ops::add_scaled(rows, embedding, 1.0f - gate);
    ops::add_scaled(
        rows, tile_entry(tile_embedding, aspect_ratio_id, tile, rows.cols(), rows.rows()), gate);
}

void VisionFeatures::tile_rows(int64_t tile, Tensor& out) const {
    const int64_t hidden_size = final_state.cols();
    const auto rows_of_tile = [&](const Tensor& state) {
        return state.rows(tile * padded_patches, tile * padded_patches + num_patches);
    };
    Tensor final_columns = out.cols(0, hidden_size);
    final_columns.copy_from(rows_of_tile(final_state));
    std::vector<Tensor> states;
    for (const Tensor& state : intermediates) states.push_back(rows_of_tile(state));
    Tensor intermediate_columns = out.cols(hidden_size, out.cols());
    ops::interleave(states, intermediate_columns);
}

VisionModel::VisionModel(const VisionConfig& config, const WeightLoader& weights,
                         Reference reference)
    : config_(config), reference_(reference) {
    const VisionConfig& c = config_;
    const std::string name = "vision_model.";
    patch_embedding_.weight =
        weights
            .matrix(name + "patch_embedding.weight",
                    {c.hidden_size, c.num_channels, c.patch_size, c.patch_size})
            .view({c.hidden_size, c.patch_pixels()});
    patch_embedding_.compute = weights.compute(patch_embedding_.weight);
    class_embedding_ = weights.vector(name + "class_embedding", {c.hidden_size});
    gated_positional_embedding_.embedding = weights.vector(
        name + "gated_positional_embedding.embedding", {c.num_patches(), c.hidden_size});
    gated_positional_embedding_.tile_embedding =
        weights.matrix(name + "gated_positional_embedding.tile_embedding.weight",
                       {c.num_aspect_ratio_ids(), c.max_patches() * c.hidden_size});
    gated_positional_embedding_.gate = weights.tanh_gate(name + "gated_positional_embedding.gate");
    pre_tile_positional_embedding_ =
        load_tile_embedding(c, weights, name + "pre_tile_positional_embedding");
    post_tile_positional_embedding_ =
        load_tile_embedding(c, weights, name + "post_tile_positional_embedding");
    tables_ = {gated_positional_embedding_.tile_embedding, pre_tile_positional_embedding_.embedding,
               post_tile_positional_embedding_.embedding};
    layernorm_pre_ = weights.layer_norm(name + "layernorm_pre", c.hidden_size, outer_norm_eps);
    layernorm_post_ = weights.layer_norm(name + "layernorm_post", c.hidden_size, outer_norm_eps);
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
        transformer_.push_back(
            load_layer(c, weights, name + "transformer.layers." + std::to_string(i) + ".", false));
    }
    for (int64_t i = 0; i < c.num_global_layers; ++i) {
        global_transformer_.push_back(load_layer(
            c, weights, name + "global_transformer.layers." + std::to_string(i) + ".", true));
    }
}

void VisionModel::for_each_tensor(const std::function<void(Tensor&)>& visit) {
    patch_embedding_.for_each_tensor(visit);
    for (Tensor* tensor :
         {&class_embedding_, &gated_positional_embedding_.embedding,
          &gated_positional_embedding_.tile_embedding, &pre_tile_positional_embedding_.embedding,
          &post_tile_positional_embedding_.embedding}) {
        visit(*tensor);
    }
    layernorm_pre_.for_each_tensor(visit);
    layernorm_post_.for_each_tensor(visit);
    for (auto* layers : {&transformer_, &global_transformer_}) {
        for (VisionEncoderLayer& layer : *layers) layer.for_each_tensor(visit);
    }
}

bool VisionModel::padding_tiles_equal(int64_t aspect_ratio_id) const {
    const VisionConfig& c = config_;
    const auto [high, wide] = c.supported_aspect_ratios[static_cast<size_t>(aspect_ratio_id - 1)];
    const int64_t first = high * wide;
    const auto equal = [&](const Tensor& table, int64_t rows_of_a_tile, int64_t tile) {
        return same_values(tile_entry(table, aspect_ratio_id, first, c.hidden_size, rows_of_a_tile),
                           tile_entry(table, aspect_ratio_id, tile, c.hidden_size, rows_of_a_tile));
    };
    for (int64_t tile = first + 1; tile < c.max_num_tiles; ++tile) {
        if (!equal(tables_.positions, c.num_patches(), tile) || !equal(tables_.before, 1, tile) ||
            !equal(tables_.behind, 1, tile)) {
            return false;
        }
    }
    return true;
}

void VisionModel::embed(const ProcessedImage& image, const TileLayout& layout, Tensor& x,
                        Arena& scratch) const {
    const VisionConfig& c = config_;
    const Arena::Scope scope(scratch);
    Tensor pixels = scratch.take({c.num_channels, c.image_size, c.image_size});
    Tensor unfolded = scratch.take({c.num_patches() - 1, c.patch_pixels()});
    for (int64_t tile = 0; tile < layout.tiles(); ++tile) {
        Tensor tile_rows = x.rows(tile * c.padded_patches(), (tile + 1) * c.padded_patches());
        Tensor positions = tile_rows.rows(0, c.num_patches());
        Tensor patches = positions.rows(1, c.num_patches());
        if (tile < layout.real_tiles) {
            pixels.fill_from(image.pixel_values.data() + tile * pixels.numel());
            ops::unfold_patches(pixels, c.patch_size, unfolded);
            patch_embedding_.forward(unfolded, patches);
        } else {
            patches.fill_zero();  // a padding tile's pixels are 0, and the convolution has no bias
        }
        pre_tile_positional_embedding_.add_to(patches, image.aspect_ratio_id, tile);
        Tensor class_token = positions.rows(0, 1);
        class_token.copy_from(class_embedding_);
        gated_positional_embedding_.add_to(positions, image.aspect_ratio_id, tile);
        layernorm_pre_.forward(positions, positions);
        tile_rows.rows(c.num_patches(), c.padded_patches()).fill_zero();
    }
}

void VisionEncoderLayer::forward(Tensor& h, const VisionConfig& config, Visibility visible,
                                 const Tensor& key_bias, Arena& scratch) const {
    const Arena::Scope scope(scratch);
    const DType dtype =
        Linear::activation_dtype({&q_proj, &k_proj, &v_proj, &o_proj, &mlp.fc1}, h.rows());
    Tensor x = scratch.take(h.shape(), dtype);  // (positions, hidden_size)
    {
        const Arena::Scope attention_scope(scratch);
        const DType kv_dtype = q_proj.compute == Compute::f32 ? DType::f32 : DType::bf16;
        const KvLayout layout{config.num_attention_heads, config.head_dim(), kv_dtype};
        KeysValues kv{scratch.take(KeysValues::key_shape(layout, h.rows()), kv_dtype),
                      scratch.take(KeysValues::value_shape(layout, h.rows()), kv_dtype), h.rows()};
        Tensor q = scratch.take(h.shape());  // (positions, heads * head_dim)
        Tensor k = scratch.take(h.shape());
        Tensor v = scratch.take(h.shape());
        input_layernorm.forward(h, x);
        Linear::forward_all(x, {{q_proj, q}, {k_proj, k}, {v_proj, v}});
        ops::StoreCall store{k, v, 0, kv};
        ops::store_keys_values({&store, 1});
        const float scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim()));
        ops::attention(q, kv, {config.head_dim(), scale}, key_bias, visible, q_proj.compute, x);
        o_proj.add_to(h, x, gate_attn);
    }
    post_attention_layernorm.forward(h, x);
    mlp.add_to(h, x, gate_ffn, scratch);
}

VisionFeatures VisionModel::forward(const ProcessedImage& image, Arena& scratch,
                                    const VisionProgress& progress, bool share_padding) const {
    const VisionConfig& c = config_;
    VisionFeatures features;
    const bool share = share_padding && padding_tiles_equal(image.aspect_ratio_id);
    features.layout = TileLayout::of(image.num_tiles, c.max_num_tiles, share);
    features.num_patches = c.num_patches();
    features.padded_patches = c.padded_patches();
    const int64_t positions = features.layout.tiles() * c.padded_patches();

    Tensor h = scratch.take({positions, c.hidden_size});
    for (size_t i = 0; i < c.intermediate_layers_indices.size(); ++i) {
        features.intermediates.push_back(scratch.take(h.shape()));
    }
    embed(image, features.layout, h, scratch);

    const KeyVisibility rule =
        tile_visibility(features.layout, c.num_patches(), c.padded_patches());
    const Visibility visible = rule.on(scratch);
    std::vector<float> bias;
    if (features.layout.multiplicity > 1)
        append_key_bias(features.layout, c.padded_patches(), bias);
    const Tensor key_bias =
        bias.empty() ? Tensor() : scratch.take_copy(std::span<const float>(bias));

    const auto keep = [&](int64_t layer) {
        for (size_t k = 0; k < features.intermediates.size(); ++k) {
            if (c.intermediate_layers_indices[k] == layer)
                ops::convert(h, features.intermediates[k]);
        }
    };
    const int64_t layers = c.num_hidden_layers + c.num_global_layers;
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
        if (reference_ == Reference::meta) keep(i);
        transformer_[static_cast<size_t>(i)].forward(h, c, visible, key_bias, scratch);
        if (reference_ == Reference::transformers) keep(i);
        if (progress) progress(i + 1, layers);
    }

    layernorm_post_.forward(h, h);
    for (int64_t tile = 0; tile < features.layout.tiles(); ++tile) {
        Tensor rows = h.rows(tile * c.padded_patches(), (tile + 1) * c.padded_patches());
        post_tile_positional_embedding_.add_to(rows, image.aspect_ratio_id, tile);
    }
    for (int64_t i = 0; i < c.num_global_layers; ++i) {
        global_transformer_[static_cast<size_t>(i)].forward(h, c, visible, key_bias, scratch);
        if (progress) progress(c.num_hidden_layers + i + 1, layers);
    }
    features.final_state = h;
    return features;
}

double VisionModel::multiply_adds(int64_t real_tiles) const {
    const VisionConfig& c = config_;
    // The first supported shape of that many tiles stands for all.
    const auto& shapes = c.supported_aspect_ratios;
    const auto first = std::find_if(shapes.begin(), shapes.end(), [&](const auto& shape) {
        return shape.first * shape.second == real_tiles;
    });
    const int64_t id = first == shapes.end() ? 1 : first - shapes.begin() + 1;
    const TileLayout layout = TileLayout::of(real_tiles, c.max_num_tiles, padding_tiles_equal(id));
    const auto rows = static_cast<double>(layout.tiles() * c.padded_patches());
    const auto hidden = static_cast<double>(c.hidden_size);
    const double linear =
        rows * (4 * hidden * hidden + 2 * hidden * static_cast<double>(c.intermediate_size));
    const auto real = static_cast<double>(layout.real_tiles * c.num_patches());
    const double attention = 2 * hidden * (real * rows + (rows - real) * real);
    const double patches = real * hidden * static_cast<double>(c.patch_pixels());
    return static_cast<double>(c.num_hidden_layers + c.num_global_layers) * (linear + attention) +
           patches;
}

}  // namespace mllama
