// What of a model is kept and computed on a GPU, and whether it fits: decided before anything is
// loaded.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kernels/dtype.h"
#include "mllama/config.h"

namespace mllama {

/// Bytes of device memory. Everything is taken when the model is loaded, but for what the driver takes.
struct DevicePlan {
    std::string device;        ///< the GPU's name
    int64_t memory_bytes = 0;  ///< of the GPU
    int64_t free_bytes = 0;    ///< before

    int64_t layers = 0;      ///< text layers on the GPU: the last ones, and lm_head
    int64_t all_layers = 0;  ///< text layers of the model
    int64_t weights = 0;     ///< of those, of the vision tower and of the projector
    int64_t scratch = 0;     ///< intermediates, at their largest
    int64_t picture = 0;     ///< rows of the picture that is being read
    int64_t small = 0;       ///< tables, ids, weights of padding tiles
    int64_t overhead = 0;    ///< what operations and driver take for themselves
    int64_t kv_per_token = 0;
    int64_t kv_per_image = 0;
    /// Of all texts together that there is room for. Each text has whole blocks of 64 tokens; the rows
    /// of its pictures come in such blocks as well.
    int64_t tokens = 0;
    int64_t images = 0;

    /// What is taken at once; the operations' own memory beside it.
    [[nodiscard]] int64_t bytes() const {
        return weights + scratch + picture + small + tokens * kv_per_token + images * kv_per_image;
    }
    /// "19.9 GB of weights, 0.9 GB of intermediates, ...": one line.
    [[nodiscard]] std::string to_string() const;
};

/// All but the weights and what there is room for, with the last `layers` text layers on the GPU.
/// Throws Error if there is no GPU.
DevicePlan begin_device_plan(const ModelConfig& config, DType kv_dtype, int64_t layers);

/// What there is room for beside the weights: `tokens` and `images` are filled in, as many as one
/// text of the model can have, or as fit. Throws Error with figures if it is less than
/// a short text and a picture; `with_layers` makes the plan of fewer layers, weights included: the error
/// tells how many would fit.
void fit_device_plan(const TextConfig& config, DevicePlan& plan,
                     const std::function<DevicePlan(int64_t layers)>& with_layers);

}  // namespace mllama
