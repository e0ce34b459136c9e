// Linear layers: which way a product goes, and how one of many rows is cut so that its panels fit
// the workspace.
//
// Many rows: both factors become panels of the same type (or lie as such), the vendor's library
// multiplies them, and what it cannot do with the result an epilogue kernel does:
//
//     for each block of rows of x: round them to a panel (or they lie as one)
//       for each layer that takes them
//         for each block of rows of w: decode them to a panel; multiply; epilogue
#include <algorithm>
#include <cassert>

#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/four.h"
#include "kernels/cuda/linear_int.h"
#include "kernels/cuda/linear_parts.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/workspace.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 128;

/// sums (rows, cols), rows sums_stride apart, to out; they may lie there. A block has a part of a row,
/// a thread four columns.
template <bool vectors>
__global__ void __launch_bounds__(threads)
    epilogue_kernel(const float* sums, int64_t sums_stride, int64_t cols, unsigned column_blocks,
                    Epilogue epilogue, Floats out, int64_t out_stride) {
    after_previous();
    const int64_t row = blockIdx.x / column_blocks;
    const int64_t column = four * (int64_t{blockIdx.x % column_blocks} * threads + threadIdx.x);
    Four results = load_four<vectors>(sums + row * sums_stride, column, cols);
    finish<vectors>(epilogue, row * out_stride, column, cols, results);
    store_four<vectors>(results, out.from(row * out_stride), column, cols);
}

/// How many rows of x and of w are multiplied at a time.
struct Block {
    int64_t rows, columns;
};

bool multiplied_as_it_lies(const Matrix& w, DType factor) {
    return w.dtype == factor && lies_as_panel(w);
}

/// The rows [first, first + rows) of w, decoded to `room` where they cannot be multiplied as they lie.
Matrix factor_rows(const Matrix& w, int64_t first, int64_t rows, DType factor, std::byte* room) {
    if (multiplied_as_it_lies(w, factor)) {
        return rows_from(w, first, rows);
    }
    decode(w, first, rows, factor, room);
    return {room, factor, rows, panel_stride(w.cols), panel_stride(w.cols)};
}

/// The library adds to what is there, and then a bias, which it does not scale; it knows no
/// activation of ours.
bool library_does(const Epilogue& epilogue, const Floats& out) {
    const bool adds_bias = epilogue.scale == 1.0f && aligned_rows(epilogue.bias, 0);
    return (epilogue.bias == nullptr || adds_bias) && epilogue.activation == Activation::none &&
           (epilogue.residual == nullptr || epilogue.residual == out.data);
}

/// Whether the library may write to the output itself: it is aligned f32, and what an epilogue
/// still needs is not lost.
bool sums_lie_in(const Floats& out, int64_t out_stride, const Epilogue& epilogue) {
    return out.dtype == DType::f32 && aligned_rows(out.data, out_stride * int64_t{sizeof(float)}) &&
           (epilogue.residual != out.data || library_does(epilogue, out));
}

constexpr int64_t sums_stride(int64_t columns) {
    return round_up(columns, four);
}
constexpr int64_t sums_bytes(int64_t rows, int64_t columns) {
    return rows * sums_stride(columns) * int64_t{sizeof(float)};
}

/// sums (rows, cols), which begin at an aligned address, and what becomes of them.
void launch_epilogue(const float* sums, int64_t sums_stride, int64_t rows, int64_t cols,
                     const Epilogue& epilogue, const Floats& out, int64_t out_stride) {
    const auto aligned = [](const float* array, int64_t stride) {
        return array == nullptr || four_aligned(array, stride);
    };
    const bool vectors = four_aligned(out, out_stride) && aligned(epilogue.bias, cols) &&
                         aligned(epilogue.residual, out_stride) && cols % four == 0;
    const int64_t column_blocks = pieces(cols, four * threads);
    const auto blocks = static_cast<unsigned>(column_blocks * rows);
    launch("epilogue", vectors ? epilogue_kernel<true> : epilogue_kernel<false>, blocks, threads, 0,
           sums, sums_stride, cols, static_cast<unsigned>(column_blocks), epilogue, out,
           out_stride);
}

