// Rounds rows of x to int8. A thread has four neighbouring columns at a time, a word of the result.
#include <bit>
#include <limits>

#include "kernels/cuda/quantise_rows.h"
#include "kernels/cuda/warp.h"
#include "kernels/error.h"

namespace mllama::cuda {
namespace {

constexpr uint32_t infinity_bits = 0x7F800000u;  // and larger ones are NaNs

struct Four {
    float of[4];
};

/// Columns [col, col + 4) of a row, zeros where it has none.
__device__ inline Four load_four(const float* row, int64_t col, int64_t cols) {
    Four result;
    for (int i = 0; i < 4; ++i) result.of[i] = col + i < cols ? row[col + i] : 0.0f;
    return result;
}

/// The bits of the largest magnitude: those of floats that are not negative are in the floats' order.
__device__ inline uint32_t largest_bits(const Four& x) {
    uint32_t largest = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t bits = std::bit_cast<uint32_t>(x.of[i]) & 0x7FFFFFFFu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

__device__ inline uint32_t warp_largest(uint32_t bits) {
    for (unsigned lanes = warp_size / 2; lanes > 0; lanes /= 2) {
        const uint32_t other = __shfl_xor_sync(whole_warp, bits, lanes);
        bits = other > bits ? other : bits;
    }
    return bits;
}

__device__ inline uint32_t block_largest(uint32_t bits) {
    __shared__ uint32_t of_warp[32];
    bits = warp_largest(bits);
    if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size] = bits;
    __syncthreads();
    const unsigned lane = threadIdx.x % warp_size;
    return warp_largest(lane < blockDim.x / warp_size ? of_warp[lane] : 0);
}

/// What numbers are made with, and what they stand for.
struct Steps {
    float per_unit;  ///< 0: every number is 0
    float scale;
};

/// See reference::quantise.
__device__ inline Steps steps_for(uint32_t bits) {
    if (bits >= infinity_bits) return {0.0f, std::bit_cast<float>(0x7FC00000u)};
    const float largest = std::bit_cast<float>(bits);
    if (largest < smallest_quantised) return {0.0f, 0.0f};
    return {127.0f / largest, largest / 127.0f};
}

/// Four numbers, the first one lowest.
__device__ inline uint32_t round_four(const Four& x, const Steps& steps) {
    if (steps.per_unit == 0.0f) return 0;
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) {
        const int number = static_cast<int>(rintf(x.of[i] * steps.per_unit));
        word |= (static_cast<uint32_t>(number) & 0xFFu) << (8 * i);
    }
    return word;
}

/// A block for each row, which has one scale.
__global__ void quantise_whole_rows(const float* x, int64_t x_stride, IntRows to) {
    after_previous();
    const IntLayout& layout = to.layout;
    const float* row = x + blockIdx.x * x_stride;
    auto* words = reinterpret_cast<uint32_t*>(to.numbers + blockIdx.x * to.stride);
    const int64_t first = int64_t{threadIdx.x} * 4, step = int64_t{blockDim.x} * 4;
    uint32_t largest = 0;
    for (int64_t col = first; col < layout.cols; col += step) {
        const uint32_t bits = largest_bits(load_four(row, col, layout.cols));
        largest = bits > largest ? bits : largest;
    }
    const Steps steps = steps_for(block_largest(largest));
    for (int64_t col = first; col < to.stride; col += step)
        words[col / 4] = round_four(load_four(row, col, layout.cols), steps);
    if (threadIdx.x == 0) to.scales[blockIdx.x] = steps.scale;
}

/// Of the four numbers of this lane and the four of its neighbour, those of even columns (in even
/// lanes) or those of odd ones.
__device__ inline uint32_t apart(uint32_t mine) {
    const uint32_t theirs = __shfl_xor_sync(whole_warp, mine, 1u);
    const bool odd = threadIdx.x % 2 == 1;
    const uint32_t first = (odd ? theirs : mine) >> (odd ? 8 : 0);
    const uint32_t second = (odd ? mine : theirs) >> (odd ? 8 : 0);
    return (first & 0xFFu) | (first >> 8 & 0xFF00u) | (second & 0xFFu) << 16 |
           (second << 8 & 0xFF000000u);
}

/// Stores the sum of the numbers of each segment of a piece.
__device__ inline void store_sums(uint32_t word, int64_t piece, int64_t row, const IntRows& to) {
    const auto lane = static_cast<int>(threadIdx.x % warp_size);
    const auto lanes_of_segment = static_cast<int>(to.layout.segment / 4);
    int sum = __dp4a(static_cast<int>(word), 0x01010101, 0);
    for (int lanes = 1; lanes < lanes_of_segment; lanes *= 2)
        sum += __shfl_xor_sync(whole_warp, sum, static_cast<unsigned>(lanes));
    if (lane % lanes_of_segment != 0) return;
    const int64_t segment = piece * to.layout.segments_per_piece() + lane / lanes_of_segment;
    to.sums[segment * to.padded_rows + row] = sum;
}

/// A warp for each piece of each row; rows that only pad the scales and sums are zeros.
__global__ void quantise_pieces(const float* x, int64_t x_stride, IntRows to) {
    after_previous();
    const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / warp_size;
    const int64_t row = warp / to.pieces, piece = warp % to.pieces;
    if (row >= to.padded_rows) return;
    const int64_t col = piece * x_piece + int64_t{threadIdx.x % warp_size} * 4;
    Four four{};
    if (row < to.rows) four = load_four(x + row * x_stride, col, to.layout.cols);
    const Steps steps = steps_for(warp_largest(largest_bits(four)));
    const uint32_t word = round_four(four, steps);
    store_sums(word, piece, row, to);
    const uint32_t ordered = apart(word);
    if (threadIdx.x % warp_size == 0) to.scales[piece * to.padded_rows + row] = steps.scale;
    if (row >= to.rows) return;
    const int64_t place = col / 32 * 32 + col / 4 % 2 * 16 + col % 32 / 8 * 4;
    *reinterpret_cast<uint32_t*>(to.numbers + row * to.stride + place) = ordered;
}

}  // namespace

