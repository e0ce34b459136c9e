// The largest numbers of a row.
#include <algorithm>
#include <cassert>
#include <functional>

#include "kernels/cpu_ops.h"
#include "kernels/ranking.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {
namespace {

/// By a heap of the k largest ranks so far, the least in front: most numbers are below it and cost one
/// comparison. The heap lies where the indices will.
void top_k_of_row(const float* row, int64_t width, int64_t k, float* values, int64_t* index) {
    auto* const ranks = reinterpret_cast<uint64_t*>(index);
    uint64_t* const end = ranks + k;
    const auto rank = [&](int64_t i) { return rank_of(row[i], static_cast<uint32_t>(i)); };
    for (int64_t i = 0; i < k; ++i) ranks[i] = rank(i);
    std::make_heap(ranks, end, std::greater<>());
    float least = row[index_of(ranks[0])];
    for (int64_t i = k; i < width; ++i) {
        if (row[i] <= least) continue;      // almost always
        if (rank(i) <= ranks[0]) continue;  // NaNs
        std::pop_heap(ranks, end, std::greater<>());
        end[-1] = rank(i);
        std::push_heap(ranks, end, std::greater<>());
        least = row[index_of(ranks[0])];
    }
    std::sort_heap(ranks, end, std::greater<>());
    for (int64_t j = 0; j < k; ++j) {
        index[j] = index_of(ranks[j]);
        values[j] = row[index[j]];
    }
}

}  // namespace

void top_k(const float* x, int64_t rows, int64_t width, int64_t k, float* values, int64_t* index) {
    assert(k <= width && k <= most_top_k);
    if (k == 0) return;
    for_each_row(rows, width, [&](int64_t r) {
        top_k_of_row(x + r * width, width, k, values + r * k, index + r * k);
    });
}

}  // namespace mllama::cpu
