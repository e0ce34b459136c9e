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

/// The largest of what will be timed: nothing beyond the sizes that were compared is.
struct TimedSizes {
    int64_t text_rows = 0;     ///< rows of a product of the text tower
    int64_t picture_rows = 0;  ///< of the vision tower: positions of the largest picture
    int64_t prompt = 0;        ///< keys that the last rows of a prompt see
    int64_t context = 0;       ///< keys that a token sees
};

/// Products with matrices of all shapes of the model, of 1, 8 and 67 rows, their weights held and
/// computed with as `options` say, and with the first rows of those matrices, of as many rows as are
/// timed; attention of a prompt, of a token behind many, and of pictures, and of a few heads at the
/// lengths that are timed.
/// `stored`: the type of the weights before that. `progress` is told the names of the steps. Throws
/// Error at the first that is wrong.
[[nodiscard]] std::vector<Checked> check_operations(
    const ModelConfig& config, DType stored, const ModelOptions& options, const TimedSizes& timed,
    const CheckedPaths& paths, const std::function<void(const std::string&)>& progress);

/// The model's own text layers where its weights are coded: one of each type and shape.
[[nodiscard]] std::vector<Checked> check_layers(const Model& model);

/// Throws Error unless `found` is the most probable of these logits: see TextModel::most_probable.
[[nodiscard]] Checked check_most_probable(const std::string& what, std::span<const float> logits,
                                          int64_t found);

/// What decoding is timed with against Model::forward: the most probable tokens behind two texts of
/// one token and of two, with this very model.
[[nodiscard]] std::vector<Checked> check_decoding(const Model& model);

/// Both towers of a model that is like `config` in everything but its sizes: pictures of one and of
/// all tiles, a prompt in chunks, tokens decoded one by one beside another text. Each tower is held
/// to what its own type of products allows.
[[nodiscard]] std::vector<Checked> check_towers(const ModelConfig& config, DType stored,
                                                const ModelOptions& options);

/// The small model of `check_towers`: heads as wide as before and as many to a key head, but few of
/// them, few layers of each kind, small pictures.
[[nodiscard]] ModelConfig small_config(const ModelConfig& config);

}  // namespace mllama
