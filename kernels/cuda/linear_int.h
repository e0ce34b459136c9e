// Linear layers whose weights are multiplied as the integers that they are stored as.
#pragma once

#include <cstdint>

#include "kernels/arguments.h"

namespace mllama::cuda {

/// cuda::linear where multiplies_integers(w, Compute::int8).
void linear_int(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
                const Epilogue& epilogue, float* out, int64_t out_stride);

}  // namespace mllama::cuda
