// What happens to the elements of a product before they are stored.
#pragma once

#include "kernels/arguments.h"
#include "kernels/cuda/activation.h"
#include "kernels/cuda/four.h"

namespace mllama::cuda {

/// residual + scale * activation(sum + bias), for out[row, column].
__device__ inline float result_of(const Epilogue& epilogue, float sum, int64_t row, int64_t column,
                                  int64_t out_stride) {
    if (epilogue.bias != nullptr) sum += epilogue.bias[column];
    const float result = epilogue.scale * activation(sum, epilogue.activation);
    if (epilogue.residual == nullptr) return result;
    return epilogue.residual[row * out_stride + column] + result;
}

/// The same, stored.
__device__ inline void store_result(const Epilogue& epilogue, float sum, int64_t row,
                                    int64_t column, float* out, int64_t out_stride) {
    out[row * out_stride + column] = result_of(epilogue, sum, row, column, out_stride);
}

/// The same of four neighbours, in place; row: where the row of the residual begins.
template <bool vectors>
__device__ inline void finish(const Epilogue& epilogue, int64_t row, int64_t column, int64_t cols,
                              Four& x) {
    if (epilogue.bias != nullptr) {
        const Four bias = load_four<vectors>(epilogue.bias, column, cols);
        for (int j = 0; j < four; ++j) x.at[j] += bias.at[j];
    }
    for (float& value : x.at) value = epilogue.scale * activation(value, epilogue.activation);
    if (epilogue.residual == nullptr) return;
    const Four residual = load_four<vectors>(epilogue.residual + row, column, cols);
    for (int j = 0; j < four; ++j) x.at[j] = residual.at[j] + x.at[j];
}

}  // namespace mllama::cuda
