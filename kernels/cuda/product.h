// The matrix product of many rows, which the vendor's library computes.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace mllama::cuda {

/// out = scale * x w^T + keep * out + bias (keep 0: out is not read).  x (m, k), rows x_stride
/// apart; w (n, k), rows w_stride apart, both of `dtype` (f32, bf16); out (m, n) f32, rows
/// out_stride apart; bias (n) f32, aligned to 16 bytes, or none. Sums in float32, factors of float32
/// not rounded. cuBLASLt; plain loops in tests.
void product(const void* x, int64_t x_stride, const void* w, int64_t w_stride, DType dtype,
             int64_t m, int64_t n, int64_t k, float scale, float keep, const float* bias,
             float* out, int64_t out_stride);

/// The same for whole numbers: x, w of i8, out (m, n) i32 = x w^T. k and the strides are multiples
/// of 16.
void product_int8(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t w_stride, int64_t m,
                  int64_t n, int64_t k, int32_t* out, int64_t out_stride);

/// Takes the memory that the library works in, unless it is there; else the first product does.
void take_product_memory();

}  // namespace mllama::cuda
