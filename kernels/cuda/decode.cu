// Matrices of any kind to panels of f32 or bf16, which the vendor's library multiplies.
#include <type_traits>

#include "kernels/cuda/linear_parts.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr unsigned block_rows = 8;
constexpr unsigned block_loads = threads / block_rows;  // of each row

/// Which of the block's rows and loads is a thread's: those of a warp are neighbours in memory.
struct Place {
    unsigned row, load;
};
template <class Source>
__device__ Place place_in_block() {
    const unsigned thread = threadIdx.x;
    if constexpr (std::is_same_v<Source, Int4ByColumnSource>)
        return {thread % block_rows, thread / block_rows};
    return {thread / block_loads, thread % block_loads};
}

__device__ void store_piece(const Eight& piece, uint16_t* to) {
    *reinterpret_cast<uint4*>(to) = to_bf16(piece);
}
__device__ void store_piece(const Eight& piece, float* to) {
    const float* x = piece.of;
    reinterpret_cast<float4*>(to)[0] = {x[0], x[1], x[2], x[3]};
    reinterpret_cast<float4*>(to)[1] = {x[4], x[5], x[6], x[7]};
}

/// Blocks: column_blocks for every block_rows rows.
template <class Source, class To>
__global__ void __launch_bounds__(threads)
    decode_kernel(Source source, int64_t first, int64_t rows, int64_t cols, unsigned column_blocks,
                  To* to, int64_t to_stride) {
    after_previous();
    const Place place = place_in_block<Source>();
    const int64_t row = int64_t{blockIdx.x / column_blocks} * block_rows + place.row;
    const int64_t load = int64_t{blockIdx.x % column_blocks} * block_loads + place.load;
    const int64_t col = load * (8 * Source::pieces);
    if (row >= rows || col >= to_stride) return;
    To* out = to + row * to_stride + col;
    if (col >= cols) {  // a matrix without columns
        store_piece({}, out);
        return;
    }
    const auto raw = source.load(first + row, col);
    for (int i = 0; i < Source::pieces; ++i) store_piece(source.eight(raw, i), out + 8 * i);
}

template <class Source, class To>
void launch_decode(const Source& source, int64_t first, int64_t rows, int64_t cols, To* to) {
    const int64_t stride = panel_stride(cols);
    const int64_t column_blocks = pieces(stride, 8 * Source::pieces * block_loads);
    const auto blocks = static_cast<unsigned>(column_blocks * pieces(rows, block_rows));
    launch("decode", decode_kernel<Source, To>, blocks, threads, 0, source, first, rows, cols,
           column_blocks, to, stride);
}

template <class To>
void decode_to(const Matrix& w, int64_t first, int64_t rows, To* to) {
    if (!has_fast_source(w)) return launch_decode(AnySource{w}, first, rows, w.cols, to);
    with_fast_source(w,
                     [&](const auto& source) { launch_decode(source, first, rows, w.cols, to); });
}

}  // namespace

void decode(const Matrix& w, int64_t first, int64_t rows, DType to_dtype, void* to) {
    if (to_dtype == DType::bf16) {
        decode_to(w, first, rows, static_cast<uint16_t*>(to));
    } else {
        decode_to(w, first, rows, static_cast<float*>(to));
    }
}

}  // namespace mllama::cuda
