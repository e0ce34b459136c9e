// What happens to the elements of a product before they are stored.
#pragma once

#include "kernels/arguments.h"
#include "kernels/cuda/activation.h"

namespace mllama::cuda {

/// Stores residual + scale * activation(sum + bias) as out[row, column].
__device__ inline void store_result(const Epilogue& epilogue, float sum, int64_t row,
                                    int64_t column, float* out, int64_t out_stride) {
    const int64_t at = row * out_stride + column;
    if (epilogue.bias != nullptr) sum += epilogue.bias[column];
    float result = epilogue.scale * activation(sum, epilogue.activation);
    if (epilogue.residual != nullptr) result += epilogue.residual[at];
    out[at] = result;
}

}  // namespace mllama::cuda
