// Linear layers: which way a product goes, and how one of many rows is cut so that its panels fit
// the workspace.
//
// Many rows: both factors become panels of the same type (or lie as such), the vendor's library
// multiplies them, and what it cannot do with the result an epilogue kernel does:
//
//     for each block of rows of x: round them to a panel
//       for each layer that takes them
//         for each block of rows of w: decode them to a panel; multiply; epilogue
#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/linear_int.h"
#include "kernels/cuda/linear_parts.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/workspace.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr int64_t epilogue_rows = 4;  // of a block: enough loads on their way

/// sums (rows, cols), rows sums_stride apart, to out; they may lie there. A block has some columns
/// of a few rows.
__global__ void __launch_bounds__(threads)
    epilogue_kernel(const float* sums, int64_t sums_stride, int64_t rows, int64_t cols,
                    unsigned column_blocks, Epilogue epilogue, float* out, int64_t out_stride) {
    after_previous();
    const int64_t first = blockIdx.x / column_blocks * epilogue_rows;
    const int64_t column = int64_t{blockIdx.x % column_blocks} * threads + threadIdx.x;
    if (column >= cols) return;
    float results[epilogue_rows];
    for (int i = 0; i < epilogue_rows; ++i) {
        const int64_t row = first + i;
        if (row >= rows) continue;
        const float sum = sums[row * sums_stride + column];
        results[i] = result_of(epilogue, sum, row, column, out_stride);
    }
    for (int i = 0; i < epilogue_rows; ++i) {
        if (first + i < rows) out[(first + i) * out_stride + column] = results[i];
    }
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
        const auto* data = static_cast<const std::byte*>(w.data);
        return {data + first * w.stride * dtype_size(factor), factor, rows, w.cols, w.stride};
    }
    decode(w, first, rows, factor, room);
    return {room, factor, rows, panel_stride(w.cols), panel_stride(w.cols)};
}

/// The library adds to what is there, but knows no bias and no activation of ours.
bool library_does(const Epilogue& epilogue, const float* out) {
    return epilogue.bias == nullptr && epilogue.activation == Activation::none &&
           (epilogue.residual == nullptr || epilogue.residual == out);
}

/// Whether the library may write to the output itself: it is aligned, and what an epilogue still
/// needs is not lost.
bool sums_lie_in(const float* out, int64_t out_stride, const Epilogue& epilogue) {
    return aligned_rows(out, out_stride * int64_t{sizeof(float)}) &&
           (epilogue.residual != out || library_does(epilogue, out));
}

constexpr int64_t sums_stride(int64_t columns) {
    return round_up(columns, 4);
}
constexpr int64_t sums_bytes(int64_t rows, int64_t columns) {
    return rows * sums_stride(columns) * int64_t{sizeof(float)};
}

/// A block whose factors are ready. room: for its sums.
void multiply(const Matrix& x, const Matrix& w, const Epilogue& epilogue, float* out,
              int64_t out_stride, float* room) {
    const bool direct = sums_lie_in(out, out_stride, epilogue);
    float* sums = direct ? out : room;
    const int64_t stride = direct ? out_stride : sums_stride(w.rows);
    const bool whole = direct && library_does(epilogue, out);
    const float scale = whole ? epilogue.scale : 1.0f;
    const float keep = whole && epilogue.residual != nullptr ? 1.0f : 0.0f;
    product(x.data, x.stride, w.data, w.stride, x.dtype, x.rows, w.rows, x.cols, scale, keep, sums,
            stride);
    if (whole) return;
    const int64_t column_blocks = pieces(w.rows, int64_t{threads});
    const auto blocks = static_cast<unsigned>(column_blocks * pieces(x.rows, epilogue_rows));
    launch("epilogue", epilogue_kernel, blocks, threads, 0, sums, stride, x.rows, w.rows,
           column_blocks, epilogue, out, out_stride);
}

/// The largest block such that each panel that is needed fits panel_bytes.
Block largest_block(int64_t rows, const Matrix& w, DType factor, bool sums_lie_in_out) {
    const int64_t fitting = panel_rows(w.cols, factor);
    Block block{std::min(rows, fitting), w.rows};
    if (!multiplied_as_it_lies(w, factor)) block.columns = std::min(block.columns, fitting);
    if (sums_lie_in_out || w.rows == 0) return block;
    constexpr int64_t most_columns = int64_t{1} << 14;
    block.columns = std::min(block.columns, most_columns);
    block.rows = std::min(block.rows, panel_bytes / sums_bytes(1, block.columns));
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
                 layer.out + first * layer.out_stride + c, layer.out_stride, sums_room);
    }
}

void linear_many(const float* x, int64_t rows, int64_t x_stride, std::span<const Projection> layers,
                 DType factor) {
    const auto largest = [&](const Projection& layer) {
        return largest_block(rows, layer.w, factor,
                             sums_lie_in(layer.out, layer.out_stride, layer.epilogue));
    };
    int64_t block = rows;
    for (const Projection& layer : layers) block = std::min(block, largest(layer).rows);
    const int64_t cols = layers.front().w.cols;
    const Matrix all_x{x, DType::f32, rows, cols, x_stride};
    Workspace memory;
    auto* x_room = memory.take<std::byte>(panel_bytes);
    auto* w_room = memory.take<std::byte>(panel_bytes);
    auto* sums_room = memory.take<float>(panel_bytes / int64_t{sizeof(float)});
    for (int64_t r = 0; r < rows; r += block) {
        const Matrix x_rows = factor_rows(all_x, r, std::min(block, rows - r), factor, x_room);
        for (const Projection& layer : layers)
            multiply_layer(x_rows, r, layer, largest(layer).columns, w_room, sums_room);
    }
}

}  // namespace

void linear(const float* x, int64_t rows, int64_t x_stride,
            std::span<const Projection> projections) {
    while (rows > 0 && !projections.empty()) {
        const Projection& first = projections.front();
        const size_t count = count_rounded_alike(projections, same_int_layout);
        const auto layers = projections.first(count);
        if (multiplies_integers(first.w, first.compute)) {
            linear_int(x, rows, x_stride, layers);
        } else {
            const DType factor = first.compute == Compute::f32 ? DType::f32 : DType::bf16;
            const auto way = rows <= few_rows ? linear_few : linear_many;
            way(x, rows, x_stride, layers, factor);
        }
        projections = projections.subspan(count);
    }
}

}  // namespace mllama::cuda
