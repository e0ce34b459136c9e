// The largest numbers of a row: each block sorts a part of it and keeps the k largest; of what is kept,
// each block sorts a part again, until there is one.
#include <algorithm>
#include <cassert>

#include "kernels/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ranking.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 512;
constexpr unsigned part = 4096;  // ranks that a block sorts
static_assert(2 * most_top_k <= part, "each round leaves fewer");

/// The larger ones first. All threads call. (A bitonic sort: K. E. Batcher, Sorting networks and their
/// applications, 1968.)
__device__ inline void sort_ranks(uint64_t (&ranks)[part]) {
    for (unsigned run = 2; run <= part; run *= 2) {
        for (unsigned distance = run / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (unsigned pair = threadIdx.x; pair < part / 2; pair += threads) {
                const unsigned i = 2 * pair - pair % distance, j = i + distance;
                const uint64_t a = ranks[i], b = ranks[j];
                const bool descending = (i & run) == 0;  // every other run the other way round
                if ((a < b) != descending) continue;
                ranks[i] = b;
                ranks[j] = a;
            }
        }
    }
    __syncthreads();
}

/// The ranks of rows x (rows, width).
struct Numbers {
    const float* x;
    int64_t width;
    __device__ uint64_t rank(int64_t row, int64_t i) const {
        return rank_of(x[row * width + i], static_cast<uint32_t>(i));
    }
};

/// Those that blocks have kept, (rows, width).
struct Kept {
    const uint64_t* ranks;
    int64_t width;
    __device__ uint64_t rank(int64_t row, int64_t i) const { return ranks[row * width + i]; }
};

/// Block (row, part of the row): the k largest of it, in order, to (row, part, k). Where a part has fewer,
/// there are zeros.
template <class Source>
__global__ void largest_of_parts(Source from, int64_t k, uint64_t* to) {
    after_previous();
    __shared__ uint64_t ranks[part];
    const int64_t first = int64_t{blockIdx.y} * part;
    for (unsigned i = threadIdx.x; i < part; i += threads)
        ranks[i] = first + i < from.width ? from.rank(blockIdx.x, first + i) : 0;
    sort_ranks(ranks);
    to += (int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * k;
    for (unsigned i = threadIdx.x; i < k; i += threads) to[i] = ranks[i];
}

/// A block for each row: ranks (rows, k) of x (rows, width).
__global__ void store_top_k(const uint64_t* ranks, const float* x, int64_t width, int64_t k,
                            float* values, int64_t* index) {
    after_previous();
    for (int64_t i = threadIdx.x; i < k; i += threads) {
        const int64_t at = blockIdx.x * k + i;
        const uint32_t place = index_of(ranks[at]);
        index[at] = place;
        values[at] = x[blockIdx.x * width + place];
    }
}

template <class Source>
void launch_parts(unsigned rows, const Source& from, int64_t k, uint64_t* to) {
    const dim3 blocks{rows, static_cast<unsigned>(pieces(from.width, part))};
    launch("top_k", largest_of_parts<Source>, blocks, threads, 0, from, k, to);
}

}  // namespace

void top_k(const float* x, int64_t rows, int64_t width, int64_t k, float* values, int64_t* index) {
    assert(k <= width && k <= most_top_k && width <= 65535 * int64_t{part});
    if (k == 0) return;
    const int64_t most_kept = pieces(width, part) * k;  // of a row, in the first round
    const int64_t most_rows =
        workspace_bytes / 3 / (most_kept * static_cast<int64_t>(sizeof(uint64_t)));
    assert(most_rows > 0);
    for (int64_t r = 0; r < rows; r += most_rows) {
        const auto n = static_cast<unsigned>(std::min(most_rows, rows - r));
        Workspace memory;
        auto* kept = memory.take<uint64_t>(n * most_kept);
        auto* next = memory.take<uint64_t>(n * most_kept);
        launch_parts(n, Numbers{x + r * width, width}, k, kept);
        for (int64_t left = most_kept; left > k; left = pieces(left, part) * k) {
            launch_parts(n, Kept{kept, left}, k, next);
            std::swap(kept, next);
        }
        launch("top_k", store_top_k, n, threads, 0, kept, x + r * width, width, k, values + r * k,
               index + r * k);
    }
}

}  // namespace mllama::cuda
