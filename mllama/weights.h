// Making the modules of the published model out of its weights.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "mllama/tensor_source.h"
#include "nn/linear.h"
#include "nn/mlp.h"
#include "nn/norm.h"

namespace mllama {

/// How weights are held and computed with: `--dtype`.
enum class WeightType {
    /// Plain weights: bf16 products where the checkpoint is bf16, float32 otherwise. Quantised ones:
    /// products of integers where the coding has them, bf16 products of what they decode to
    /// otherwise.
    as_stored,
    f32,   ///< float32 throughout; all weights stay mapped and are widened as they are read
    bf16,  ///< bf16 products; plain weights of other types are converted when they are loaded
    /// As stored, but plain linear layers of the towers are quantised when they are loaded: see
    /// quantising_source.h.
    int8,
    int4,
};

/// Reads modules by the names of the published model. Each throws Error naming file, tensor,
/// expected and found.
class WeightLoader {
  public:
    /// The source must outlive the loader; the modules need neither.
    WeightLoader(const TensorSource& source, WeightType type, InputStatistics statistics = {})
        : source_(source), type_(type), statistics_(std::move(statistics)) {}

    /// Loads from the same source.
    [[nodiscard]] WeightLoader with_type(WeightType type) const {
        return {source_, type, statistics_};
    }

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
    [[nodiscard]] Tensor converted(const Tensor& tensor, DType dtype) const;

    const TensorSource& source_;
    WeightType type_;
    InputStatistics statistics_;
};

}  // namespace mllama
