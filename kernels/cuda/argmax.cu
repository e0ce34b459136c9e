// The first index of the largest of a row: many blocks for the parts of it, then one for all parts.
#include <algorithm>
#include <cassert>

#include "kernels/cuda.h"
#include "kernels/cuda/four.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ranking.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr int pieces_of_thread = 4;
constexpr int64_t part = four * pieces_of_thread * threads;  // elements of a block

/// The best of some elements. All 0: of none.
struct Best {
    uint64_t rank;
    uint32_t finite;  // not 0: one of them is
};

__device__ inline Best best_of_one(float value, uint32_t index) {
    return {rank_of(value, index), value - value == 0.0f};
}

__device__ inline Best better(Best a, Best b) {
    return {a.rank > b.rank ? a.rank : b.rank, a.finite | b.finite};
}

__device__ inline Best warp_best(Best best) {
    for (unsigned lanes = warp_size / 2; lanes > 0; lanes /= 2) {
        best = better(best, {__shfl_xor_sync(whole_warp, best.rank, lanes),
                             __shfl_xor_sync(whole_warp, best.finite, lanes)});
    }
    return best;
}

/// All threads call, once a kernel.
__device__ inline Best block_best(Best best) {
    __shared__ Best of_warp[threads / warp_size];
    best = warp_best(best);
    if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size] = best;
    __syncthreads();
    for (const Best& other : of_warp) best = better(best, other);
    return best;
}

/// Block (row, part of the row).
template <bool vectors>
__global__ void argmax_parts(const float* x, int64_t width, Best* of_part) {
    after_previous();
    const float* row = x + blockIdx.x * width;
    const int64_t first = blockIdx.y * part + four * threadIdx.x;
    constexpr int64_t step = four * threads;
    Four values[pieces_of_thread];
    load_fours<vectors>(values, row, DType::f32, first, step, width);
    Best best{};
    for (int k = 0; k < pieces_of_thread; ++k) {
        for (int j = 0; j < four; ++j) {
            const int64_t i = first + k * step + j;
            if (i < width)
                best = better(best, best_of_one(values[k].at[j], static_cast<uint32_t>(i)));
        }
    }
    best = block_best(best);
    if (threadIdx.x == 0) of_part[int64_t{blockIdx.x} * gridDim.y + blockIdx.y] = best;
}

/// A block for each row.
__global__ void argmax_rows(const Best* of_part, int64_t parts, int64_t* index) {
    after_previous();
    Best best{};
    for (int64_t i = threadIdx.x; i < parts; i += threads)
        best = better(best, of_part[blockIdx.x * parts + i]);
    best = block_best(best);
    if (threadIdx.x != 0) return;
    const bool good = best.finite != 0 && !is_rank_of_nan(best.rank);
    index[blockIdx.x] = good ? int64_t{index_of(best.rank)} : -1;
}

}  // namespace

void argmax(const float* x, int64_t rows, int64_t width, int64_t* index) {
    assert(width <= 65535 * int64_t{part});
    const int64_t parts = pieces(width, part);
    const auto most_rows =
        workspace_bytes / (static_cast<int64_t>(sizeof(Best)) * std::max<int64_t>(parts, 1));
    const bool vectors = four_aligned(x, width);
    for (int64_t r = 0; r < rows; r += most_rows) {
        const auto n = static_cast<unsigned>(std::min(most_rows, rows - r));
        auto* of_part = Workspace().take<Best>(n * parts);
        launch("argmax", vectors ? argmax_parts<true> : argmax_parts<false>,
               {n, static_cast<unsigned>(parts)}, threads, 0, x + r * width, width, of_part);
        launch("argmax", argmax_rows, n, threads, 0, of_part, parts, index + r);
    }
}

}  // namespace mllama::cuda
