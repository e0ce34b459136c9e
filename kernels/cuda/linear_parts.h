// What linear layers are made of: linear.cu puts these together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/arguments.h"
#include "kernels/cuda/weights.h"

namespace mllama::cuda {

/// The distance of the rows of a panel with so many columns: whole pieces, and never none.
constexpr int64_t panel_stride(int64_t cols) {
    return round_up(std::max<int64_t>(cols, 1), 8);
}

/// The rows [first, first + rows) of any matrix as f32 or bf16, rounded to nearest: to (rows,
/// panel_stride(w.cols)), aligned to 16 bytes, with zeros behind the columns.
void decode(const Matrix& w, int64_t first, int64_t rows, DType to_dtype, void* to);

/// Whether whole pieces of a plain matrix can be read where it lies, as those of a panel can.
inline bool lies_as_panel(const Matrix& w) {
    return w.coding == Coding::plain && w.cols > 0 && w.cols % 8 == 0 &&
           aligned_rows(w.data, w.stride * dtype_size(w.dtype));
}

/// cuda::linear of at most few_rows rows.
void linear_few(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
                const Epilogue& epilogue, DType factor, float* out, int64_t out_stride);

}  // namespace mllama::cuda
