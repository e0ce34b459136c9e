#include "mllama/weights.h"

#include <cmath>

namespace mllama {

Checkpoint open_checkpoint(const std::string& checkpoint_dir) {
    // In memory, transformers names the same tensors differently; some files are saved that way.
    return Checkpoint::open(checkpoint_dir,
                            {{"model.language_model.", "language_model.model."},
                             {"lm_head.", "language_model.lm_head."},
                             {"model.vision_model.", "vision_model."},
                             {"model.multi_modal_projector.", "multi_modal_projector."}});
}

WeightLoader::WeightLoader(const Checkpoint& checkpoint, WeightType type)
    : WeightLoader(
          [&checkpoint](const std::string& name, const std::vector<int64_t>& shape) {
              return checkpoint.get(name, shape);
          },
          type) {}

Tensor WeightLoader::matrix(const std::string& name, const std::vector<int64_t>& shape) const {
    Tensor weight = source_(name, shape);
    if (type_ == WeightType::bf16) return ops::to_dtype(weight, DType::bf16);
    return weight;
}

Tensor WeightLoader::vector(const std::string& name, const std::vector<int64_t>& shape) const {
    return ops::to_dtype(source_(name, shape), DType::f32);
}

float WeightLoader::tanh_gate(const std::string& name) const {
    return std::tanh(vector(name, {1}).data<float>()[0]);
}

Compute WeightLoader::compute(const Weight& weight) const {
    if (type_ == WeightType::f32) return Compute::f32;
    switch (weight.coding) {
        case Coding::plain:
            return weight.data.dtype() == DType::bf16 ? Compute::bf16 : Compute::f32;
        case Coding::int8:
        case Coding::int4:
            return type_ == WeightType::bf16 ? Compute::bf16 : Compute::int8;
        default:
            return Compute::bf16;
    }
}

Linear WeightLoader::linear(const std::string& name, int64_t out_features,
                            int64_t in_features) const {
    Linear layer;
    layer.weight = matrix(name + ".weight", {out_features, in_features});
    layer.compute = compute(layer.weight);
    return layer;
}

Linear WeightLoader::linear_with_bias(const std::string& name, int64_t out_features,
                                      int64_t in_features) const {
    Linear layer = linear(name, out_features, in_features);
    layer.bias = vector(name + ".bias", {out_features});
    return layer;
}

RmsNorm WeightLoader::rms_norm(const std::string& name, int64_t width, float eps) const {
    return {vector(name + ".weight", {width}), eps};
}

LayerNorm WeightLoader::layer_norm(const std::string& name, int64_t width, float eps) const {
    return {vector(name + ".weight", {width}), vector(name + ".bias", {width}), eps};
}

}  // namespace mllama
