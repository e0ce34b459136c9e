// What happens to the elements of a product before they are stored.
#pragma once

#include "kernels/arguments.h"
#include "kernels/cuda/activation.h"

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

}  // namespace mllama::cuda
