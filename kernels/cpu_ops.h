// The CPU's operations, whole: blocking and threads over the leaves of cpu.h. Raw pointers and sizes; the caller
// (tensor/ops) has checked the shapes. Sums are accumulated in float32.
//
// Determinism. Every output element is computed by one fixed sequence of operations that depends only on its own row and on the
// weights: never on how many other rows there are, on how rows are split over calls, or on the number of threads.
// The results are the same bit for bit. (Different instruction-set tables do differ, within rounding.)
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "kernels/coding.h"
#include "kernels/dtype.h"
#include "kernels/kv_layout.h"

namespace mllama::cpu {

/// What the factors of products are rounded to. f32: not at all; bf16: both are bfloat16; sums are
/// float32 in either case. int8 (linear layers with weights in int8 or int4): the weights are the
/// integers that they are stored as, and every row of x is rounded to integers of 8 bits with a
/// scale of its own (int8), or one for each 128 columns (int4); see reference::quantise.
enum class Compute { f32, bf16, int8 };

/// A row whose largest magnitude is below this is taken as zeros when it is rounded to integers.
inline constexpr float smallest_quantised = 0x1p-100f;

/// gelu is the erf form, gelu_tanh its tanh approximation, quick_gelu x * sigmoid(1.702 x).
enum class Activation { none, gelu, gelu_tanh, quick_gelu, silu, relu };

/// A matrix as it lies in memory. Plain ones are f32, bf16 or f16, rows contiguous and `stride`
/// elements apart; coded ones lie as `Coding` says, without gaps.
struct Matrix {
    const void* data = nullptr;
    DType dtype = DType::f32;  ///< of the elements of a plain matrix
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t stride = 0;
    Coding coding = Coding::plain;
    Groups groups{};
};

/// Whether linear multiplies integers: Compute::int8, and weights in int8 with a scale a row, or in
/// int4 with groups of 32, 64, a multiple of 128 neighbouring columns or a whole row. All others
/// are decoded, and multiplied as bfloat16.
bool multiplies_integers(const Matrix& w, Compute compute);

/// What happens to each row of a product before it is stored: residual + scale * activation(product + bias).
struct Epilogue {
    const float* bias = nullptr;  ///< (out_features), or none
    Activation activation = Activation::none;
    float scale = 1.0f;
    const float* residual =
        nullptr;  ///< (rows, out_features), rows out_stride apart; may be the output itself; or none
};

/// out = epilogue(x w^T).  x (rows, in_features), rows x_stride apart; w (out_features, in_features);
/// out (rows, out_features), rows out_stride apart; out must not overlap x.
void linear(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
            const Epilogue& epilogue, Compute compute, float* out, int64_t out_stride);

/// Keys [begin, end).
struct KeyRange {
    int64_t begin = 0;
    int64_t end = 0;
};

/// A mask as a rule: which keys each query sees. Never an array of queries x keys. Either all keys,
/// or (`causal_from`) query i sees the keys [0, causal_from + i], or (`first`) sorted disjoint
/// ranges: query i sees ranges[first[i]] ... ranges[first[i + 1] - 1].
struct Visibility {
    const int64_t* first = nullptr;  ///< (queries + 1), or none
    const KeyRange* ranges = nullptr;
    int64_t causal_from = -1;  ///< -1: not causal
};

/// softmax(scale q k^T + key_bias, over the visible keys) v, grouped heads: query head h uses key
/// head h / (heads / kv_heads).
struct Attention {
    const float* q = nullptr;     ///< (queries, heads, head_dim), rows q_stride elements apart
    const void* k = nullptr;      ///< keys in blocks, see kv_layout.h
    const void* v = nullptr;      ///< values in blocks; finite at every key, seen or not
    float* out = nullptr;         ///< (queries, heads, head_dim), rows out_stride elements apart
    DType kv_dtype = DType::f32;  ///< f32, bf16, f16 or i8
    const float* k_scales = nullptr;  ///< of i8, in blocks; else none
    const float* v_scales = nullptr;
    int64_t queries = 0, keys = 0, heads = 0, kv_heads = 0, head_dim = 0;
    int64_t q_stride = 0, out_stride = 0;
    float scale = 1.0f;               ///< above 0
    const float* key_bias = nullptr;  ///< (keys) added to every query's logits, or none
    Visibility visible;

    [[nodiscard]] KvLayout layout() const { return {kv_heads, head_dim, kv_dtype}; }
};

/// Blockwise, with online softmax: the (queries, keys) scores are never whole in memory, and blocks
/// of keys that no query of a block sees are not computed. A query that sees no key gets zeros; a
/// logit of -inf is a key not seen.
void attention(const Attention& args, Compute compute);

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

/// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight.  x, out (rows, width), may be the same; weight (width) of weight_dtype.
void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, float* out);

/// out[r] = (x[r] - mean) / sqrt(variance + eps) * weight + bias.  Shapes as rms_norm; bias of weight_dtype too.
void layer_norm(const float* x, int64_t rows, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, float* out);

/// Rotates pairs (x[i], x[i + head_dim/2]) of every head by the angle of the row (RoFormer, in the half-split layout):
/// x (rows, heads, head_dim), rows x_stride apart, in place; cos, sin (rows, head_dim / 2).
void rope(float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t x_stride,
          const float* cos, const float* sin);

/// out[r, i] = activation(gate[r, i]) * up[r, i]; rows of gate and up are in_stride apart (they may be the halves of one matrix), of
/// out out_stride apart; out may be gate.
void gated(const float* gate, const float* up, int64_t rows, int64_t width, int64_t in_stride,
           Activation activation, float* out, int64_t out_stride);

/// x = activation(x) over n elements, in place.
void activate(float* x, int64_t n, Activation activation);

/// y += scale * x over n elements; x of x_dtype (f32, bf16, f16).
void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n);

/// x[r] *= factor[r]: x (rows, width), factor (rows). A factor of 0 gives 0 even where x is not finite.
void scale_rows(float* x, int64_t rows, int64_t width, const float* factor);

/// out[i] = table[ids[i]] as f32: table (entries, width) of table_dtype, ids (n) all within [0, entries), out (n, width).
void embedding(const int64_t* ids, int64_t n, const void* table, DType table_dtype, int64_t width,
               float* out);

/// Converts n elements between f32, bf16 and f16 (rounding to nearest even); from == to copies.
void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n);

/// Sets the number of threads that operations use (at least 1; smaller numbers count as 1).
/// Default: usable_cores() of processors.h.
void set_threads(int threads);
int threads();

/// Runs body(i) for i in [0, n), on all threads, in no order. Inside of another loop the calling
/// thread runs all of them.
void parallel_for(int64_t n, const std::function<void(int64_t)>& body);

/// The table in use: "portable", "avx2", "avx512" (each as its source file says; with "+bf16" where the processor has it).
/// The first use chooses; MLLAMA_ISA=portable|avx2|avx512 overrides. Throws Error for an unknown or unsupported name.
std::string_view isa_name();

}  // namespace mllama::cpu
