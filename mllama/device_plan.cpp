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

std::string gigabytes(int64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) / 1e9);
    return text;
}

}  // namespace

std::string DevicePlan::to_string() const {
    return gigabytes(weights) + " of weights (" + std::to_string(layers) + " of " +
           std::to_string(all_layers) + " text layers), " + gigabytes(scratch + overhead) +
           " to work in, " + gigabytes(tokens * kv_per_token + images * kv_per_image) +
           " of keys and values (" + std::to_string(tokens) + " tokens, " + std::to_string(images) +
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
    plan.scratch = scratch_bytes(config, Device::cuda,
                                 std::min(prefill_rows(Device::cuda), t.max_position_embeddings));
    const KvLayout layout{t.num_key_value_heads, t.head_dim(), kv_dtype};
    for (int64_t layer = t.num_hidden_layers - layers; layer < t.num_hidden_layers; ++layer) {
        (t.is_cross_attention(layer) ? plan.kv_per_image : plan.kv_per_token) +=
            layout.bytes_of_key();
    }
    plan.kv_per_image *= config.vision.max_num_tiles * config.vision.num_patches();
    return plan;
}

void fit_device_plan(const TextConfig& config, int64_t largest_layer, DevicePlan& plan) {
    const int64_t room = plan.free_bytes - plan.overhead;
    plan.tokens = std::min(least_tokens, config.max_position_embeddings);
    plan.images = 1;
    if (plan.bytes() > room) {
        const int64_t missing = plan.bytes() - room;
        const int64_t fewer = largest_layer > 0 ? (missing + largest_layer - 1) / largest_layer : 0;
        const std::string advice = fewer > 0 && fewer <= plan.layers
                                       ? "--gpu-layers " + std::to_string(plan.layers - fewer) +
                                             " would fit; the other layers stay on the CPU"
                                       : "the model has to stay on the CPU";
        fail("the model does not fit into the memory of ", plan.device, ": expected at most ",
             gigabytes(plan.free_bytes), " (free of ", gigabytes(plan.memory_bytes), "), found ",
             gigabytes(plan.bytes() + plan.overhead), ": ", plan.to_string(), ". ", advice);
    }
    int64_t left = room - plan.bytes();
    if (plan.kv_per_image > 0) {
        const int64_t more = std::min(most_images - plan.images, left / 4 / plan.kv_per_image);
        plan.images += more;
        left -= more * plan.kv_per_image;
    }
    const int64_t wanted = config.max_position_embeddings - plan.tokens;
    plan.tokens += plan.kv_per_token > 0 ? std::min(wanted, left / plan.kv_per_token) : wanted;
}

}  // namespace mllama
