#include "mllama/memory_plan.h"

#include <algorithm>

namespace mllama {
namespace {

constexpr int64_t f32_bytes = 4;
constexpr int64_t rows_of_a_forward = 512;  // GenerationOptions::prefill_chunk

/// The vision tower at its widest: the state, the kept states, x, q, k, v, and a part of the
/// feed-forward network; then the rows of a tile behind the tower and all rows behind the
/// projector.
int64_t vision_scratch(const ModelConfig& config) {
    const VisionConfig& v = config.vision;
    const int64_t positions = v.max_num_tiles * v.padded_patches();
    const auto kept = static_cast<int64_t>(v.intermediate_layers_indices.size());
    const int64_t tower = positions * v.hidden_size * (1 + kept + 4) + 1024 * v.intermediate_size;
    const int64_t projected = v.num_patches() * v.vision_output_dim +
                              v.max_num_tiles * v.num_patches() * config.text.hidden_size;
    return (tower + projected) * f32_bytes;
}

/// The text tower: h, x, q, k, v, gate and up of a chunk, and a row of logits.
int64_t text_scratch(const TextConfig& t) {
    const int64_t row = 3 * t.hidden_size + 2 * t.kv_size() + 2 * t.intermediate_size;
    return (rows_of_a_forward * row + t.vocab_size) * f32_bytes;
}

}  // namespace

MemoryPlan plan_memory(const ModelConfig& config, const Checkpoint& checkpoint, int64_t context) {
    MemoryPlan plan;
    int64_t half_precision = 0;
    for (const std::string& name : checkpoint.names()) {
        const TensorInfo& info = checkpoint.info(name);
        if (info.shape.size() >= 2) {
            plan.weights_mapped += info.bytes;
            if (info.dtype == DType::bf16) half_precision += info.bytes;
        } else {
            plan.weights_copied += (info.shape.empty() ? 1 : info.shape[0]) * f32_bytes;
        }
    }
    const int64_t kv_bytes = 2 * half_precision > plan.weights_mapped ? 2 : f32_bytes;
    const TextConfig& t = config.text;
    const auto cross = static_cast<int64_t>(t.cross_attention_layers.size());
    plan.kv_per_token = (t.num_hidden_layers - cross) * 2 * t.kv_size() * kv_bytes;
    plan.kv_per_image = cross * 2 * t.kv_size() * kv_bytes * config.vision.max_num_tiles *
                        config.vision.num_patches();
    const int64_t rows = std::min(context, rows_of_a_forward);
    plan.scratch = std::max(vision_scratch(config), text_scratch(t) * rows / rows_of_a_forward);
    return plan;
}

}  // namespace mllama
