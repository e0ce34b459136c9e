// Internal to kernels/: see cpu_linear_int.cpp.
#pragma once

#include "kernels/cpu_ops.h"

namespace mllama::cpu {

/// linear with integers: multiplies_integers(w, Compute::int8).
void linear_int(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
                const Epilogue& epilogue, float* out, int64_t out_stride);

}  // namespace mllama::cpu
