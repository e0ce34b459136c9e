// Linear layers: blocking and threads over the product leaves of a table.
//
// The rows of x are packed once per block of rows; the work items of the threads are panels of w.
// Per item and block of k, a panel is packed (it stays in the second-level cache) and the register
// tile goes over all rows:
//
//     for each block of rows of x                  (packed: shared by the threads)
//       for each panel of w                        (an item)
//         for each block of k: pack the panel; for each tile of rows: c += x panel
//         for each row: out = epilogue(c)          (while c is in the cache)
//
// Few rows, a token's, take a way of their own: rows of w are read once, as they lie, and multiplied
// on their way through the registers. The order of sums is the same (see Product, "four sums").
#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "kernels/blocking.h"
#include "kernels/cpu.h"
#include "kernels/cpu_linear_int.h"
#include "kernels/cpu_ops.h"
#include "kernels/linear_panels.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {
namespace {

constexpr int64_t most_panel_bytes = 512 << 10;  // of one panel: it stays in the second-level cache
constexpr int64_t most_depth = 4096;             // of one panel
constexpr int64_t most_rows = 1024;              // rows of x that are packed at once, and
constexpr int64_t most_packed_bytes = 16 << 20;  // their size
constexpr int64_t row_padding =
    64;  // bytes between packed rows, lest all rows fall into the same cache set

/// Depth of the blocks that k is cut into: equal ones, as few as possible. Part of the order of
/// sums, so a function of k and the table alone.
int64_t k_block_of(const Product& product, int64_t k) {
    const int64_t fits = most_panel_bytes / (product.panel_width * product.element_size);
    const int64_t blocks = std::max<int64_t>(1, pieces(k, std::min(fits, most_depth)));
    return std::max(product.step(), round_up(pieces(k, blocks), product.step()));
}

/// Rows of x that are multiplied by rows of w as they lie; more are worth a panel.
int64_t most_dot_rows(const Product& product) {
    return 4 * product.few_rows_max;
}

/// Packed rows of x. Few rows lie whole and in order, one after the other; many are cut into blocks
/// of k, in four sums, so that the rows of a tile are neighbours.
struct PackedRows {
    std::byte* data;
    int64_t row_stride;    ///< elements
    int64_t block_stride;  ///< elements from one block of k to the next
};

/// What all items of a block of rows of x share.
struct LinearBlock {
    const Product& product;
    const Table& leaves;
    DType decoded;  ///< what the elements of a coded w become
    int64_t k_block;
    PackedRows packed;
    const TeamScratch& copies;  ///< of rows of w
    const TeamScratch& panels;  ///< packed
};

PackedRows pack_x(const Product& product, const float* x, int64_t rows, int64_t x_stride, int64_t k,
                  int64_t k_block, Scratch& scratch) {
    const bool whole = rows <= most_dot_rows(product);
    const int64_t block = whole ? std::max<int64_t>(k, 1) : k_block;
    const int64_t blocks = std::max<int64_t>(1, pieces(k, block));
    PackedRows packed{};
    packed.row_stride =
        round_up(std::min(block, k), product.step()) + row_padding / product.element_size;
    packed.block_stride = rows * packed.row_stride;
    packed.data = scratch.get<std::byte>(blocks * packed.block_stride * product.element_size);
    for_each_row(rows, k, [&](int64_t r) {
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t at = b * packed.block_stride + r * packed.row_stride;
            product.pack_row(x + r * x_stride + b * block, std::min(k - b * block, block),
                             packed.data + at * product.element_size, !whole);
        }
    });
    return packed;
}

/// Plain rows of w: where the first begins, and the distance of the others in elements.
struct WeightRows {
    const void* data;
    DType dtype;
    int64_t stride;
};

/// Columns [start, start + depth) of the panel's rows of w: as they lie, or decoded.
WeightRows plain_rows(const LinearBlock& block, const PanelSums& sums, int64_t start,
                      int64_t depth) {
    const Matrix& w = sums.projection.w;
    if (w.coding == Coding::plain)
        return {element_at(w.data, w.dtype, sums.column * w.stride + start), w.dtype, w.stride};
    const DType dtype = block.decoded;
    auto* copy = block.copies.here<std::byte>();
    block.leaves.decode(w, sums.column, sums.columns, start, depth, dtype, copy);
    return {copy, dtype, depth};
}

/// The panel's rows of w; where they are fewer than a panel has, a copy of them with rows of zeros
/// behind.
WeightRows whole_panel(const LinearBlock& block, const PanelSums& sums) {
    const int64_t width = block.product.panel_width;
    const int64_t cols = sums.projection.w.cols;
    const int64_t columns = sums.columns;
    const WeightRows rows = plain_rows(block, sums, 0, cols);
    if (columns == width || cols == 0) return rows;
    const int64_t row_bytes = cols * dtype_size(rows.dtype);
    auto* copy = block.copies.here<std::byte>();  // a decoded copy is this very one
    for (int64_t j = 0; j < columns && rows.data != copy; ++j) {
        std::memcpy(copy + j * row_bytes, element_at(rows.data, rows.dtype, j * rows.stride),
                    static_cast<size_t>(row_bytes));
    }
    std::memset(copy + columns * row_bytes, 0, static_cast<size_t>((width - columns) * row_bytes));
    return {copy, rows.dtype, cols};
}

