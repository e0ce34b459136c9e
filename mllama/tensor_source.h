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

    /// The same tensors of a size and a type alone (Tensor::outline), or as they are where that costs
    /// nothing: nobody reads their elements. A source with a `weight` of its own has an outline of it.
    [[nodiscard]] virtual Tensor outline(const std::string& name,
                                         const std::vector<int64_t>& shape) const {
        return tensor(name, shape);
    }
    [[nodiscard]] virtual Weight weight_outline(const std::string& module, int64_t out_features,
                                                int64_t in_features) const {
        return outline(module + ".weight", {out_features, in_features});
    }
    /// Whether elements may be read.
    [[nodiscard]] virtual bool has_elements() const { return true; }

    /// The weight that was given of a layer has been copied: memory behind it may go.
    virtual void let_go(const std::string& /*module*/) const {}
};

/// The outlines of another source, which must outlive this: how large a model will be is known without
/// reading, converting or quantising anything.
class OutlineSource : public TensorSource {
  public:
    explicit OutlineSource(const TensorSource& source) : source_(source) {}

    [[nodiscard]] Tensor tensor(const std::string& name,
                                const std::vector<int64_t>& shape) const override {
        return source_.outline(name, shape);
    }
    [[nodiscard]] Weight weight(const std::string& module, int64_t out_features,
                                int64_t in_features) const override {
        return source_.weight_outline(module, out_features, in_features);
    }
    [[nodiscard]] bool has_elements() const override { return false; }

  private:
    const TensorSource& source_;
};

}  // namespace mllama
