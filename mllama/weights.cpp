#include "mllama/weights.h"

#include <cmath>

namespace mllama {

Tensor WeightLoader::converted(const Tensor& tensor, DType dtype) const {
    if (source_.has_elements() || tensor.dtype() == dtype) return ops::to_dtype(tensor, dtype);
    return Tensor::outline(tensor.shape(), dtype);
}

Tensor WeightLoader::matrix(const std::string& name, const std::vector<int64_t>& shape) const {
    Tensor weight = source_.tensor(name, shape);
    if (type_ == WeightType::bf16) return converted(weight, DType::bf16);
    return weight;
}

Tensor WeightLoader::vector(const std::string& name, const std::vector<int64_t>& shape) const {
    return converted(source_.tensor(name, shape), DType::f32);
}

float WeightLoader::tanh_gate(const std::string& name) const {
    const Tensor gate = vector(name, {1});
    return source_.has_elements() ? std::tanh(gate.data<float>()[0]) : 0.0f;
}

Compute WeightLoader::compute(const Weight& weight) const {
    if (type_ == WeightType::f32) return Compute::f32;
    switch (weight.coding) {
        case Coding::plain:
            return weight.data.dtype() == DType::bf16 ? Compute::bf16 : Compute::f32;
        case Coding::int8:
        case Coding::int4: {
            const bool integers = type_ != WeightType::bf16 && !weight.weight_only;
            return integers ? Compute::int8 : Compute::bf16;
        }
        default:
            return Compute::bf16;
    }
}

Linear WeightLoader::linear(const std::string& name, int64_t out_features,
                            int64_t in_features) const {
    Linear layer;
    layer.weight = source_.weight(name, out_features, in_features);
    if (layer.weight.coding == Coding::plain && type_ == WeightType::bf16)
        layer.weight = converted(layer.weight.data, DType::bf16);
    layer.compute = compute(layer.weight);
    if (statistics_) layer.statistic = statistics_(name);
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
