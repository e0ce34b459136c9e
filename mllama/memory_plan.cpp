#include "mllama/memory_plan.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "tensor/device_memory.h"
#include "tensor/ops.h"

namespace mllama {
namespace {

constexpr int64_t f32_bytes = 4;

/// Bytes of a tensor in an arena.
int64_t taken(int64_t elements, int64_t size = f32_bytes) {
    return round_up(elements * size, DeviceRegion::alignment);
}

/// Who sees what: of `queries`, each of which sees at most so many ranges.
int64_t visibility_bytes(int64_t queries, int64_t ranges) {
    return taken(queries + 1, sizeof(int64_t)) + taken(queries * ranges, sizeof(KeyRange));
}

/// The vision tower at its widest: the state and the kept states; beside them first the pixels of a
/// tile, then x with q, k, v, and k and v as attention reads them, or with a part of the feed-forward
/// network; at last the rows of a tile behind the tower. All f32: what a GPU holds as bf16 (see
/// ops::activation_dtype) takes less.
int64_t vision_scratch(const ModelConfig& config, Device device) {
    const VisionConfig& v = config.vision;
    const int64_t positions = v.max_num_tiles * v.padded_patches();
    const int64_t state = taken(positions * v.hidden_size);
    const auto kept = static_cast<int64_t>(v.intermediate_layers_indices.size());
    const int64_t masks = visibility_bytes(positions, v.max_num_tiles) + taken(positions);
    const int64_t pixels = taken(v.num_channels * v.image_size * v.image_size) +
                           taken((v.num_patches() - 1) * v.patch_pixels());
    const KvLayout layout{v.num_attention_heads, v.head_dim(), DType::f32};
    const int64_t attention =
        3 * state + round_up(positions, KvLayout::block) * layout.bytes_of_key();
    const int64_t middle =
        taken(std::min(positions, ops::rows_at_a_time(device)) * v.intermediate_size);
    const int64_t tile = taken(v.num_patches() * v.vision_output_dim);
    const int64_t beside = std::max({pixels, state + std::max(attention, middle), tile});
    return (1 + kept) * state + masks + beside;
}

/// Keys and values of a picture: its rows in bf16, and k and v of a tile.
int64_t image_scratch(const ModelConfig& config) {
    const int64_t rows = config.vision.max_patches();
    return taken(rows * config.text.hidden_size, dtype_size(DType::bf16)) +
           2 * taken(config.vision.num_patches() * config.text.kv_size());
}

/// The text tower: h and x of a chunk, q, k and v or gate and up and what those become, and a row of
/// logits; numbers and masks. A row that sees no picture has what the feed-forward network adds apart.
int64_t text_scratch(const TextConfig& t, Device device, int64_t rows) {
    constexpr int64_t images_seen = 4;
    const int64_t state = taken(rows * t.hidden_size);
    const int64_t numbers = 3 * taken(rows, sizeof(int64_t)) + taken(rows) +
                            2 * taken(rows * t.head_dim() / 2) +
                            visibility_bytes(rows, images_seen);
    const int64_t attention = taken(rows * (t.hidden_size + 2 * t.kv_size()));
    const int64_t middle = std::min(rows, ops::rows_at_a_time(device)) * t.intermediate_size;
    // On the CPU what gate and up become takes the place of gate.
    const int64_t gated = device == Device::cuda ? taken(middle, dtype_size(DType::bf16)) : 0;
    const int64_t feed_forward = state + 2 * taken(middle) + gated;
    return numbers + 2 * state + std::max(attention, feed_forward) + taken(t.vocab_size);
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

}  // namespace

int64_t scratch_bytes(const ModelConfig& config, Device device, int64_t rows) {
    return std::max({vision_scratch(config, device), image_scratch(config),
                     text_scratch(config.text, device, rows)});
}

MemoryPlan plan_memory(const ModelConfig& config, const CheckpointWeights& weights, int64_t context,
                       std::optional<DType> kv_dtype, const QuantisationPlan& quantising) {
    MemoryPlan plan;
    const Checkpoint& checkpoint = weights.checkpoint();
    std::set<std::string> counted;
    for (const CheckpointWeights::Layer& layer : weights.quantised_layers()) {
        quantising.check_can_become(layer.module, layer.weight);
        plan.weights_mapped += layer.bytes;
        counted.insert(layer.tensors.begin(), layer.tensors.end());
    }
    for (const std::string& name : checkpoint.names()) {
        if (counted.contains(name)) continue;
        const TensorInfo& info = checkpoint.info(name);
        const std::optional<int64_t> quantised = quantised_bytes(quantising, name, info);
        if (quantised) {
            plan.weights_quantised += *quantised;
        } else if (info.shape.size() >= 2) {
            plan.weights_mapped += info.bytes;
        } else {
            plan.weights_copied += (info.shape.empty() ? 1 : info.shape[0]) * f32_bytes;
        }
    }
    const TextConfig& t = config.text;
    const bool bf16 = quantising.text.has_value() || keeps_bf16(checkpoint, counted);
    const DType kept = bf16 ? DType::bf16 : DType::f32;
    const KvLayout layout{t.num_key_value_heads, t.head_dim(), kv_dtype.value_or(kept)};
    const auto cross = static_cast<int64_t>(t.cross_attention_layers.size());
    plan.kv_per_token = (t.num_hidden_layers - cross) * layout.bytes_of_key();
    plan.kv_per_image = cross * layout.bytes_of_key() * config.vision.max_patches();
    // Beside the intermediates, the rows of the picture that is being read.
    const int64_t picture = config.vision.max_patches() * t.hidden_size * f32_bytes;
    plan.scratch =
        std::max(picture + std::max(vision_scratch(config, Device::cpu), image_scratch(config)),
                 text_scratch(t, Device::cpu, std::min(context, prefill_rows(Device::cpu))));
    return plan;
}

}  // namespace mllama
