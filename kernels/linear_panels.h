// What all linear layers do around their products, whatever those are made of: the rows of w in
// panels, shared out to the threads; and the epilogue, while the sums are in the cache. Internal to
// kernels/.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/blocking.h"
#include "kernels/cpu.h"
#include "kernels/cpu_ops.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {

/// The rows of a block of x that one call works on, and where their results go.
struct LinearOutput {
    const Table& leaves;
    const Matrix& w;  ///< (out_features, in_features)
    const Epilogue& epilogue;
    int64_t rows;           ///< of this block
    const float* residual;  ///< (rows, out_features), rows out_stride apart, or null
    float* out;             ///< (rows, out_features), rows out_stride apart
    int64_t out_stride;

    /// The results of `count` rows of x, of all that x has, from `first` on.
    static LinearOutput of_rows(const Table& leaves, const Matrix& w, const Epilogue& epilogue,
                                float* out, int64_t out_stride, int64_t first, int64_t count) {
        const int64_t at = first * out_stride;
        const float* residual = epilogue.residual != nullptr ? epilogue.residual + at : nullptr;
        return {leaves, w, epilogue, count, residual, out + at, out_stride};
    }
};

/// Sums of some rows of x and one panel: rows [row, row + row_count) of the block, rows [column,
/// column + columns) of w.
struct PanelSums {
    int64_t row, row_count, column, columns;
    float* c;          ///< (row_count, columns), with room for whole panels
    int64_t c_stride;  ///< the width of a panel
};

inline void finish_panel(const LinearOutput& output, const PanelSums& sums) {
    const Epilogue& epilogue = output.epilogue;
    const float* bias = epilogue.bias != nullptr ? epilogue.bias + sums.column : nullptr;
    for (int64_t r = 0; r < sums.row_count; ++r) {
        const int64_t at = (sums.row + r) * output.out_stride + sums.column;
        const float* residual = output.residual != nullptr ? output.residual + at : nullptr;
        output.leaves.epilogue(sums.c + r * sums.c_stride, bias, epilogue.activation,
                               epilogue.scale, residual, output.out + at, sums.columns);
    }
}

/// Calls multiply(PanelSums), which fills c, for all panels of panel_width rows of w on all threads,
/// and finishes each. tile_rows: rows of x that a product takes at a time.
template <class Multiply>
void for_each_panel(const LinearOutput& output, int64_t panel_width, int64_t tile_rows,
                    const Multiply& multiply) {
    const Matrix& w = output.w;
    const int64_t panels = pieces(w.rows, panel_width);
    // Few panels and many threads: the rows are cut as well.
    const int64_t wanted = std::max<int64_t>(1, 4 * threads() / panels);
    const int64_t piece = std::max(pieces(output.rows, wanted), 8 * tile_rows);
    const int64_t row_pieces = pieces(output.rows, piece);
    const bool serial = output.rows * w.rows * w.cols / 16 < worth_threads;
    for_each_item(panels * row_pieces, serial, [&](int64_t item) {
        PanelSums sums{};
        sums.row = item % row_pieces * piece;
        sums.row_count = std::min(piece, output.rows - sums.row);
        sums.column = item / row_pieces * panel_width;
        sums.columns = std::min(panel_width, w.rows - sums.column);
        thread_local Scratch c_scratch;
        sums.c = c_scratch.get<float>(sums.row_count * panel_width);
        sums.c_stride = panel_width;
        multiply(sums);
        finish_panel(output, sums);
    });
}

}  // namespace mllama::cpu
