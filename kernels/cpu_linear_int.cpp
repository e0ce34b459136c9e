// Linear layers with weights in int8 or int4: the integers of w times rows of x rounded to int8.
//
//     round the rows of x                            (once, by all threads)
//     for each panel of rows of w                    (an item)
//       few rows of x: dot products with rows of w as they lie
//       many: block by block of columns, pack the panel, and multiply tile by tile
//       epilogue
//
// The shape of cpu_linear.cpp; what differs is what a row of x is, and that a panel needs its
// scales beside it.
#include "kernels/cpu_linear_int.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/blocking.h"
#include "kernels/cpu.h"
#include "kernels/cpu_ops.h"
#include "kernels/decode.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {
namespace {

constexpr int64_t row_padding = 64;  // bytes, lest all rows fall into the same cache set
constexpr int64_t most_rows = 1024;  // of x at a time

/// Zeros are integers beside the numbers, the same for all, or differ from group to group.
bool has_zeros(const Matrix& w) {
    return w.groups.zero != nullptr;
}

int64_t segment_of(const Matrix& w) {
    if (w.coding == Coding::int8) return IntLayout::k_block;
    const int64_t size = w.groups.size;
    return size == 32 || size == 64 ? size : IntLayout::x_block;
}

IntLayout layout_of(const Matrix& w) {
    IntLayout layout;
    layout.nibbles = w.coding == Coding::int4;
    layout.cols = w.cols;
    layout.segment = segment_of(w);
    layout.segments = pieces(w.cols, layout.segment);
    const bool whole_row = w.groups.size >= w.cols;
    layout.segments_per_group =
        whole_row ? std::max<int64_t>(1, layout.segments) : w.groups.size / layout.segment;
    return layout;
}

/// Rows of x as the products take them.
struct IntRows {
    int8_t* numbers;  ///< (rows, cols) in the order of the units
    int64_t stride;
    float* scale;   ///< (rows, segments)
    int32_t* sums;  ///< (rows, segments)
};

struct IntBlock {
    const IntProduct& product;
    const Table& leaves;
    const IntLayout& layout;
    const Matrix& w;
    const Epilogue& epilogue;
    IntRows x;
    int64_t rows;
    const float* residual;
    float* out;
    int64_t out_stride;

