// The table of leaves: what one instruction set has to provide. A leaf works on one row, one tile
// or one panel; all blocking and all threads are in cpu_linear, cpu_attention and cpu_rows, written
// once over this table.
//
//   reference      every operation as the plainest loop: the specification
//   cpu_leaves.h   the leaves, written once over a vector of floats
//   cpu_portable, cpu_avx2, cpu_avx512   what that vector is, and one filled table each
//   cpu_dispatch   chooses a table by what the processor and the operating system support
//
// Everything here is internal to kernels/ and its tests; cpu_ops.h is the public face.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/dtype.h"
#include "kernels/kv_layout.h"

namespace mllama::cpu {

/// No table has a tile of more rows of x than this.
inline constexpr int64_t most_tile_rows = 16;

/// What a softmax over one chunk of keys leaves: the largest logit in units of ln 2 (so that
/// exp(logit) = 2^max), and the sum of 2^(x - max).
struct SoftmaxPart {
    float max;
    float sum;
};

/// One row of scores over the keys [first_key, first_key + n).
struct ScoreRow {
    float* scores;  ///< (n, with room for whole lanes) q k^T; overwritten
    int64_t n;
    int64_t first_key;
    float scale;             ///< above 0
    const float* key_bias;   ///< (n), of these keys, or none
    const KeyRange* ranges;  ///< sorted, disjoint; in numbers of all keys
    int64_t range_count;
    const float* key_scales;    ///< (n) of int8 keys, or none: factors of the scores
    const float* value_scales;  ///< (n) of int8 values, or none: factors of the packed results
};

/// A matrix in units (kv_layout.h): rows of k / unit units, a column for each.
struct UnitMatrix {
    const void* units;
    DType dtype;
    int64_t stride;  ///< units from one row to the next
};

/// The pieces of a matrix product c = x w^T for one Compute. w is cut into panels of at most
/// panel_width rows of w (columns of c), stored group by group (k_group neighbouring k) so that the
/// tile reads one contiguous stream:
///
///     panel[group][column][k % k_group]
///
/// Columns are padded with zeros to whole lanes. A row of x is converted to the panel's element
/// type, and its groups stand in the same order as the panel's.
///
/// There are two orders of sums, each with a way for few rows that gives the same bits:
///   in order   one accumulator that goes over k in order: pack_columns, tile; few_columns.
///              Attention's, whose keys and values lie in units (kv_layout.h).
///   four sums  of which the j-th takes the groups j, j + 4, j + 8 ..., added up from j = 0: an
///              order in which rows of w can be multiplied as they lie, without turning vectors
///              into columns. pack_rows and pack_row write the groups in that order, and tile makes
///              a pass for each sum; dot_rows reads the rows of w. Linear layers', which must
///              decode at the speed of memory.
/// Either way the order depends on k and k_block alone, never on how many rows and columns there
/// are.
struct Product {
    int64_t tile_rows;     ///< most rows of x that one tile takes
    int64_t panel_width;   ///< most columns of one panel
    int64_t lanes;         ///< a panel of n columns is stored n rounded up to lanes wide
    int64_t k_group;       ///< neighbouring k that one multiply-add instruction sums
    int64_t element_size;  ///< bytes of one packed element

    /// Elements of a whole vector of groups: rows of x are padded with zeros to a multiple of it,
    /// and so are panels in four sums.
    [[nodiscard]] int64_t step() const { return lanes * k_group; }
    static constexpr int64_t sums = 4;

    /// Converts a row of k elements to packed form.
    void (*pack_row)(const float* x, int64_t k, void* packed, bool by_sum);

    /// Packs n rows (n <= panel_width) of k elements of w, `stride` elements apart, as a panel.
    void (*pack_rows)(const void* w, DType dtype, int64_t stride, int64_t n, int64_t k, void* panel,
                      bool by_sum);

    /// Packs a panel, in order, of n columns (n <= panel_width) of k rows of w. Whole vectors of
    /// units are read.
    void (*pack_columns)(const UnitMatrix& w, int64_t k, int64_t n, void* panel);