/// A block whose factors are ready. room: for its sums.
void multiply(const Matrix& x, const Matrix& w, const Epilogue& epilogue, const Floats& out,
              int64_t out_stride, float* room) {
    const bool direct = sums_lie_in(out, out_stride, epilogue);
    float* sums = direct ? out.f32() : room;
    const int64_t stride = direct ? out_stride : sums_stride(w.rows);
    const bool whole = direct && library_does(epilogue, out);
    const float scale = whole ? epilogue.scale : 1.0f;
    const float keep = whole && epilogue.residual != nullptr ? 1.0f : 0.0f;
    product(x.data, x.stride, w.data, w.stride, x.dtype, x.rows, w.rows, x.cols, scale, keep,
            whole ? epilogue.bias : nullptr, sums, stride);
    if (!whole) launch_epilogue(sums, stride, x.rows, w.rows, epilogue, out, out_stride);
}

/// The largest block such that each panel that is needed fits panel_bytes, and sums that need room
/// fit `sums_room` bytes.
Block largest_block(int64_t rows, const Matrix& w, DType factor, bool sums_lie_in_out,
                    int64_t sums_room) {
    const int64_t fitting = panel_rows(w.cols, factor);
    Block block{std::min(rows, fitting), w.rows};
    if (!multiplied_as_it_lies(w, factor)) block.columns = std::min(block.columns, fitting);
    if (sums_lie_in_out || w.rows == 0) return block;
    constexpr int64_t most_columns = int64_t{1} << 14;
    block.columns = std::min(block.columns, most_columns);
    block.rows = std::min(block.rows, sums_room / sums_bytes(1, block.columns));
    return block;
}

/// A block of rows of x, which are a factor already, through one layer. The rooms: a panel each.
void multiply_layer(const Matrix& x_rows, int64_t first, const Projection& layer, int64_t columns,
                    std::byte* w_room, float* sums_room) {
    const Matrix& w = layer.w;
    for (int64_t c = 0; c < w.rows; c += columns) {
        const int64_t count = std::min(columns, w.rows - c);
        const Matrix w_rows = factor_rows(w, c, count, x_rows.dtype, w_room);
        multiply(x_rows, w_rows, part_of(layer.epilogue, first, c, layer.out_stride),
                 layer.out.from(first * layer.out_stride + c), layer.out_stride, sums_room);
    }
}

void linear_many(const Matrix& x, std::span<const Projection> layers, DType factor) {
    Workspace memory;
    auto* x_room = memory.take<std::byte>(multiplied_as_it_lies(x, factor) ? 0 : panel_bytes);
    auto* w_room = memory.take<std::byte>(panel_bytes);
    const int64_t sums_bytes = memory.left();  // at least a panel
    auto* sums_room = memory.take<float>(sums_bytes / int64_t{sizeof(float)});
    const auto largest = [&](const Projection& layer) {
        return largest_block(x.rows, layer.w, factor,
                             sums_lie_in(layer.out, layer.out_stride, layer.epilogue), sums_bytes);
    };
    int64_t block = x.rows;
    for (const Projection& layer : layers) block = std::min(block, largest(layer).rows);
    for (int64_t r = 0; r < x.rows; r += block) {
        const Matrix x_rows = factor_rows(x, r, std::min(block, x.rows - r), factor, x_room);
        for (const Projection& layer : layers)
            multiply_layer(x_rows, r, layer, largest(layer).columns, w_room, sums_room);
    }
}

/// Layers that take the rows of x in the same form.
void linear_alike(const Matrix& x, std::span<const Projection> layers) {
    const Projection& first = layers.front();
    if (multiplies_integers(first.w, first.compute)) {
        assert(x.dtype == DType::f32);
        return linear_int(static_cast<const float*>(x.data), x.rows, x.stride, layers);
    }
    const DType factor = first.compute == Compute::f32 ? DType::f32 : DType::bf16;
    const int64_t few = factor == DType::f32 ? few_rows : few_rows_bf16;
    if (x.rows <= few) return linear_few(x, layers, factor);
    linear_many(x, layers, factor);
}

}  // namespace

void linear(const Matrix& x, std::span<const Projection> projections) {
    if (x.rows == 0) return;
    for_each_rounded_alike(projections, same_int_layout,
                           [&](std::span<const Projection> layers) { linear_alike(x, layers); });
}

}  // namespace mllama::cuda
