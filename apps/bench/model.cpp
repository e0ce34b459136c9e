#include "apps/bench/model.h"

#include <algorithm>
#include <cstdio>

#include "kernels/error.h"
#include "kernels/limits.h"
#include "mllama/random_weights.h"

namespace mllama {
namespace {

int64_t text_parameters(const TextConfig& t) {
    const int64_t attention = 2 * t.hidden_size * (t.hidden_size + t.kv_size());
    const int64_t mlp = 3 * t.hidden_size * t.intermediate_size;
    const int64_t layer = attention + mlp + 2 * t.hidden_size;  // and two norms
    const auto cross = static_cast<int64_t>(t.cross_attention_layers.size());
    const int64_t norms_and_gates = 2 * t.head_dim() + 2;
    return (t.embedding_rows() + t.vocab_size + 1) * t.hidden_size + t.num_hidden_layers * layer +
           cross * norms_and_gates;
}

int64_t vision_parameters(const VisionConfig& v) {
    const int64_t attention = 4 * v.hidden_size * v.hidden_size;
    const int64_t mlp =
        2 * v.hidden_size * v.intermediate_size + v.hidden_size + v.intermediate_size;
    const int64_t layer = attention + mlp + 4 * v.hidden_size;  // and two norms with biases
    const int64_t tile_row = v.max_num_tiles * v.hidden_size;   // of a table by aspect ratio
    const int64_t tables = v.num_aspect_ratio_ids() * tile_row * (v.num_patches() + 2) +
                           v.num_patches() * v.hidden_size + 3;  // and their gates
    const int64_t embedding = v.hidden_size * v.patch_pixels() + v.hidden_size;
    const int64_t outer_norms = 4 * v.hidden_size;
    return (v.num_hidden_layers + v.num_global_layers) * layer + v.num_global_layers * 2 + tables +
           embedding + outer_norms;
}

}  // namespace

ModelConfig first_layers(ModelConfig config, int64_t layers) {
    TextConfig& t = config.text;
    t.num_hidden_layers = std::min(t.num_hidden_layers, layers);
    std::erase_if(t.cross_attention_layers,
                  [&](int64_t layer) { return layer >= t.num_hidden_layers; });

    VisionConfig& v = config.vision;
    if (layers >= v.num_hidden_layers) return config;
    if (v.num_global_layers > 0) {
        v.num_global_layers =
            std::max<int64_t>(1, v.num_global_layers * layers / v.num_hidden_layers);
    }
    v.num_hidden_layers = layers;
    for (int64_t& index : v.intermediate_layers_indices) index = std::min(index, layers - 1);
    return config;
}

int64_t parameter_count(const ModelConfig& config) {
    const int64_t projector =
        (config.vision.vision_output_dim + 1) * config.text.hidden_size;  // with bias
    return text_parameters(config.text) + vision_parameters(config.vision) + projector;
}

Model random_model(const ModelConfig& config, const ModelOptions& options,
                   const std::string& config_path) {
    const DType dtype = options.weights == WeightType::f32 ? DType::f32 : DType::bf16;
    const int64_t bytes = parameter_count(config) * dtype_size(dtype);
    const int64_t available = cpu::available_memory();
    if (available > 0 && bytes > available) {
        char text[160];
        std::snprintf(text, sizeof text,
                      "random weights: expected at most %.1f GB, the memory that is free, found "
                      "%.1f GB; --layers N takes the first ones only",
                      static_cast<double>(available) / 1e9, static_cast<double>(bytes) / 1e9);
        fail(config_path, ": ", text);
    }
    const RandomWeights weights(config, dtype);
    return Model::build(config, weights, options);
}

}  // namespace mllama
