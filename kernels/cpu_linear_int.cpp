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
#include "kernels/linear_panels.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {
namespace {

constexpr int64_t row_padding = 64;  // bytes, lest all rows fall into the same cache set
constexpr int64_t most_rows = 1024;  // of x at a time, of one byte a number

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

/// Rows of x that are multiplied by rows of w as they lie; more are worth a panel.
bool are_few(const IntProduct& product, int64_t rows) {
    return rows <= product.most_dot_rows;
}

/// Rows of w that an item takes.
int64_t panel_width_of(const IntProduct& product, bool few) {
    return few ? product.dot_width : product.panel_width;
}

/// Rows of x as the products take them.
struct IntRows {
    int8_t* numbers;       ///< (rows, cols) in the order of the units
    int64_t number_bytes;  ///< of one
    int64_t stride;        ///< bytes
    float* scale;          ///< (rows, segments)
    int32_t* sums;         ///< (rows, segments)
};

/// Memory of a thread's items: scales and zeros of a panel of w, the sums of few rows, the numbers
/// of a packed panel.
struct WeightScratch {
    TeamScratch scale, zero, sums, panel;

    /// few_rows: of x, if they are few; else 0.
    void take(const IntProduct& product, const IntLayout& layout,
              std::span<const Projection> projections, int64_t number_bytes, int64_t few_rows) {
        const int64_t width = panel_width_of(product, few_rows > 0);
        int64_t groups = 0;
        for (const Projection& projection : projections)
            groups = std::max(groups, pieces(projection.w.cols, projection.w.groups.size));
        scale.take<float>(groups * width);
        zero.take<float>(groups * width);
        if (few_rows == 0) {
            const int64_t cols = round_up(layout.cols, IntLayout::x_block);
            panel.take<int8_t>(width * std::min(cols, IntLayout::k_block) * number_bytes);
        } else {
            sums.take<int32_t>(product.sums_of(layout, few_rows));
        }
    }
};

/// What all items of a block of rows of x share.
struct IntBlock {
    const IntProduct& product;
    const IntLayout& layout;
    IntRows x;
    const WeightScratch& scratch;

