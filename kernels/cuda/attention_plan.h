// What a block of threads of attention's kernels for many queries (attention_tile.cu,
// attention_warpgroup.cu) goes through: a tile of rows, a row being a query and one of the heads that
// use a key head, and the steps of 64 keys of which any of its rows sees one.
//
// A kernel's Shape says who plans:
//
//     rows                  of a tile
//     buffers               steps that are planned at a time
//     planners              threads that plan, each for the rows planner(), planner() + planners ...
//     planner()             the number of this one
//     planners_meet()       a barrier of these threads
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cuda/attention.h"
#include "kernels/rounding.h"

namespace mllama::cuda::tile {

inline constexpr int block_keys = KvLayout::block;
inline constexpr int no_key = std::numeric_limits<int>::max();

/// Which rows a block of threads has: its row r is query (first_row + r) / group, and of the heads
/// that use kv_head the one (first_row + r) % group.
struct Tile {
    int64_t first_row;
    int rows;  ///< of the tile, at most Shape::rows
    int kv_head, group;
};

/// Worked out again where it is needed, rather than kept in registers. Grid: tiles, key heads from
/// first_head on.
template <class Shape>
__device__ Tile tile_of(const Attention& args, int group, int first_head = 0) {
    // The last tiles see the most keys if the rule is causal: they begin first.
    const int64_t first_row = int64_t{gridDim.x - 1 - blockIdx.x} * Shape::rows;
    const int64_t rows = std::min<int64_t>(Shape::rows, args.queries * group - first_row);
    return {first_row, static_cast<int>(rows), first_head + static_cast<int>(blockIdx.y), group};
}

__device__ inline int64_t query_of(const Tile& tile, int row) {
    return (tile.first_row + row) / tile.group;
}
__device__ inline int64_t head_of(const Tile& tile, int row) {
    return int64_t{tile.kv_head} * tile.group + (tile.first_row + row) % tile.group;
}

/// How the keys are gone through: each planner follows what its rows see.
template <class Shape>
struct Plan {
    static constexpr int rows = (Shape::rows + Shape::planners - 1) / Shape::planners;
    int query[rows];       ///< -1: there is no such row
    int range[rows] = {};  ///< the first that reaches behind the last step asked for
    int whole_until = 0;   ///< every row sees all keys from the last step up to this one

    __device__ Plan(const Attention& args, int group) {
        const Tile tile = tile_of<Shape>(args, group);
        for (int i = 0; i < rows; ++i) {
            const int row = row_of(i);
            query[i] = row < tile.rows ? static_cast<int>(query_of(tile, row)) : -1;
        }
    }
    __device__ static int row_of(int i) { return Shape::planner() + i * Shape::planners; }
};

/// Where planners leave what others need.
template <class Shape>
struct PlanMemory {
    static constexpr int warps = Shape::planners / static_cast<int>(warp_size);
    uint64_t seen[Shape::buffers][Shape::rows];  ///< keys of a step, bit by bit
    int first[warps], whole[warps];
};

struct Step {
    int begin;   ///< the first key; no_key: there is none
    bool whole;  ///< every row sees all of its keys; else seen[buffer] says which
    int buffer;
};

__device__ inline int warp_min(int x) {
    for (unsigned lanes = warp_size / 2; lanes > 0; lanes /= 2)
        x = std::min(x, __shfl_xor_sync(whole_warp, x, lanes));
    return x;
}

/// The least over the planners of two numbers.
template <class Shape>
__device__ void planners_min(PlanMemory<Shape>& memory, int& first, int& whole) {
    first = warp_min(first);
    whole = warp_min(whole);
    Shape::planners_meet();  // the last ones have been read
    if (threadIdx.x % warp_size == 0) {
        memory.first[Shape::planner() / warp_size] = first;
        memory.whole[Shape::planner() / warp_size] = whole;
    }
    Shape::planners_meet();
    for (int w = 0; w < memory.warps; ++w) {
        first = std::min(first, memory.first[w]);
        whole = std::min(whole, memory.whole[w]);
    }
}

/// The first step of a row from key `begin` on, and up to where the row sees all keys.
__device__ inline void plan_row(const Attention& args, const Sequence& sequence, int query,
                                int& range, int begin, int& first, int& whole) {
    constexpr int n = block_keys;
    if (query < 0) return;
    range = static_cast<int>(skip_ranges(args, sequence, query, range, begin));
    if (range == seen_ranges(args, sequence, query)) {
        whole = 0;
        return;
    }
    const KeyRange seen = seen_range(args, sequence, query, range);
    first = std::min(first, static_cast<int>(std::max<int64_t>(begin, seen.begin)) / n * n);
    whole = std::min(whole, seen.begin <= begin ? static_cast<int>(seen.end) / n * n : 0);
}

/// The first step from key `begin` on of which any row sees a key; who sees which, bit by bit, goes
/// to memory.seen[buffer] unless every row sees all.
template <class Shape>
__device__ Step next_step(const Attention& args, Plan<Shape>& plan, int begin, int buffer,
                          PlanMemory<Shape>& memory) {
    const Sequence sequence = sequence_of(args);
    while (begin >= plan.whole_until) {
        int first = no_key;
        int whole = no_key;
        for (int i = 0; i < plan.rows; ++i)
            plan_row(args, sequence, plan.query[i], plan.range[i], begin, first, whole);
        planners_min(memory, first, whole);
        if (first == no_key) return {no_key, false, buffer};
        plan.whole_until = whole;
        if (begin < whole) break;
        if (first == begin) {
            for (int i = 0; i < plan.rows; ++i) {
                const int row = plan.row_of(i);
                if (row >= Shape::rows) continue;
                const int query = plan.query[i];
                memory.seen[buffer][row] =
                    query >= 0 ? seen_bits(args, sequence, query, plan.range[i], begin) : 0;
            }
            return {begin, false, buffer};
        }
        begin = first;
    }
    return {begin, true, buffer};
}

}  // namespace mllama::cuda::tile
