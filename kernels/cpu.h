// The table of leaves: what one instruction set has to provide. A leaf works on one row, one tile
// or one panel; all blocking and all threads are in cpu_ops.cpp, written once over this table.
//
//   reference      every operation as the plainest loop: the specification
//   cpu_leaves.h   the leaves, written once over a vector of floats
//   cpu_portable, cpu_avx2, cpu_avx512   what that vector is, and one filled table each
//   cpu_dispatch   chooses a table by what the processor and the operating system support
//
// Everything here is internal to kernels/ and its tests; cpu_ops.h is the public face.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/dtype.h"

namespace mllama::cpu {

/// No table has a tile of more rows of x than this.
inline constexpr int64_t most_tile_rows = 16;

/// The pieces of a matrix product c = x w^T for one Compute. w is cut into panels of at most
/// panel_width rows of w (columns of c), stored k-group by k-group so that the tile reads one
/// contiguous stream:
///
///     panel[k / k_group][column][k % k_group]
///
/// Columns and k are padded with zeros to whole lanes and groups.
/// A row of x keeps its order and is only converted to the panel's element type. Every element of c
/// is one float32 accumulator that goes over k in order, from 0 or from c, whatever the number of
/// rows and columns.
struct Product {
    int64_t tile_rows;     ///< most rows of x that one tile takes
    int64_t panel_width;   ///< most columns of one panel
    int64_t lanes;         ///< a panel of n columns is stored n rounded up to lanes wide
    int64_t k_group;       ///< neighbouring k that one multiply-add instruction sums
    int64_t element_size;  ///< bytes of one packed element

    /// Converts a row of k elements to packed form, padded with zeros to a whole k_group.
    void (*pack_row)(const float* x, int64_t k, void* packed);

    /// Packs n rows (n <= panel_width) of k elements of w, `stride` elements apart, as a panel.
    void (*pack_rows)(const void* w, DType dtype, int64_t stride, int64_t n, int64_t k,
                      void* panel);

    /// Packs the transpose: n columns (n <= panel_width) of k rows of v, rows `stride` elements
    /// apart.
    void (*pack_columns)(const void* v, DType dtype, int64_t stride, int64_t k, int64_t n,
                         void* panel);

    /// c = x panel, or c += x panel.  x (rows, k) packed, rows x_stride elements apart, rows <=
    /// tile_rows; panel of n columns; c (rows, n rounded up to lanes), rows c_stride apart.
    void (*tile)(int64_t rows, int64_t n, int64_t k, const void* x, int64_t x_stride,
                 const void* panel, float* c, int64_t c_stride, bool accumulate);

    /// Most rows that `few_rows` takes; 0: there is none.
    int64_t few_rows_max;

    /// pack_rows and tile (from zero) in one pass over w, bit for bit, without storing the panel:
    /// for few rows of x the time is that of reading w. Same arguments; n = panel_width.
    void (*few_rows)(int64_t rows, int64_t k, const void* x, int64_t x_stride, const void* w,
                     DType dtype, int64_t w_stride, float* c, int64_t c_stride);
};

/// The largest of a row of logits, and the sum of exp(logit - largest).
struct SoftmaxPart {
    float max;
    float sum;
};

/// One row of logits over the keys [first_key, first_key + n).
struct ScoreRow {
    float* scores;  ///< (n) in: q k^T; out: exp(logit - max), 0 where not visible
    int64_t n;
    int64_t first_key;
    float scale;
    const float* key_bias;   ///< (n), of these keys, or none
    const KeyRange* ranges;  ///< sorted, disjoint; in numbers of all keys
    int64_t range_count;
};

struct Table {
    std::string_view name;
    Product f32;   ///< both factors as they are
    Product bf16;  ///< both factors rounded to bfloat16

    /// out[i] = residual[i] + scale * activation(product[i] + bias[i]); bias and residual may be
    /// null; out may be residual.
    void (*epilogue)(const float* product, const float* bias, Activation activation, float scale,
                     const float* residual, float* out, int64_t n);

    /// logits = scale * scores + key_bias, -inf where not visible; then exp(logits - max) in place.
    /// No visible key (or only logits of -inf): max = -inf and sum = 0.
    SoftmaxPart (*softmax_part)(const ScoreRow& row);

    /// y = y * y_factor + x * x_factor over n elements.
    void (*blend)(float* y, float y_factor, const float* x, float x_factor, int64_t n);

    /// One row of each; the shapes and formulas are those of cpu_ops.h.
    void (*rms_norm)(const float* x, int64_t width, const void* weight, DType weight_dtype,
                     float eps, float* out);
    void (*layer_norm)(const float* x, int64_t width, const void* weight, const void* bias,
                       DType weight_dtype, float eps, float* out);
    void (*rope)(float* x, int64_t heads, int64_t head_dim, const float* cos, const float* sin);
    void (*gated)(const float* gate, const float* up, Activation activation, float* out, int64_t n);
    void (*activate)(float* x, int64_t n, Activation activation);
    void (*add_scaled)(float* y, const void* x, DType x_dtype, float scale, int64_t n);
    void (*scale)(float* x, float factor, int64_t n);
    void (*convert)(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n);

    /// x = exp(x), in place: the exponential of the softmax and the activations, alone for its
    /// test.
    void (*exponential)(float* x, int64_t n);
};

/// The tables, or null where this build has none (another architecture). Their code may run only
/// where `supported_tables` lists them.
const Table* portable_table();
const Table* avx2_table();
const Table* avx512_table();
const Table* avx512_bf16_table();

/// The tables that this processor and operating system can run, slowest first: "portable", "avx2",
/// "avx512", "avx512+bf16".
std::vector<const Table*> supported_tables();

/// All names, supported or not: what a test reports as skipped.
std::vector<std::string_view> table_names();

/// The table that MLLAMA_ISA asks for ("avx512" is the best of that kind), or the last supported
/// one if it is null or empty. Throws Error that lists what is possible.
const Table* choose_table(const char* wanted);

/// The table in use: chosen once, at the first call, by the environment variable MLLAMA_ISA.
const Table& table();

/// For tests: makes `table()` answer this one from now on; null: chooses anew.
void use_table(const Table* table);

}  // namespace mllama::cpu
