// What a block of threads of attention_tile.cu is made of: how much it takes, where that lies in shared
// memory, and which keys its rows go through.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma.h"
#include "kernels/rounding.h"

namespace mllama::cuda::tile {

inline constexpr int block_keys = KvLayout::block;
inline constexpr int no_key = std::numeric_limits<int>::max();

/// What a block of threads is made of. `columns`: head_dim rounded up to a multiple of 16; coded: int8.
template <int columns_, bool coded_>
struct TileShape {
    static constexpr int columns = columns_;
    static constexpr bool coded = coded_;
    /// Of 16 rows, of a warp. With two, factors are read from shared memory half as often; with one,
    /// more blocks share a multiprocessor. On an H100 two and one take: 6,432 queries and keys of 80
    /// columns 1,005 and 1,050 us; 2,048 causal queries of 128 columns 266 and 233 us.
    static constexpr int fragments = columns > 80 ? 1 : 2;
    static constexpr int warps = 4;
    static constexpr int threads = warps * static_cast<int>(warp_size);
    static constexpr int warp_rows = 16 * fragments;
    static constexpr int rows = warps * warp_rows;
    static_assert(rows <= threads);  // a thread plans for each row

    static constexpr int keys = block_keys;  ///< that are taken in one step
    /// Blocks of a multiprocessor for which registers are given out.
    static constexpr int blocks = fragments == 2 ? 1 : 2;
    /// Whether a warp keeps its query there, rather than in shared memory.
    static constexpr bool query_in_registers = fragments == 1;

