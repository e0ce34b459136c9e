// Taking the modules of the published model out of a checkpoint.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "io/checkpoint.h"
#include "nn/linear.h"
#include "nn/mlp.h"
#include "nn/norm.h"

namespace mllama {

/// How weights are held and computed with: `--dtype`.
enum class WeightType {
    as_stored,  ///< bf16 products where the checkpoint is bf16, float32 otherwise
    f32,  ///< float32 throughout; bf16 and f16 weights stay mapped and are widened as they are read
    bf16,  ///< bf16 products; weights of other types are converted when they are loaded
};

/// Opens the checkpoint of a directory, with both published styles of tensor names read as the one
/// of the files: language_model.model.*, language_model.lm_head.weight, vision_model.*,
/// multi_modal_projector.*.
Checkpoint open_checkpoint(const std::string& checkpoint_dir);

/// Where weights come from: gives the tensor (f32, bf16 or f16) that the published model has under
/// a name, of this shape; throws Error if there is none.
using TensorSource =
    std::function<Tensor(const std::string& name, const std::vector<int64_t>& shape)>;

/// Reads modules by the names of the published model. Each throws Error naming file, tensor,
/// expected and found.
class WeightLoader {
  public:
    /// The checkpoint must outlive the loader; the modules need neither.
    WeightLoader(const Checkpoint& checkpoint, WeightType type);
    WeightLoader(TensorSource source, WeightType type) : source_(std::move(source)), type_(type) {}

    /// A matrix (rows, cols) as it is to be held.
    [[nodiscard]] Tensor matrix(const std::string& name, const std::vector<int64_t>& shape) const;
    /// Any tensor as float32: norms, biases, embeddings that are added once.
    [[nodiscard]] Tensor vector(const std::string& name, const std::vector<int64_t>& shape) const;
    /// tanh of a gate of shape (1).
    [[nodiscard]] float tanh_gate(const std::string& name) const;

    /// `name`.weight (out_features, in_features)
    [[nodiscard]] Linear linear(const std::string& name, int64_t out_features,
                                int64_t in_features) const;
    /// The same with `name`.bias (out_features).
    [[nodiscard]] Linear linear_with_bias(const std::string& name, int64_t out_features,
                                          int64_t in_features) const;
    [[nodiscard]] RmsNorm rms_norm(const std::string& name, int64_t width, float eps) const;
    [[nodiscard]] LayerNorm layer_norm(const std::string& name, int64_t width, float eps) const;

    /// The type that products with `weight` are computed in.
    [[nodiscard]] Compute compute(const Weight& weight) const;

  private:
    TensorSource source_;
    WeightType type_;
};

}  // namespace mllama