    /// c = x panel, or c += x panel: in each of the passes over k elements of the packed x and
    /// panel, accumulators start from 0 and are added to c at the end. x (rows, passes * k) packed,
    /// rows x_stride elements apart, rows <= tile_rows; panel of n columns; c (rows, n rounded up
    /// to lanes), rows c_stride apart.
    void (*tile)(int64_t rows, int64_t n, int64_t passes, int64_t k, const void* x,
                 int64_t x_stride, const void* panel, float* c, int64_t c_stride, bool accumulate);

    /// Most rows that few_columns takes; dot_rows takes so many at a time.
    int64_t few_rows_max;

    /// In four sums, in blocks of k_block (a multiple of step()), the sums of a block being added to
    /// those before it: x (rows, k) packed in order; panel_width rows of w (k), w_stride elements
    /// apart; c (rows, panel_width).
    void (*dot_rows)(int64_t rows, int64_t k, int64_t k_block, const void* x, int64_t x_stride,
                     const void* w, DType dtype, int64_t w_stride, float* c, int64_t c_stride);

    /// pack_columns and tile in one pass over w, without storing the panel: c (rows, n rounded up to
    /// lanes) = x w, any n. Sums begin at 0, or go on from those in c: the same bits as in one
    /// call, if a multiple of k_group is behind them.
    void (*few_columns)(int64_t rows, int64_t k, int64_t n, const void* x, int64_t x_stride,
                        const UnitMatrix& w, float* c, int64_t c_stride, bool go_on);

    /// x = (scale * score * key_scale + key_bias) / ln 2, -inf where not visible; then 2^(x - max),
    /// and value_scale times that as a packed
    /// row (n, with room for whole lanes; 0 behind n). No visible key (or only logits of -inf): max
    /// = -inf, sum = 0 and zeros.
    SoftmaxPart (*softmax)(const ScoreRow& row, void* packed);
};

/// How the columns of weights in int8 or int4 are cut. A segment's products are summed as integers
/// and become a float when it is whole; segments are added in order.
struct IntLayout {
    static constexpr int64_t x_block = 128;   ///< int4: columns of x with a common scale
    static constexpr int64_t k_block = 4096;  ///< columns of a panel; a segment of int8

    /// Numbers of a packed row of x.
    [[nodiscard]] int64_t row_numbers() const { return round_up(cols, x_block); }

    bool nibbles = false;            ///< int4
    int64_t cols = 0;                ///< in_features
    int64_t segment = 0;             ///< columns of one: k_block, or of int4 32, 64 or 128
    int64_t segments = 0;            ///< in a row
    int64_t segments_per_group = 1;  ///< neighbours that have one scale of w

    bool operator==(const IntLayout&) const = default;
};

/// A tile: `rows` rows of x against the columns [first_segment * segment, ... + cols) of a panel.
struct IntTile {
    const IntLayout* layout;
    int64_t rows, columns;
    int64_t first_segment, cols;
    int32_t offset;   ///< what every weight of the panel is above its number less zero
    const int8_t* x;  ///< (rows, cols) from that column on, of int8 in numbers of int8_tile_bytes;
                      ///< rows x_stride bytes apart
    int64_t x_stride;
    const float* x_scale;  ///< (rows, segments)
    const int32_t* x_sum;  ///< (rows, segments)
    const int8_t* panel;   ///< of pack_panel
    const float* w_scale;  ///< (groups, columns rounded up to lanes)
    const float* w_zero;   ///< the same, or null: no zeros beside the offset
    float* c;              ///< (rows, columns rounded up to lanes), rows c_stride apart
    int64_t c_stride;
    bool accumulate;  ///< adds to c
};

/// Dot products: `rows` rows of x with `columns` rows of w as they lie.
struct IntDots {
    const IntLayout* layout;
    int64_t rows, columns;
    int32_t offset;
    const int8_t* x;
    int64_t x_stride;
    const float* x_scale;
    const int32_t* x_sum;
    const uint8_t* w;  ///< (columns, row_bytes)
    int64_t row_bytes;
    const float* w_scale;  ///< (groups, width)
    const float* w_zero;
    int64_t width;  ///< columns rounded up to lanes
    int32_t* sums;  ///< room for IntProduct::sums_of(layout, rows) numbers
    float* c;       ///< (rows, width), rows c_stride apart
    int64_t c_stride;
};

/// Products of integers: see cpu_int.h. The same bits for any number of rows and either way.
struct IntProduct {
    int64_t tile_rows, panel_width, lanes;
    int64_t dot_width;        ///< most columns of `dots`
    int64_t most_dot_rows;    ///< rows of x up to which `dots` is faster than panels and tiles
    int32_t int8_offset;      ///< what the multiply-add needs added to weights in int8
    int64_t int8_tile_bytes;  ///< of a number of int8 in the rows of x and the panels of a tile