/// Rows of x times rows of w, as they lie.
void multiply_rows(const LinearBlock& block, const PanelSums& sums) {
    const Product& product = block.product;
    const WeightRows w = whole_panel(block, sums);
    const int64_t at = sums.row * block.packed.row_stride * product.element_size;
    product.dot_rows(sums.row_count, sums.projection.w.cols, block.k_block, block.packed.data + at,
                     block.packed.row_stride, w.data, w.dtype, w.stride, sums.c, sums.c_stride);
}

/// The same with packed panels of w.
void multiply_panels(const LinearBlock& block, const PanelSums& sums) {
    const Product& product = block.product;
    const PackedRows& packed = block.packed;
    const int64_t k = sums.projection.w.cols;
    const int64_t columns = sums.columns;
    auto* panel = block.panels.here<std::byte>();
    for (int64_t start = 0; start == 0 || start < k; start += block.k_block) {
        const int64_t depth = std::min(k - start, block.k_block);
        const WeightRows w = plain_rows(block, sums, start, depth);
        product.pack_rows(w.data, w.dtype, w.stride, columns, depth, panel, true);
        const int64_t pass = round_up(depth, product.step()) / Product::sums;
        const std::byte* x = packed.data + (start / block.k_block * packed.block_stride +
                                            sums.row * packed.row_stride) *
                                               product.element_size;
        for (int64_t r = 0; r < sums.row_count; r += product.tile_rows) {
            product.tile(std::min(sums.row_count - r, product.tile_rows), columns, Product::sums,
                         pass, x + r * packed.row_stride * product.element_size, packed.row_stride,
                         panel, sums.c + r * sums.c_stride, sums.c_stride, start > 0);
        }
    }
}

/// Memory of a thread's items: rows of w that are copied as they are multiplied, and packed ones.
struct WeightScratch {
    TeamScratch copies, panels;

    /// Whole rows, where rows of x are few (whole_panel), or blocks of them.
    void take(const Product& product, std::span<const Projection> projections, bool few,
              int64_t depth, DType decoded) {
        const int64_t width = product.panel_width;
        int64_t element = 0;  // of a copy; most weights need none
        for (const Projection& projection : projections) {
            const Matrix& w = projection.w;
            const bool plain = w.coding == Coding::plain;
            if (plain && (!few || w.rows % width == 0)) continue;
            element = std::max(element, dtype_size(plain ? w.dtype : decoded));
        }
        copies.take<std::byte>(width * depth * element);
        if (few) return;
        panels.take<std::byte>(round_up(width, product.lanes) * depth * product.element_size);
    }
};

/// linear, by products of floats. projections: one `compute`.
void linear_float(const float* x, int64_t rows, int64_t x_stride,
                  std::span<const Projection> projections) {
    const Table& leaves = table();
    const Compute compute = projections.front().compute;
    const int64_t cols = projections.front().w.cols;
    const Product& product = product_of(leaves, compute);
    const int64_t row_bytes = std::max<int64_t>(1, cols * product.element_size);
    const int64_t block = std::clamp<int64_t>(most_packed_bytes / row_bytes, 96, most_rows);
    const int64_t k_block = k_block_of(product, cols);
    const DType decoded = compute == Compute::f32 ? DType::f32 : DType::bf16;
    thread_local Scratch scratch;
    thread_local WeightScratch weights;
    for (int64_t r = 0; r < rows; r += block) {
        const int64_t count = std::min(block, rows - r);
        const PackedRows packed =
            pack_x(product, x + r * x_stride, count, x_stride, cols, k_block, scratch);
        const bool few = count <= most_dot_rows(product);
        weights.take(product, projections, few, few ? cols : k_block, decoded);
        const LinearBlock piece{product, leaves,         decoded,       k_block,
                                packed,  weights.copies, weights.panels};
        const auto multiply = few ? multiply_rows : multiply_panels;
        for_each_panel(leaves, {projections, r, count}, product.panel_width, product.tile_rows,
                       [&](const PanelSums& sums) { multiply(piece, sums); });
    }
}

}  // namespace

void linear(const Matrix& x, std::span<const Projection> projections) {
    assert(x.dtype == DType::f32);
    if (x.rows == 0) return;
    for_each_rounded_alike(projections, same_int_layout, [&](std::span<const Projection> layers) {
        const Projection& first = layers.front();
        const auto multiply =
            multiplies_integers(first.w, first.compute) ? linear_int : linear_float;
        multiply(static_cast<const float*>(x.data), x.rows, x.stride, layers);
    });
}

}  // namespace mllama::cpu
