// The activations as functions of one number.
#pragma once

#include "kernels/arguments.h"
#include "kernels/cuda/launch.h"

namespace mllama::cuda {

/// reference::activation in float32.
__device__ inline float activation(float x, Activation kind) {
    switch (kind) {
        case Activation::none:
            return x;
        case Activation::gelu:
            return 0.5f * x * erfcf(x * -0.70710678f);
        case Activation::gelu_tanh: {
            // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)
            const float u = 0.79788456f * (x + 0.044715f * x * x * x);
            return x / (1.0f + expf(-2.0f * u));
        }
        case Activation::quick_gelu:
            return x / (1.0f + expf(-1.702f * x));
        case Activation::silu:
            return x / (1.0f + expf(-x));
        case Activation::relu:
            return x < 0.0f ? 0.0f : x;  // a NaN stays
    }
    return x;
}

}  // namespace mllama::cuda
