// Rows of x as whole numbers of 8 bits, for products with weights in int8 and int4.
#pragma once

#include <cstdint>

#include "kernels/arguments.h"
#include "kernels/cuda/workspace.h"

namespace mllama::cuda {

/// Columns of x that share a scale where weights are int4.
inline constexpr int64_t x_piece = 128;

/// How rows of x are cut to meet a matrix.
struct IntLayout {
    bool nibbles = false;  ///< weights in int4
    int64_t cols = 0;
    /// int4: columns of which sums of products become floats: 32, 64, or a piece.
    int64_t segment = x_piece;

    [[nodiscard]] constexpr int64_t segments_per_piece() const { return x_piece / segment; }
    /// Scales of a row.
    [[nodiscard]] constexpr int64_t scales() const { return nibbles ? pieces(cols, x_piece) : 1; }
    /// Sums of a row.
    [[nodiscard]] constexpr int64_t sums() const {
        return nibbles ? scales() * segments_per_piece() : 0;
    }
    /// Bytes of a row: whole pieces, or (int8) a multiple of 64.
    [[nodiscard]] constexpr int64_t stride() const {
        return round_up(cols, nibbles ? x_piece : 64);
    }
    bool operator==(const IntLayout&) const = default;
};

IntLayout int_layout(const Matrix& w);

/// Rows of x, rounded. numbers (rows, stride), with zeros behind the columns; for int4 each 32 columns
/// in the order 0 2 4 ... 30 1 3 5 ... 31, as the low and the high nibbles of 16 bytes come. What belongs
/// to a row stands row by row behind one another, so that a product of many rows finds those of its
/// rows together: scales (layout.scales(), padded_rows), and of int4 the sums of the numbers of each
/// segment (layout.sums(), padded_rows); those of int4 are zeros where there are no such rows.
struct IntRows {
    IntLayout layout;
    int8_t* numbers = nullptr;
    float* scales = nullptr;
    int32_t* sums = nullptr;
    int64_t stride = 0;  ///< layout.stride()
    int pieces = 0;      ///< layout.scales()
    int rows = 0;
    int padded_rows = 0;
};

/// As many rows of x as fit into the workspace together; a multiple of `multiple`.
int64_t most_int_rows(const IntLayout& layout, int64_t multiple);

/// Rounds the rows of x as reference::quantise does, into the workspace; padded_rows is `rows` rounded
/// up to `multiple`.
IntRows quantise_rows(const float* x, int64_t rows, int64_t x_stride, const IntLayout& layout,
                      int64_t multiple, Workspace& memory);

}  // namespace mllama::cuda