    /// Bytes that hold `cols` columns of a row of w.
    [[nodiscard]] int64_t bytes_of(int64_t cols) const {
        return layout.nibbles ? int4_words(cols) * 4 : cols;
    }
    [[nodiscard]] const uint8_t* weights(const Matrix& w, int64_t row, int64_t col) const {
        return static_cast<const uint8_t*>(w.data) + row * bytes_of(w.cols) + bytes_of(col);
    }
    [[nodiscard]] int32_t offset(const Matrix& w) const {
        if (!layout.nibbles) return product.int8_offset;
        return has_zeros(w) ? 0 : w.groups.zero_add;
    }
};

/// for_tile: for multiply_panels, else for multiply_rows.
IntRows quantise_rows(const IntProduct& product, const IntLayout& layout, const float* x,
                      int64_t rows, int64_t x_stride, bool for_tile) {
    thread_local Scratch number_scratch, scale_scratch, sum_scratch;
    IntRows packed{};
    packed.number_bytes = for_tile && !layout.nibbles ? product.int8_tile_bytes : 1;
    packed.stride = layout.row_numbers() * packed.number_bytes + row_padding;
    packed.numbers = number_scratch.get<int8_t>(rows * packed.stride);
    packed.scale = scale_scratch.get<float>(rows * layout.segments);
    packed.sums = sum_scratch.get<int32_t>(rows * layout.segments);
    for_each_row(rows, layout.cols, [&](int64_t r) {
        product.quantise_row(x + r * x_stride, layout, for_tile, packed.numbers + r * packed.stride,
                             packed.scale + r * layout.segments, packed.sums + r * layout.segments);
    });
    return packed;
}

/// Scales and zeros of a panel, group by group, (groups, width).
struct PanelScales {
    const float* scale;
    const float* zero;  ///< or null
};

PanelScales scales_of(const IntProduct& product, const Matrix& w, int64_t column, int64_t columns,
                      const WeightScratch& scratch) {
    const Groups& groups = w.groups;
    const int64_t count = pieces(w.cols, groups.size);
    const int64_t width = round_up(columns, product.lanes);
    auto* scale = scratch.scale.here<float>();
    product.pack_scales(element_at(groups.scale, groups.scale_dtype, column * groups.scale_row),
                        groups.scale_dtype, groups.scale_row, columns, count, scale);
    if (!has_zeros(w)) return {scale, nullptr};
    auto* zero = scratch.zero.here<float>();
    std::fill_n(zero, count * width, 0.0f);
    for (int64_t j = 0; j < columns; ++j) {
        for (int64_t g = 0; g < count; ++g) {
            zero[g * width + j] = static_cast<float>(zero_of(groups, column + j, g));
        }
    }
    return {scale, zero};
}

/// Rows of x times rows of w, as they lie.
void multiply_rows(const IntBlock& block, const PanelSums& sums) {
    const IntProduct& product = block.product;
    const Matrix& w = sums.projection.w;
    const PanelScales scales = scales_of(product, w, sums.column, sums.columns, block.scratch);
    IntDots dots{};
    dots.layout = &block.layout;
    dots.columns = sums.columns;
    dots.offset = block.offset(w);
    dots.x_stride = block.x.stride;
    dots.w = block.weights(w, sums.column, 0);
    dots.row_bytes = block.bytes_of(w.cols);
    dots.w_scale = scales.scale;
    dots.w_zero = scales.zero;
    dots.width = round_up(sums.columns, product.lanes);
    dots.sums = block.scratch.sums.here<int32_t>();
    dots.c_stride = sums.c_stride;
    dots.rows = sums.row_count;
    dots.x = block.x.numbers + sums.row * block.x.stride;
    dots.x_scale = block.x.scale + sums.row * block.layout.segments;
    dots.x_sum = block.x.sums + sums.row * block.layout.segments;
    dots.c = sums.c;
    product.dots(dots);
}

/// The same with packed panels of w.
void multiply_panels(const IntBlock& block, const PanelSums& sums) {
    const IntProduct& product = block.product;
    const Matrix& w = sums.projection.w;
    const PanelScales scales = scales_of(product, w, sums.column, sums.columns, block.scratch);
    const int64_t k = w.cols;
    const int64_t depth = IntLayout::k_block;
    const int64_t number_bytes = block.x.number_bytes;
    auto* panel = block.scratch.panel.here<int8_t>();
    IntTile tile{};
    tile.layout = &block.layout;
    tile.columns = sums.columns;
    tile.offset = block.offset(w);
    tile.x_stride = block.x.stride;
    tile.panel = panel;
    tile.w_scale = scales.scale;
    tile.w_zero = scales.zero;
    tile.c_stride = sums.c_stride;
    for (int64_t start = 0; start < k; start += depth) {
        tile.cols = std::min(depth, k - start);
        tile.first_segment = start / block.layout.segment;
        tile.accumulate = start > 0;
        product.pack_panel(block.layout.nibbles, block.weights(w, sums.column, start),
                           block.bytes_of(k), sums.columns, block.bytes_of(tile.cols), panel);
        for (int64_t r = 0; r < sums.row_count; r += product.tile_rows) {
            tile.rows = std::min(product.tile_rows, sums.row_count - r);
            tile.x = block.x.numbers + (sums.row + r) * block.x.stride + start * number_bytes;
            tile.x_scale = block.x.scale + (sums.row + r) * block.layout.segments;
            tile.x_sum = block.x.sums + (sums.row + r) * block.layout.segments;
            tile.c = sums.c + r * sums.c_stride;
            product.tile(tile);
        }
    }
}

/// Without columns every sum is 0.
void multiply_nothing(const IntBlock& /*block*/, const PanelSums& sums) {
    std::fill_n(sums.c, sums.row_count * sums.c_stride, 0.0f);
}

using Multiply = void (*)(const IntBlock&, const PanelSums&);

Multiply multiply_for(const IntProduct& product, int64_t cols, int64_t rows) {
    if (cols == 0) return multiply_nothing;
    return are_few(product, rows) ? multiply_rows : multiply_panels;
}

}  // namespace

bool same_int_layout(const Matrix& a, const Matrix& b) {
    return layout_of(a) == layout_of(b);
}

void linear_int(const float* x, int64_t rows, int64_t x_stride,
                std::span<const Projection> projections) {
    const Table& leaves = table();
    const IntProduct& product = leaves.integers;
    const IntLayout layout = layout_of(projections.front().w);
    const int64_t block_rows = layout.nibbles ? most_rows : most_rows / product.int8_tile_bytes;
    thread_local WeightScratch scratch;
    for (int64_t r = 0; r < rows; r += block_rows) {
        const int64_t count = std::min(block_rows, rows - r);
        const bool few = are_few(product, count);
        const IntRows packed =
            quantise_rows(product, layout, x + r * x_stride, count, x_stride, !few);
        if (layout.cols > 0) {
            scratch.take(product, layout, projections, packed.number_bytes, few ? count : 0);
        }
        const IntBlock block{product, layout, packed, scratch};
        const Multiply multiply = multiply_for(product, layout.cols, count);
        for_each_panel(leaves, {projections, r, count}, panel_width_of(product, few),
                       product.tile_rows, [&](const PanelSums& sums) { multiply(block, sums); });
    }
}

}  // namespace mllama::cpu
