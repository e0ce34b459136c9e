// The two normalisations of the towers.
#pragma once

#include "tensor/ops.h"

namespace mllama {

/// y = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019). The text tower's.
struct RmsNorm {
    Tensor weight;  ///< (width)
    float eps = 0;

    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        visit(weight);
    }

    /// x, out (rows, width), may be the same; out: activations, see ops. A tensor (rows, heads * width) viewed as (rows *
    /// heads, width) is normalised head by head.
    void forward(const Tensor& x, Tensor& out) const { ops::rms_norm(x, weight, eps, out); }
};

/// y = (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016). The vision tower's.
struct LayerNorm {
    Tensor weight;  ///< (width)
    Tensor bias;    ///< (width)
    float eps = 0;

    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        visit(weight);
        visit(bias);
    }

    /// x, out (rows, width), may be the same; out: activations, see ops.
    void forward(const Tensor& x, Tensor& out) const { ops::layer_norm(x, weight, bias, eps, out); }
};

}  // namespace mllama