    // Strides in units for which the 8 lanes that load 16 bytes each at a time, two groups by four
    // quads, meet all 32 banks: rows of neighbouring quads begin 8 banks apart.
    static constexpr int key_stride = keys + 4;  // a quad takes two rows
    static constexpr int value_stride = static_cast<int>(round_up(columns - 8, 32)) + 8;
};

/// A call, and what is worked out of it on the host: a division of 64 bits costs as much as
/// many products.
struct TileCall {
    Attention args;
    int group;                       ///< heads that use a key head
    int key_rows, part_width;        ///< as KvLayout says
    int64_t key_bytes, value_bytes;  ///< of one head in a block
    explicit TileCall(const Attention& call)
        : args(call),
          group(static_cast<int>(call.heads / call.kv_heads)),
          key_rows(static_cast<int>(call.layout().key_rows())),
          part_width(static_cast<int>(call.layout().part_width())),
          key_bytes(call.layout().key_units() * KvLayout::unit_bytes),
          value_bytes(call.layout().value_units() * KvLayout::unit_bytes) {}
};

/// A step's keys and values as they are multiplied.
template <class Shape>
struct Factors {
    uint32_t keys[Shape::columns / 2][Shape::key_stride];
    uint32_t values[Shape::keys / 2][Shape::value_stride];  ///< rows as value_slot says
};

/// int8 as it is copied.
template <class Shape>
struct Raw {
    uint32_t keys[Shape::columns / 4][Shape::keys];
    uint32_t values[Shape::keys / 4][Shape::columns];
};

/// Fragments of the query, lane by lane.
template <class Shape>
struct QueryMemory {
    uint4 at[Shape::warps][Shape::columns / 16][Shape::fragments][warp_size];
};

struct Nothing {};

/// Shared memory. Of two buffers one is this step's and the other the next one's.
template <class Shape>
struct Memory {
    alignas(16) Factors<Shape> factors[Shape::coded ? 1 : 2];
    alignas(16) std::conditional_t<Shape::query_in_registers, Nothing, QueryMemory<Shape>> query;
    alignas(16) std::conditional_t<Shape::coded, Raw<Shape>, Nothing> raw;
    uint64_t seen[2][Shape::rows];     ///< keys, bit by bit
    float key_scales[2][Shape::keys];  ///< of int8
    float value_scales[2][Shape::keys];
    float key_bias[2][Shape::keys];
    int first[Shape::warps], whole[Shape::warps];
};

/// Where row `row` of units of values lies: quads, which take the rows 4 quad + i, find
/// neighbours.
__device__ inline int value_slot(int row) {
    return (row & 16) | (row & 3) << 2 | (row >> 2 & 3);
}

/// What a block of threads computes: its row r is query (first_row + r) / group, and of the heads
/// that use kv_head the one (first_row + r) % group.
struct Tile {
    int64_t first_row;
    int rows;  ///< of the tile, at most Shape::rows
    int kv_head, group;
};

/// Worked out again where it is needed, rather than kept in registers.
template <class Shape>
__device__ Tile tile_of(const TileCall& call) {
    // The last tiles see the most keys if the rule is causal: they begin first.
    const int64_t first_row = int64_t{gridDim.x - 1 - blockIdx.x} * Shape::rows;
    const int64_t rows = std::min<int64_t>(Shape::rows, call.args.queries * call.group - first_row);
    return {first_row, static_cast<int>(rows), static_cast<int>(blockIdx.y), call.group};
}

__device__ inline int64_t query_of(const Tile& tile, int row) {
    return (tile.first_row + row) / tile.group;
}
__device__ inline int64_t head_of(const Tile& tile, int row) {
    return int64_t{tile.kv_head} * tile.group + (tile.first_row + row) % tile.group;
}
/// The query of a row, -1 if there is no such row.
template <class Shape>
__device__ int query_to_plan(const TileCall& call, int row) {
    const Tile tile = tile_of<Shape>(call);
    return row < tile.rows ? static_cast<int>(query_of(tile, row)) : -1;
}

/// The row that element i of c of a fragment belongs to.
template <class Shape>
__device__ int row_of(int fragment, int half) {
    const Lane lane = this_lane();
    return lane.warp * Shape::warp_rows + fragment * 16 + half * 8 + lane.group;
}

// ---- which keys ----

/// How the keys are gone through: each thread follows what one row sees.
struct Plan {
    int query;            ///< -1: there is no such row
    int range = 0;        ///< the first that reaches behind the last step asked for
    int whole_until = 0;  ///< every row sees all keys from the last step up to this one
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

/// The least over the threads of two numbers.
template <class Shape>
__device__ void block_min(Memory<Shape>& memory, int& first, int& whole) {
    first = warp_min(first);
    whole = warp_min(whole);
    __syncthreads();  // the last ones have been read
    if (threadIdx.x % warp_size == 0) {
        memory.first[threadIdx.x / warp_size] = first;
        memory.whole[threadIdx.x / warp_size] = whole;
    }
    __syncthreads();
    for (int w = 0; w < Shape::warps; ++w) {
        first = std::min(first, memory.first[w]);
        whole = std::min(whole, memory.whole[w]);
    }
}

/// The first step from key `begin` on of which any row sees a key; who sees which goes to
/// seen[buffer].
template <class Shape>
__device__ Step next_step(const Attention& args, Plan& plan, int begin, int buffer,
                          Memory<Shape>& memory) {
    constexpr int n = Shape::keys;
    const Sequence sequence = sequence_of(args);
    while (begin >= plan.whole_until) {
        int first = no_key;
        int whole = no_key;
        if (plan.query >= 0) {
            plan.range =
                static_cast<int>(skip_ranges(args, sequence, plan.query, plan.range, begin));
            whole = 0;
            if (plan.range < seen_ranges(args, sequence, plan.query)) {
                const KeyRange range = seen_range(args, sequence, plan.query, plan.range);
                first = static_cast<int>(std::max<int64_t>(begin, range.begin)) / n * n;
                if (range.begin <= begin) whole = static_cast<int>(range.end) / n * n;
            }
        }
        block_min(memory, first, whole);
        if (first == no_key) return {no_key, false, buffer};
        plan.whole_until = whole;
        if (begin < whole) break;
        if (first == begin) {
            const uint64_t seen =
                plan.query >= 0 ? seen_bits(args, sequence, plan.query, plan.range, begin) : 0;
            if (threadIdx.x < Shape::rows) memory.seen[buffer][threadIdx.x] = seen;
            return {begin, false, buffer};
        }
        begin = first;
    }
    return {begin, true, buffer};
}

}  // namespace mllama::cuda::tile
