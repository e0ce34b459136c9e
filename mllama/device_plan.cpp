#include "mllama/device_plan.h"

#include <algorithm>
#include <cstdio>

#include "kernels/error.h"
#include "mllama/memory_plan.h"
#include "tensor/device_memory.h"
#include "tensor/gpu.h"
#include "tensor/ops.h"

namespace mllama {
namespace {

constexpr int64_t least_tokens = 2048;
constexpr int64_t most_images = 4;
constexpr int64_t block = KvLayout::block;  // tokens that a text has room for come in these

std::string gigabytes(int64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) / 1e9);
    return text;
}

/// Room for a short text and a picture, and whether that fits.
bool fit_least(const TextConfig& config, DevicePlan& plan) {
    plan.tokens = round_up(std::min(least_tokens, config.max_position_embeddings), block);
    plan.images = 1;
    return plan.bytes() + plan.overhead <= plan.free_bytes;
}

/// What can be done about a plan that does not fit.
std::string advice(const TextConfig& config, const DevicePlan& plan,
                   const std::function<DevicePlan(int64_t)>& with_layers) {
    for (int64_t layers = plan.layers - 1; layers >= 0; --layers) {
        DevicePlan fewer = with_layers(layers);
        if (!fit_least(config, fewer)) continue;
        return "--gpu-layers " + std::to_string(layers) +
               " would fit; the other layers stay on the CPU";
    }
    return "the model has to stay on the CPU";
}

/// What lives beside the large tensors: angles of the rotary embedding, the most probable tokens or the
/// largest logits (a few hundred samples' at the usual top_k, some twenty's at the largest), and for
/// each text with pictures a float32 for each of their rows, which is taken anew with each picture: gaps
/// that are then too small are left, never as many as three times what is in use.
int64_t small_bytes(int64_t rows_of_image) {
    constexpr int64_t tables = int64_t{256} << 10;
    return tables + 4 * most_images *
                        round_up(rows_of_image * dtype_size(DType::f32), DeviceRegion::alignment);
}

}  // namespace

std::string DevicePlan::to_string() const {
    return gigabytes(weights) + " of weights (" + std::to_string(layers) + " of " +
           std::to_string(all_layers) + " text layers), " +
           gigabytes(scratch + picture + small + overhead) + " to work in, " +
           gigabytes(tokens * kv_per_token + images * kv_per_image) + " of keys and values (" +
           std::to_string(tokens) + " tokens, " + std::to_string(images) +
           (images == 1 ? " picture)" : " pictures)");
}

DevicePlan begin_device_plan(const ModelConfig& config, DType kv_dtype, int64_t layers) {
    const TextConfig& t = config.text;
    const GpuInfo gpu = gpu_info();
    DevicePlan plan;
    plan.device = gpu.name;
    plan.memory_bytes = gpu.memory_bytes;
    plan.overhead = gpu_overhead_bytes;
    // Beside another model there is what that one has left of its own.
    plan.free_bytes = std::max(gpu.free_bytes, largest_free_piece() + plan.overhead);
    plan.layers = layers;
    plan.all_layers = t.num_hidden_layers;
    plan.scratch = scratch_bytes(config, Device::cuda, prefill_rows(Device::cuda));
    const int64_t rows = config.vision.max_patches();
    plan.picture = round_up(rows * t.hidden_size * dtype_size(DType::f32), DeviceRegion::alignment);
    plan.small = small_bytes(rows);
    const KvLayout layout{t.num_key_value_heads, t.head_dim(), kv_dtype};
    for (int64_t layer = t.num_hidden_layers - layers; layer < t.num_hidden_layers; ++layer) {
        if (t.is_cross_attention(layer)) {
            plan.kv_per_image += layout.bytes_of_key() * round_up(rows, block);
        } else {
            plan.kv_per_token += layout.bytes_of_key();
        }
    }
    return plan;
}

void fit_device_plan(const TextConfig& config, DevicePlan& plan,
                     const std::function<DevicePlan(int64_t)>& with_layers) {
    if (!fit_least(config, plan)) {
        fail("the model does not fit into the memory of ", plan.device, ": expected at most ",
             gigabytes(plan.free_bytes), " (free of ", gigabytes(plan.memory_bytes), "), found ",
             gigabytes(plan.bytes() + plan.overhead), ": ", plan.to_string(), ". ",
             advice(config, plan, with_layers));
    }
    int64_t left = plan.free_bytes - plan.overhead - plan.bytes();
    if (plan.kv_per_image > 0) {
        const int64_t more = std::min(most_images - plan.images, left / 4 / plan.kv_per_image);
        plan.images += more;
        left -= more * plan.kv_per_image;
    }
    const int64_t wanted = round_up(config.max_position_embeddings, block) - plan.tokens;
    const int64_t fits = plan.kv_per_token > 0 ? left / plan.kv_per_token / block * block : wanted;
    plan.tokens += std::min(wanted, fits);
}

}  // namespace mllama
