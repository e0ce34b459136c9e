// Every operation as the plainest loop, accumulating in double: the specification of cpu_ops.h and
// the oracle of its tests. Shapes and meanings are those of cpu_ops.h; nothing here is fast and
// nothing is parallel.
#pragma once

#include <cstdint>

#include "kernels/arguments.h"
#include "kernels/dtype.h"

namespace mllama::reference {

/// Element i of an array of f32, bf16 or f16.
double element(const void* data, DType dtype, int64_t i);

/// w[row, col] of a plain or coded matrix.
double weight(const Matrix& w, int64_t row, int64_t col);

/// The activations as functions of one number.
double activation(double x, Activation kind);

/// What a factor of a product is rounded to: itself, or the nearest bfloat16.
double factor(double x, Compute compute);

/// x (n) to whole numbers of at most 127 with the returned scale: number = x * (127 / largest |x|)
/// rounded to nearest, ties to even, in float32; scale = largest / 127. All 0 with a scale of 0 if
/// the largest is below smallest_quantised, of NaN if an x is not finite.
float quantise(const float* x, int64_t n, int8_t* numbers);

/// out[r, n] = residual[r, n] + scale * activation(sum_k x[r, k] w[n, k] + bias[n]). With
/// Compute::int8 and w in int8 or int4 (by rows), x is quantised: whole rows, or 128 columns at a
/// time; otherwise it is as Compute::bf16.
void linear(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
            const Epilogue& epilogue, Compute compute, float* out, int64_t out_stride);

/// One element of that, without an epilogue: of one row of x, and row n of w.
float linear_element(const float* x, const Matrix& w, int64_t n, Compute compute);

/// out[i, h] = sum_j p[j] v[j, h'] with p = softmax over the visible j of scale * q[i, h] . k[j,
/// h'] + key_bias[j]. With Compute::bf16, q, k and v are rounded; the probabilities are not (an
/// implementation may round them). A logit of -inf is a key not seen.
void attention(const Attention& args, Compute compute, float* out, int64_t out_stride);

/// The p of one head of `attention`: weights (queries, keys).
void attention_weights(const Attention& args, Compute compute, int64_t head, float* weights);

void store_keys(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                int64_t begin, void* keys, float* scales);
void store_values(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                  int64_t begin, void* values, float* scales);
void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, float* out);
void layer_norm(const float* x, int64_t rows, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, float* out);
void rope(float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t x_stride,
          const float* cos, const float* sin);
void gated(const float* gate, const float* up, int64_t rows, int64_t width, int64_t in_stride,
           Activation kind, float* out, int64_t out_stride);
void activate(float* x, int64_t n, Activation kind);
void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n);
void scale_rows(float* x, int64_t rows, int64_t width, const float* factor);
void add_to_rows(float* y, int64_t rows, int64_t width, const void* x, DType x_dtype, float scale);
void rope_angles(const int64_t* positions, int64_t rows, const float* inverse_frequencies,
                 int64_t pairs, float* cos, float* sin);
void unfold_patches(const float* pixels, int64_t channels, int64_t side, int64_t patch, float* out);
void interleave(const float* const* states, int64_t count, int64_t rows, int64_t width, float* out,
                int64_t out_stride);
void embedding(const int64_t* ids, int64_t n, const void* table, DType table_dtype, int64_t width,
               float* out);
void argmax(const float* x, int64_t rows, int64_t width, int64_t* index);
void top_k(const float* x, int64_t rows, int64_t width, int64_t k, float* values, int64_t* index);
void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n);

}  // namespace mllama::reference
