// Linear layers whose weights are multiplied as the integers that they are stored as.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/arguments.h"

namespace mllama::cuda {

/// Whether rows of x are rounded and ordered in the same way for both, of which multiplies_integers
/// holds.
bool same_int_layout(const Matrix& a, const Matrix& b);

/// cuda::linear where multiplies_integers(w, Compute::int8), with one layout.
void linear_int(const float* x, int64_t rows, int64_t x_stride, std::span<const Projection> layers);

}  // namespace mllama::cuda
