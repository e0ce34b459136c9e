// Internal to kernels/: see cpu_linear_int.cpp.
#pragma once

#include <span>

#include "kernels/cpu_ops.h"

namespace mllama::cpu {

/// Whether rows of x are rounded and ordered in the same way for both matrices, of which
/// multiplies_integers holds.
bool same_int_layout(const Matrix& a, const Matrix& b);

/// linear with integers: multiplies_integers(w, Compute::int8) and one layout.
void linear_int(const float* x, int64_t rows, int64_t x_stride,
                std::span<const Projection> projections);

}  // namespace mllama::cpu