IntLayout int_layout(const Matrix& w) {
    IntLayout layout;
    layout.nibbles = w.coding == Coding::int4;
    layout.cols = w.cols;
    const int64_t size = w.groups.size;
    if (size < w.cols && size < x_piece) layout.segment = size;
    return layout;
}

int64_t most_int_rows(const IntLayout& layout, int64_t multiple) {
    constexpr int64_t alignments = 4 * 256;  // of what is taken
    const int64_t row_bytes = 4 + layout.stride() + 4 * (layout.scales() + layout.sums());
    const int64_t rows = (workspace_bytes - alignments) / row_bytes / multiple * multiple;
    if (rows == 0) fail("CUDA: a linear layer of ", layout.cols, " columns is too wide");
    constexpr int64_t most = int64_t{1} << 20;
    return rows < most ? rows : most;
}

IntRows quantise_rows(const float* x, int64_t rows, int64_t x_stride, const IntLayout& layout,
                      int64_t multiple, Workspace& memory) {
    IntRows to;
    to.layout = layout;
    to.rows = static_cast<int>(rows);
    to.padded_rows = static_cast<int>(round_up(rows, multiple));
    to.stride = layout.stride();
    to.pieces = static_cast<int>(layout.scales());
    to.numbers = memory.take<int8_t>(rows * to.stride);
    to.scales = memory.take<float>(layout.scales() * to.padded_rows);
    to.sums = memory.take<int32_t>(layout.sums() * to.padded_rows);
    if (layout.nibbles) {
        constexpr unsigned threads = 256;
        const int64_t warps = int64_t{to.padded_rows} * to.pieces;
        launch("quantise_rows", quantise_pieces,
               static_cast<unsigned>(pieces(warps * warp_size, threads)), threads, 0, x, x_stride,
               to);
        return to;
    }
    // Few rows have the device to themselves: then it is the time of one that counts.
    const unsigned threads = rows <= few_rows ? 1024 : 256;
    launch("quantise_rows", quantise_whole_rows, static_cast<unsigned>(rows), threads, 0, x,
           x_stride, to);
    return to;
}

}  // namespace mllama::cuda
