// What linear layers are made of: linear.cu puts these together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/arguments.h"
#include "kernels/cuda/weights.h"
#include "kernels/error.h"

namespace mllama::cuda {

/// The distance of the rows of a panel with so many columns: whole pieces, and never none.
constexpr int64_t panel_stride(int64_t cols) {
    return round_up(std::max<int64_t>(cols, 1), 8);
}

/// The rows [first, first + rows) of any matrix as f32 or bf16, rounded to nearest: to (rows,
/// panel_stride(w.cols)), aligned to 16 bytes, with zeros behind the columns.
void decode(const Matrix& w, int64_t first, int64_t rows, DType to_dtype, void* to);

/// What a panel in the workspace may take: there is room for three.
inline constexpr int64_t panel_bytes = int64_t{92} << 20;

/// How many rows of a panel that is: a multiple of four, so that outputs which are aligned have aligned
/// parts. Throws Error if it is none.
inline int64_t panel_rows(int64_t cols, DType dtype) {
    const int64_t rows = panel_bytes / (panel_stride(cols) * dtype_size(dtype)) / 4 * 4;
    if (rows == 0) fail("CUDA: a linear layer of ", cols, " columns is too wide");
    return rows;
}

/// The epilogue of the part of the output that begins at (row, column).
inline Epilogue part_of(const Epilogue& epilogue, int64_t row, int64_t column, int64_t out_stride) {
    Epilogue part = epilogue;
    if (part.bias != nullptr) part.bias += column;
    if (part.residual != nullptr) part.residual += row * out_stride + column;
    return part;
}

/// Whether whole pieces of a plain matrix can be read where it lies, as those of a panel can.
inline bool lies_as_panel(const Matrix& w) {
    return w.coding == Coding::plain && w.cols > 0 && w.cols % 8 == 0 &&
           aligned_rows(w.data, w.stride * dtype_size(w.dtype));
}

/// The rows [first, first + rows) of a plain matrix, where they lie.
inline Matrix rows_from(const Matrix& x, int64_t first, int64_t rows) {
    const auto* data = static_cast<const std::byte*>(x.data);
    return {data + first * x.stride * dtype_size(x.dtype), x.dtype, rows, x.cols, x.stride};
}

/// cuda::linear of few rows, whose factors are rounded to `factor`: at most `few_rows` if that is f32,
/// `few_rows_bf16` if it is bf16.
void linear_few(const Matrix& x, std::span<const Projection> layers, DType factor);

}  // namespace mllama::cuda
