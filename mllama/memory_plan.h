// What a checkpoint will need in memory, from its headers alone.
#pragma once

#include <optional>

#include "mllama/checkpoint_weights.h"
#include "mllama/config.h"
#include "mllama/quantise.h"

namespace mllama {

/// Bytes, with weights held as stored or quantised while they are loaded.
struct MemoryPlan {
    /// Matrices and quantised layers: pages of the files, shared and reclaimable.
    int64_t weights_mapped = 0;
    int64_t weights_copied = 0;     ///< vectors that are held in float32
    int64_t weights_quantised = 0;  ///< layers that are quantised while they are loaded
    int64_t kv_per_token = 0;       ///< self-attention keys and values
    int64_t kv_per_image =
        0;                ///< cross-attention keys and values of an image of max_num_tiles tiles
    int64_t scratch = 0;  ///< intermediates, at their largest

    /// Memory of the process beside the mapped weights.
    [[nodiscard]] int64_t anonymous(int64_t tokens, int64_t images) const {
        return weights_copied + weights_quantised + tokens * kv_per_token + images * kv_per_image +
               scratch;
    }
};

/// Rows of a forward that are worth being fed together.
constexpr int64_t prefill_rows(Device device) {
    return device == Device::cuda ? 2048 : 512;
}

/// Intermediates at their largest: of the vision tower, of a picture's keys and values, or of a
/// forward of `rows` rows of the text tower. (The rows of a picture lie elsewhere.)
int64_t scratch_bytes(const ModelConfig& config, Device device, int64_t rows);

/// Errors: as CheckpointWeights::quantised_layers and QuantisationPlan::check_can_become.
/// `kv_dtype`: what keys and values are kept as; none: as a model without options keeps them.
/// `quantising`: what becomes of plain layers.
MemoryPlan plan_memory(const ModelConfig& config, const CheckpointWeights& weights, int64_t context,
                       std::optional<DType> kv_dtype = std::nullopt,
                       const QuantisationPlan& quantising = {});

}  // namespace mllama