    /// For each row of x, and each of the `lanes` rows of a stream that are done together: a vector
    /// for each stretch of columns, which is a segment or, if that is longer, what a vector of nibbles
    /// holds.
    [[nodiscard]] int64_t sums_of(const IntLayout& layout, int64_t rows) const {
        const int64_t nibbles_of_vector = 8 * lanes;
        const int64_t stretch = std::max(layout.segment, nibbles_of_vector);
        return rows * lanes * pieces(layout.row_numbers(), stretch) * lanes;
    }

    /// x (cols) to int8 in the order of the units, in numbers of one byte or, for tiles, of
    /// int8_tile_bytes; its scale and its sum for each segment.
    void (*quantise_row)(const float* x, const IntLayout& layout, bool for_tile, void* packed,
                         float* scale, int32_t* sums);
    /// to (groups, n rounded up to lanes) = the transpose of scale (n, groups), rows stride apart.
    void (*pack_scales)(const void* scale, DType dtype, int64_t stride, int64_t n, int64_t groups,
                        float* to);
    /// `bytes` bytes of n rows of w, from w on, row_bytes apart, to panel[group of columns][row][column
    /// of the group]: groups of 4 columns, or of 2 where int8_tile_bytes is 2.
    void (*pack_panel)(bool nibbles, const void* w, int64_t row_bytes, int64_t n, int64_t bytes,
                       int8_t* panel);
    void (*tile)(const IntTile& tile);
    void (*dots)(const IntDots& dots);
};

/// A loop of multiply-adds on registers alone: `run` does rounds * multiply_adds of them. With one
/// = 1, which the compiler must not know, each adds 1 to a sum, and the result is the total of the
/// sums: the number of multiply-adds (exact up to 2^23 rounds). With one = 0 it is 0.
struct PeakLoop {
    int64_t multiply_adds;
    double (*run)(int64_t rounds, int one);
};

struct Table {
    std::string_view name;
    Product f32;   ///< both factors as they are
    Product bf16;  ///< both factors rounded to bfloat16
    IntProduct integers;

    /// decode_row (decode.h) of n rows from `row` on; to (n, count), the same to the bit.
    void (*decode)(const Matrix& w, int64_t row, int64_t n, int64_t first, int64_t count,
                   DType to_dtype, void* to);

    /// out[i] = residual[i] + scale * activation(product[i] + bias[i]); bias and residual may be
    /// null; out may be residual.
    void (*epilogue)(const float* product, const float* bias, Activation activation, float scale,
                     const float* residual, float* out, int64_t n);

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

    /// Stores keys of one head and block: x (keys, head_dim), rows x_stride apart; units: where the
    /// first row of units has the first of them.
    void (*store_keys)(const float* x, int64_t x_stride, int64_t keys, const KvLayout& layout,
                       void* units);

    /// The same for values: units: the row of units, in the first part, that has the first of them;
    /// it holds `first` values already. Elements behind the last value of a unit become 0.
    void (*store_values)(const float* x, int64_t x_stride, int64_t first, int64_t keys,
                         const KvLayout& layout, void* units);

    /// x = exp(x), in place: the exponential of the activations, alone for its test.
    void (*exponential)(float* x, int64_t n);

    // What the machine can do at most (cpu_probe.h).

    /// Sum of the n floats from x on, read as 1, 2, 4 or 8 equal parts side by side.
    float (*read_sum[4])(const float* x, int64_t n);
    /// The multiply-adds that products of these types are made of, or would be.
    PeakLoop peak_f32, peak_bf16, peak_int8;
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
