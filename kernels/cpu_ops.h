// The CPU's operations, whole: blocking and threads over the leaves of cpu.h. Raw pointers and sizes; the caller
// (tensor/ops) has checked the shapes. Sums are accumulated in float32; x, and arrays of Floats, are f32.
//
// Determinism. Every output element is computed by one fixed sequence of operations that depends only on its own row and on the
// weights: never on how many other rows there are, on how rows are split over calls, or on the number of threads.
// The results are the same bit for bit. (Different instruction-set tables do differ, within rounding.)
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "kernels/arguments.h"
#include "kernels/dtype.h"
#include "kernels/kv_layout.h"

namespace mllama::cpu {

/// Linear layers of the same rows, which are rounded and packed once for neighbours that take them in
/// the same form. x (rows, in_features), plain; every w has in_features columns.
void linear(const Matrix& x, std::span<const Projection> projections);

/// Of several sequences; no call reads what another writes. Blockwise, with online softmax: the
/// (queries, keys) scores are never whole in memory, and blocks of keys that no query of a block sees
/// are not computed. A query that sees no key gets zeros; a logit of -inf is a key not seen.
void attention(std::span<const Attention> calls, Compute compute);

/// The probabilities themselves, for those who want to look at them: weights (heads, queries,
/// keys); 0 where not visible. Plain: `out` and `v` of args are not used.
void attention_weights(const Attention& args, float* weights);

/// A projection's rows as attention reads them: the keys (or values) begin, begin + 1, ... of a
/// sequence. x (rows, kv_heads, head_dim) f32, rows x_stride apart; keys, values,
/// scales (of i8; else none): the first block.
void store_keys(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                int64_t begin, void* keys, float* scales);
void store_values(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                  int64_t begin, void* values, float* scales);

/// Both, of several sequences.
void store_keys_values(std::span<const NewKeysValues> sequences);

/// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight.  x, out (rows, width), may be the same; weight (width) of weight_dtype.
void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, Floats out);

/// out[r] = (x[r] - mean) / sqrt(variance + eps) * weight + bias.  Shapes as rms_norm; bias of weight_dtype too.
void layer_norm(const float* x, int64_t rows, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, Floats out);

/// cos, sin (rows, pairs) of the angles inverse_frequencies[i] * positions[row], rounded to float32
/// as the reference does: positions (rows), inverse_frequencies (pairs).
void rope_angles(const int64_t* positions, int64_t rows, const float* inverse_frequencies,
                 int64_t pairs, float* cos, float* sin);

/// Rotates pairs (x[i], x[i + head_dim/2]) of every head by the angle of the row (RoFormer, in the half-split layout):
/// x (rows, heads, head_dim), rows x_stride apart, in place; cos, sin (rows, head_dim / 2).
void rope(float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t x_stride,
          const float* cos, const float* sin);

/// out[r, i] = activation(gate[r, i]) * up[r, i]; rows of gate and up are in_stride apart (they may be the halves of one matrix), of
/// out out_stride apart; out may be gate.
void gated(const float* gate, const float* up, int64_t rows, int64_t width, int64_t in_stride,
           Activation activation, Floats out, int64_t out_stride);

/// x = activation(x) over n elements, in place.
void activate(float* x, int64_t n, Activation activation);

/// y += scale * x over n elements; x of x_dtype (f32, bf16, f16).
void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n);

/// y[r] += scale * x for every row r: y (rows, width), x (width) of x_dtype (f32, bf16, f16).
void add_to_rows(float* y, int64_t rows, int64_t width, const void* x, DType x_dtype, float scale);

/// x[r] *= factor[r]: x (rows, width), factor (rows). A factor of 0 gives 0 even where x is not finite.
void scale_rows(float* x, int64_t rows, int64_t width, const float* factor);

/// out[i] = table[ids[i]] as f32: table (entries, width) of table_dtype, ids (n) all within [0, entries), out (n, width).
void embedding(const int64_t* ids, int64_t n, const void* table, DType table_dtype, int64_t width,
               float* out);

/// The first index of the largest of each row, for the next token: x (rows, width) -> index (rows);
/// -1 if a row holds a NaN, or nothing finite.
void argmax(const float* x, int64_t rows, int64_t width, int64_t* index);

/// The k largest numbers of each row, in order: x (rows, width) -> values, index (rows, k): the first index first of
/// equal ones; a NaN counts as larger than all else. k at most width and most_top_k.
void top_k(const float* x, int64_t rows, int64_t width, int64_t k, float* values, int64_t* index);

/// The pixels of each patch, one patch a row, as a convolution with stride = kernel sees them: pixels
/// (channels, side, side) -> out ((side / patch)^2, channels * patch * patch). What does not fill a patch is left out.
void unfold_patches(const float* pixels, int64_t channels, int64_t side, int64_t patch, float* out);

/// out[r, i * count + k] = states[k][r, i]: `count` states (rows, width), out (rows, width * count),
/// rows out_stride apart.
void interleave(const float* const* states, int64_t count, int64_t rows, int64_t width, float* out,
                int64_t out_stride);

/// Converts n elements between f32, bf16 and f16 (rounding to nearest even); from == to copies.
void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n);

/// Sets the number of threads that operations use (at least 1; smaller numbers count as 1).
/// Default: usable_cores() of processors.h. Not while an operation runs: it has memory for as many
/// threads as there were when it began.
void set_threads(int threads);
int threads();

/// Runs body(i) for i in [0, n), on all threads, in no order. Inside of another loop the calling
/// thread runs all of them.
void parallel_for(int64_t n, const std::function<void(int64_t)>& body);

/// The table in use: "portable", "avx2", "avx512" (each as its source file says; with "+bf16" where the processor has it).
/// The first use chooses; MLLAMA_ISA=portable|avx2|avx512 overrides. Throws Error for an unknown or unsupported name.
std::string_view isa_name();

}  // namespace mllama::cpu
