// What a block of threads of attention_tile.cu is made of: how much it takes, and where that lies in
// shared memory.
#pragma once

#include <type_traits>

#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/attention_plan.h"

namespace mllama::cuda::tile {

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

    static constexpr int buffers = 2;
    // Every thread plans.
    static constexpr int planners = threads;
    __device__ static int planner() { return static_cast<int>(threadIdx.x); }
    __device__ static void planners_meet() { __syncthreads(); }

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
    float key_scales[2][Shape::keys];  ///< of int8
    float value_scales[2][Shape::keys];
    float key_bias[2][Shape::keys];
    PlanMemory<Shape> plan;
};

/// Where row `row` of units of values lies: quads, which take the rows 4 quad + i, find
/// neighbours.
__device__ inline int value_slot(int row) {
    return (row & 16) | (row & 3) << 2 | (row >> 2 & 3);
}

/// The row that element i of c of a fragment belongs to.
template <class Shape>
__device__ int row_of(int fragment, int half) {
    const Lane lane = this_lane();
    return lane.warp * Shape::warp_rows + fragment * 16 + half * 8 + lane.group;
}

}  // namespace mllama::cuda::tile