    /// Bytes that hold `cols` columns of a row of w.
    [[nodiscard]] int64_t bytes_of(int64_t cols) const {
        return layout.nibbles ? (cols + 7) / 8 * 4 : cols;
    }
    [[nodiscard]] const uint8_t* weights(int64_t row, int64_t col) const {
        return static_cast<const uint8_t*>(w.data) + row * bytes_of(w.cols) + bytes_of(col);
    }
    [[nodiscard]] int32_t offset() const {
        if (!layout.nibbles) return product.int8_offset;
        return has_zeros(w) ? 0 : w.groups.zero_add;
    }
    [[nodiscard]] int64_t groups() const { return pieces(w.cols, w.groups.size); }
};

IntRows quantise_rows(const IntProduct& product, const IntLayout& layout, const float* x,
                      int64_t rows, int64_t x_stride) {
    thread_local Scratch number_scratch, scale_scratch, sum_scratch;
    IntRows packed{};
    packed.stride = layout.row_bytes() + row_padding;
    packed.numbers = number_scratch.get<int8_t>(rows * packed.stride);
    packed.scale = scale_scratch.get<float>(rows * layout.segments);
    packed.sums = sum_scratch.get<int32_t>(rows * layout.segments);
    for_each_row(rows, layout.cols, [&](int64_t r) {
        product.quantise_row(x + r * x_stride, layout, packed.numbers + r * packed.stride,
                             packed.scale + r * layout.segments, packed.sums + r * layout.segments);
    });
    return packed;
}

/// Scales and zeros of a panel, group by group, (groups, width).
struct PanelScales {
    const float* scale;
    const float* zero;  ///< or null
};

PanelScales scales_of(const IntBlock& block, int64_t column, int64_t columns) {
    thread_local Scratch scale_scratch, zero_scratch;
    const Groups& groups = block.w.groups;
    const int64_t count = block.groups();
    const int64_t width = round_up(columns, block.product.lanes);
    auto* scale = scale_scratch.get<float>(count * width);
    block.product.pack_scales(
        element_at(groups.scale, groups.scale_dtype, column * groups.scale_row), groups.scale_dtype,
        groups.scale_row, columns, count, scale);
    if (!has_zeros(block.w)) return {scale, nullptr};
    auto* zero = zero_scratch.get<float>(count * width);
    std::fill_n(zero, count * width, 0.0f);
    for (int64_t j = 0; j < columns; ++j) {
        for (int64_t g = 0; g < count; ++g) {
            zero[g * width + j] = static_cast<float>(zero_of(groups, column + j, g));
        }
    }
    return {scale, zero};
}

/// c (row_count, width) = rows of x times rows of w, as they lie.
void multiply_rows(const IntBlock& block, int64_t row, int64_t row_count, int64_t column,
                   int64_t columns, float* c, int64_t width) {
    thread_local Scratch sum_scratch;
    const IntProduct& product = block.product;
    const PanelScales scales = scales_of(block, column, columns);
    IntDots dots{};
    dots.layout = &block.layout;
    dots.columns = columns;
    dots.offset = block.offset();
    dots.x_stride = block.x.stride;
    dots.w = block.weights(column, 0);
    dots.row_bytes = block.bytes_of(block.w.cols);
    dots.w_scale = scales.scale;
    dots.w_zero = scales.zero;
    dots.width = width;
    dots.sums = sum_scratch.get<int32_t>(product.sums_of(block.layout, product.few_rows_max));
    dots.c_stride = width;
    for (int64_t r = 0; r < row_count; r += product.few_rows_max) {
        dots.rows = std::min(product.few_rows_max, row_count - r);
        dots.x = block.x.numbers + (row + r) * block.x.stride;
        dots.x_scale = block.x.scale + (row + r) * block.layout.segments;
        dots.x_sum = block.x.sums + (row + r) * block.layout.segments;
        dots.c = c + r * width;
        product.dots(dots);
    }
}

/// The same with packed panels of w.
void multiply_panels(const IntBlock& block, int64_t row, int64_t row_count, int64_t column,
                     int64_t columns, float* c, int64_t width) {
    thread_local Scratch panel_scratch;
    const IntProduct& product = block.product;
    const PanelScales scales = scales_of(block, column, columns);
    const int64_t k = block.w.cols;
    const int64_t depth = IntLayout::k_block;
    auto* panel =
        panel_scratch.get<int8_t>(width * std::min(round_up(k, IntLayout::x_block), depth));
    IntTile tile{};
    tile.layout = &block.layout;
    tile.columns = columns;
    tile.offset = block.offset();
    tile.x_stride = block.x.stride;
    tile.panel = panel;
    tile.w_scale = scales.scale;
    tile.w_zero = scales.zero;
    tile.c_stride = width;
    for (int64_t start = 0; start < k; start += depth) {
        tile.cols = std::min(depth, k - start);
        tile.first_segment = start / block.layout.segment;
        tile.accumulate = start > 0;
        product.pack_panel(block.layout.nibbles, block.weights(column, start), block.bytes_of(k),
                           columns, block.bytes_of(tile.cols), panel);
        for (int64_t r = 0; r < row_count; r += product.tile_rows) {
            tile.rows = std::min(product.tile_rows, row_count - r);
            tile.x = block.x.numbers + (row + r) * block.x.stride + start;
            tile.x_scale = block.x.scale + (row + r) * block.layout.segments;
            tile.x_sum = block.x.sums + (row + r) * block.layout.segments;
            tile.c = c + r * width;
            product.tile(tile);
        }
    }
}

void finish_rows(const IntBlock& block, int64_t row, int64_t row_count, int64_t column,
                 int64_t columns, const float* c, int64_t width) {
    const float* bias = block.epilogue.bias != nullptr ? block.epilogue.bias + column : nullptr;
    for (int64_t r = 0; r < row_count; ++r) {
        const int64_t at = (row + r) * block.out_stride + column;
        const float* residual = block.residual != nullptr ? block.residual + at : nullptr;
        block.leaves.epilogue(c + r * width, bias, block.epilogue.activation, block.epilogue.scale,
                              residual, block.out + at, columns);
    }
}

void multiply_block(const IntBlock& block) {
    const int64_t width = block.product.panel_width;
    const int64_t panels = pieces(block.w.rows, width);
    // Few panels and many threads: the rows are cut as well.
    const int64_t wanted = std::max<int64_t>(1, 4 * threads() / panels);
    const int64_t piece = std::max(pieces(block.rows, wanted), 8 * block.product.tile_rows);
    const int64_t row_pieces = pieces(block.rows, piece);
    const bool serial = block.rows * block.w.rows * block.w.cols / 16 < worth_threads;
    const bool few = block.rows <= 2 * block.product.few_rows_max;
    for_each_item(panels * row_pieces, serial, [&](int64_t item) {
        const int64_t column = item / row_pieces * width;
        const int64_t columns = std::min(width, block.w.rows - column);
        const int64_t row = item % row_pieces * piece;
        const int64_t row_count = std::min(piece, block.rows - row);
        const int64_t c_width = round_up(columns, block.product.lanes);
        thread_local Scratch c_scratch;
        auto* c = c_scratch.get<float>(row_count * c_width);
        if (block.w.cols == 0) std::fill_n(c, row_count * c_width, 0.0f);
        const auto multiply = few ? multiply_rows : multiply_panels;
        if (block.w.cols > 0) multiply(block, row, row_count, column, columns, c, c_width);
        finish_rows(block, row, row_count, column, columns, c, c_width);
    });
}

}  // namespace

bool multiplies_integers(const Matrix& w, Compute compute) {
    if (compute != Compute::int8 || w.groups.of_column != nullptr) return false;
    if (w.cols > 1 && w.groups.scale_group != 1 && w.groups.size < w.cols) return false;
    const int64_t size = w.groups.size;
    const bool whole_row = size >= w.cols;
    if (w.coding == Coding::int8)
        return whole_row && w.groups.zero == nullptr && w.groups.zero_add == 0;
    if (w.coding != Coding::int4) return false;
    return whole_row ? size == 32 || size == 64 || size % 128 == 0 || size == w.cols
                     : size == 32 || size == 64 || size % 128 == 0;
}

void linear_int(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
                const Epilogue& epilogue, float* out, int64_t out_stride) {
    const Table& leaves = table();
    const IntProduct& product = leaves.integers;
    const IntLayout layout = layout_of(w);
    for (int64_t r = 0; r < rows; r += most_rows) {
        const int64_t count = std::min(most_rows, rows - r);
        const IntRows packed = quantise_rows(product, layout, x + r * x_stride, count, x_stride);
        const float* residual =
            epilogue.residual != nullptr ? epilogue.residual + r * out_stride : nullptr;
        multiply_block({product, leaves, layout, w, epilogue, packed, count, residual,
                        out + r * out_stride, out_stride});
    }
}

}  // namespace mllama::cpu
