// Where the weights of a model come from: a checkpoint, or whatever else makes tensors by name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/weight.h"

namespace mllama {

/// Gives tensors by the names of the published model (those of the files: language_model.model.*,
/// language_model.lm_head, vision_model.*, multi_modal_projector). Every function throws Error if
/// there is nothing of that name, or it is not of that shape.
class TensorSource {
  public:
    TensorSource() = default;
    TensorSource(const TensorSource&) = default;
    TensorSource& operator=(const TensorSource&) = default;
    virtual ~TensorSource() = default;

    /// A tensor that is never quantised, f32, bf16 or f16: norms, biases, embeddings, gates.
    [[nodiscard]] virtual Tensor tensor(const std::string& name,
                                        const std::vector<int64_t>& shape) const = 0;

    /// The weight (out_features, in_features) of the linear layer `module`
    /// ("language_model.lm_head"), plain or coded. Here: the plain tensor `module`.weight.
    [[nodiscard]] virtual Weight weight(const std::string& module, int64_t out_features,
                                        int64_t in_features) const {
        return tensor(module + ".weight", {out_features, in_features});
    }

    /// The weight that was given of a layer has been copied: memory behind it may go.
    virtual void let_go(const std::string& /*module*/) const {}
};

}  // namespace mllama
