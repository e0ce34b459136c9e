// A linear layer: out = x weight^T + bias.
#pragma once

#include "tensor/ops.h"

namespace mllama {

struct Linear {
    Weight weight;                   ///< (out_features, in_features), as stored
    Tensor bias;                     ///< (out_features) f32, or undefined
    Compute compute = Compute::f32;  ///< what x and weight are rounded to for the products

    [[nodiscard]] int64_t out_features() const { return weight.rows; }
    [[nodiscard]] int64_t in_features() const { return weight.cols; }

    /// x (rows, in_features) -> out (rows, out_features)
    void forward(const Tensor& x, Tensor& out, Activation activation = Activation::none) const {
        ops::linear(x, weight, {.bias = bias, .activation = activation, .residual = {}}, compute,
                    out);
    }

    /// h += scale * (x weight^T + bias): a residual branch that ends here. h (rows, out_features)
    void add_to(Tensor& h, const Tensor& x, float scale = 1.0f) const {
        ops::linear(x, weight, {.bias = bias, .scale = scale, .residual = h}, compute, h);
    }
};

}  // namespace mllama
