// What all linear layers do around their products, whatever those are made of: the rows of w in
// panels, shared out to the threads; and the epilogue, while the sums are in the cache. Internal to
// kernels/.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/blocking.h"
#include "kernels/cpu.h"
#include "kernels/cpu_ops.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {

/// The rows [first, first + rows) of x, and the layers that they go through; all of w with the same
/// number of columns.
struct RowBlock {
    std::span<const Projection> projections;
    int64_t first, rows;
};

/// Sums of some rows of x and one panel: rows [row, row + row_count) of the block, rows [column,
/// column + columns) of the projection's w.
struct PanelSums {
    const Projection& projection;
    int64_t row, row_count, column, columns;
    float* c;          ///< (row_count, columns), with room for whole panels
    int64_t c_stride;  ///< the width of a panel
};

/// What becomes of the sums, to the projection's output.
inline void finish_panel(const Table& leaves, int64_t first_row, const PanelSums& sums) {
    const Projection& to = sums.projection;
    const Epilogue& epilogue = to.epilogue;
    const float* bias = epilogue.bias != nullptr ? epilogue.bias + sums.column : nullptr;
    for (int64_t r = 0; r < sums.row_count; ++r) {
        const int64_t at = (first_row + sums.row + r) * to.out_stride + sums.column;
        const float* residual = epilogue.residual != nullptr ? epilogue.residual + at : nullptr;
        leaves.epilogue(sums.c + r * sums.c_stride, bias, epilogue.activation, epilogue.scale,
                        residual, to.out.f32() + at, sums.columns);
    }
}

/// A panel of one of the projections.
struct Panel {
    const Projection& projection;
    int64_t column;  ///< its first row of w
};

/// Panel number i of all projections, one behind the other.
inline Panel panel_at(std::span<const Projection> projections, int64_t panel_width, int64_t i) {
    size_t which = 0;
    for (; i >= pieces(projections[which].w.rows, panel_width); ++which)
        i -= pieces(projections[which].w.rows, panel_width);
    return {projections[which], i * panel_width};
}

/// Calls multiply(PanelSums), which fills c, for all panels of panel_width rows of w on all threads,
/// and finishes each. tile_rows: rows of x that a product takes at a time.
template <class Multiply>
void for_each_panel(const Table& leaves, const RowBlock& block, int64_t panel_width,
                    int64_t tile_rows, const Multiply& multiply) {
    int64_t panels = 0, columns = 0;
    for (const Projection& projection : block.projections) {
        panels += pieces(projection.w.rows, panel_width);
        columns += projection.w.rows;
    }
    // Few panels and many threads: the rows are cut as well.
    const int64_t wanted = std::max<int64_t>(1, 4 * threads() / std::max<int64_t>(panels, 1));
    const int64_t piece = std::max(pieces(block.rows, wanted), 8 * tile_rows);
    const int64_t row_pieces = pieces(block.rows, piece);
    const bool serial =
        block.rows * columns * block.projections.front().w.cols / 16 < worth_threads;
    thread_local TeamScratch of_thread;
    TeamScratch& c_scratch = of_thread;  // the items are to use this thread's
    c_scratch.take<float>(std::min(piece, block.rows) * panel_width);
    for_each_item(panels * row_pieces, serial, [&](int64_t item) {
        const Panel panel = panel_at(block.projections, panel_width, item / row_pieces);
        PanelSums sums{panel.projection, 0, 0, panel.column, 0, nullptr, panel_width};
        sums.row = item % row_pieces * piece;
        sums.row_count = std::min(piece, block.rows - sums.row);
        sums.columns = std::min(panel_width, panel.projection.w.rows - panel.column);
        sums.c = c_scratch.here<float>();
        multiply(sums);
        finish_panel(leaves, block.first, sums);
    });
}

}  // namespace mllama::cpu
