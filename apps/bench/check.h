// Nothing is timed that has not first been compared with the reference: the operations at the sizes
// of the model, on a sample of their outputs, and the whole of both towers at small sizes.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "mllama/model.h"

namespace mllama {

/// The largest difference, in units of the root mean square of what is expected. Throws Error that
/// names `what` if it is above `tolerance`, or anything is not a number.
double check_close(const std::string& what, std::span<const float> found,
                   std::span<const float> expected, double tolerance);

/// What the operations are computed by; a test may put something wrong in their places.
struct CheckedPaths {
    using LinearPath = std::function<void(const Tensor& x, const Weight& w, Compute, Tensor& out)>;
    using AttentionPath = std::function<void(const Tensor& q, const KeysValues& kv,
                                             int64_t head_dim, Visibility, Compute, Tensor& out)>;
    LinearPath linear;
    AttentionPath attention;

    /// tensor/ops, on that device.
    static CheckedPaths ops(Device device = Device::cpu);
};

/// One comparison that held.
struct Checked {
    std::string what;
    double largest_error = 0;  ///< see check_close
    double tolerance = 0;
};

/// Products with matrices of all shapes of the model, of 1, 8 and 67 rows, their weights held and
/// computed with as `options` say; attention of a prompt, of a token behind many, and of pictures.
/// `stored`: the type of the weights before that. `progress` is told the names of the steps. Throws
/// Error at the first that is wrong.
[[nodiscard]] std::vector<Checked> check_operations(
    const ModelConfig& config, DType stored, const ModelOptions& options, const CheckedPaths& paths,
    const std::function<void(const std::string&)>& progress);

/// The model's own text layers where its weights are coded: one of each type and shape.
[[nodiscard]] std::vector<Checked> check_layers(const Model& model);

/// Both towers of a model that is like `config` in everything but its sizes: pictures of one and of
/// all tiles, a prompt in chunks, tokens decoded one by one beside another text.
[[nodiscard]] std::vector<Checked> check_towers(const ModelConfig& config, DType stored,
                                                const ModelOptions& options);

/// The small model of `check_towers`: heads as wide as before and as many to a key head, but few of
/// them, few layers of each kind, small pictures.
[[nodiscard]] ModelConfig small_config(const ModelConfig& config);

}  // namespace mllama
