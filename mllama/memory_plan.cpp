#include "mllama/memory_plan.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "tensor/ops.h"

namespace mllama {
namespace {

constexpr int64_t f32_bytes = 4;

/// The vision tower at its widest: the state and the kept states; beside them first the pixels of a
/// tile, then x with q, k, v, and k and v as attention reads them, or with a part of the feed-forward
/// network; at last the rows of a tile behind the tower and all rows behind the projector. All f32: what a
/// GPU holds as bf16 (see ops::activation_dtype) takes less.
int64_t vision_scratch(const ModelConfig& config, Device device) {
    const VisionConfig& v = config.vision;
    const int64_t positions = v.max_num_tiles * v.padded_patches();
    const int64_t state = positions * v.hidden_size;
    const auto kept = static_cast<int64_t>(v.intermediate_layers_indices.size());
    const int64_t pixels = 2 * v.num_channels * v.image_size * v.image_size;
    const int64_t attention = 5 * state + 2 * KvLayout::block * v.hidden_size;  // whole blocks
    const int64_t middle = std::min(positions, ops::rows_at_a_time(device)) * v.intermediate_size;
    const int64_t projected = v.num_patches() * v.vision_output_dim +
                              v.max_num_tiles * v.num_patches() * config.text.hidden_size;
    const int64_t beside = std::max({pixels, state + std::max(attention, middle), projected});
    return ((1 + kept) * state + beside) * f32_bytes;
}

/// The text tower: h, x, q, k, v, gate and up of a chunk, and a row of logits. On a GPU, what gate and
/// up become is beside them in bf16; on the CPU it takes the place of gate.
int64_t text_scratch(const TextConfig& t, Device device, int64_t rows) {
    const int64_t row = 3 * t.hidden_size + 2 * t.kv_size() + 2 * t.intermediate_size;
    const int64_t gated = device == Device::cuda ? rows * t.intermediate_size : 0;
    return (rows * row + t.vocab_size) * f32_bytes + gated * dtype_size(DType::bf16);
}

/// Bytes of the plain matrix of this name once it is quantised; none: it stays as it is.
std::optional<int64_t> quantised_bytes(const QuantisationPlan& plan, std::string_view name,
                                       const TensorInfo& info) {
    constexpr std::string_view suffix = ".weight";
    if (info.shape.size() != 2 || !name.ends_with(suffix)) return std::nullopt;
    const std::string_view module = name.substr(0, name.size() - suffix.size());
    const std::optional<QuantisedFormat> format = plan.of(module, info.shape[1]);
    if (!format) return std::nullopt;
    return format->bytes(info.shape[0], info.shape[1]);
}

/// Whether keys and values are kept as bf16: where the products of lm_head are not float32 (see
/// Model::kv_dtype).
bool keeps_bf16(const Checkpoint& checkpoint, const std::set<std::string>& quantised) {
    const std::string lm_head = "language_model.lm_head.weight";
    if (!checkpoint.has(lm_head) || quantised.contains(lm_head)) return true;
    return checkpoint.info(lm_head).dtype == DType::bf16;
}

/// "language_model.model.layers.17.mlp.up_proj" -> "17"; "" for what is in no text layer.
std::string text_layer(const std::string& name) {
    const std::string_view layers = "language_model.model.layers.";
    if (name.compare(0, layers.size(), layers) != 0) return {};
    return name.substr(layers.size(), name.find('.', layers.size()) - layers.size());
}

}  // namespace

int64_t scratch_bytes(const ModelConfig& config, Device device, int64_t rows) {
    return std::max(vision_scratch(config, device), text_scratch(config.text, device, rows));
}

MemoryPlan plan_memory(const ModelConfig& config, const CheckpointWeights& weights, int64_t context,
                       std::optional<DType> kv_dtype, const QuantisationPlan& quantising) {
    MemoryPlan plan;
    const Checkpoint& checkpoint = weights.checkpoint();
    std::set<std::string> counted;
    std::map<std::string, int64_t> by_layer;
    for (const CheckpointWeights::Layer& layer : weights.quantised_layers()) {
        quantising.check_can_become(layer.module, layer.weight);
        plan.weights_mapped += layer.bytes;
        by_layer[text_layer(layer.module)] += layer.bytes;
        counted.insert(layer.tensors.begin(), layer.tensors.end());
    }
    for (const std::string& name : checkpoint.names()) {
        if (counted.contains(name)) continue;
        const TensorInfo& info = checkpoint.info(name);
        const std::optional<int64_t> quantised = quantised_bytes(quantising, name, info);
        by_layer[text_layer(name)] += quantised.value_or(info.bytes);
        if (quantised) {
            plan.weights_quantised += *quantised;
        } else if (info.shape.size() >= 2) {
            plan.weights_mapped += info.bytes;
        } else {
            plan.weights_copied += (info.shape.empty() ? 1 : info.shape[0]) * f32_bytes;
        }
    }
    by_layer.erase("");
    for (const auto& [layer, bytes] : by_layer)
        plan.largest_layer = std::max(plan.largest_layer, bytes);
    const TextConfig& t = config.text;
    const bool bf16 = quantising.text.has_value() || keeps_bf16(checkpoint, counted);
    const DType kept = bf16 ? DType::bf16 : DType::f32;
    const KvLayout layout{t.num_key_value_heads, t.head_dim(), kv_dtype.value_or(kept)};
    const auto cross = static_cast<int64_t>(t.cross_attention_layers.size());
    plan.kv_per_token = (t.num_hidden_layers - cross) * layout.bytes_of_key();
    plan.kv_per_image =
        cross * layout.bytes_of_key() * config.vision.max_num_tiles * config.vision.num_patches();
    plan.scratch = scratch_bytes(config, Device::cpu, std::min(context, prefill_rows(Device::cpu)));
    return plan;
}

}  // namespace mllama
