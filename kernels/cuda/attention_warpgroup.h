// What a block of threads of attention_warpgroup.cu is made of, and what lies in its shared memory.
#pragma once

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/attention_softmax.h"
#include "kernels/cuda/barrier.h"
#include "kernels/cuda/warpgroup.h"

namespace mllama::cuda::warpgroup {

using namespace tile;

/// Keys and values of some key heads of a call, (blocks, heads) times what attention_pack.cu says.
struct Packed {
    uint4* keys;    ///< blocks * heads * head_dim * 8
    uint4* values;  ///< the same
    int first_head, heads;
};

/// Packs the keys and values of a call.
void pack(const Attention& args, const Packed& packed);

/// Two or three warpgroups that compute, 64 rows each, and behind them one that plans the steps and
/// copies.
template <int columns_, int computing_>
struct Shape {
    static constexpr int columns = columns_;  ///< head_dim
    static constexpr int computing = computing_;
    static constexpr int rows = 64 * computing;
    static constexpr int planners = static_cast<int>(warpgroup_size);
    static constexpr int threads = 64 * 2 * computing + planners;
    static constexpr int keys = block_keys;            ///< of a step
    static constexpr int buffers = 4;                  ///< steps that are on their way or computed
    static constexpr int pieces = columns / 8 * keys;  ///< of 16 bytes, of a step's keys or values
    static_assert(columns % 64 == 0 || columns % 64 == 16);

    // A product has at most 80 columns: values are taken in one part or two.
    static constexpr int parts = columns > 80 ? 2 : 1;
    static constexpr int part_columns = columns / parts;

    // Of 65,536 registers; a kernel's threads have the same number to begin with.
    static constexpr unsigned computing_registers = computing == 2 ? 216 : 152;
    static constexpr unsigned planning_registers = computing == 2 ? 72 : 56;

    __device__ static int planner() { return static_cast<int>(threadIdx.x % warpgroup_size); }
    __device__ static void planners_meet() { group_barrier(1, warpgroup_size); }
};

/// Shared memory.
template <class Shape>
struct Memory {
    alignas(1024) uint4 keys[Shape::buffers][Shape::pieces];
    alignas(1024) uint4 values[Shape::buffers][Shape::pieces];
    float key_scales[Shape::buffers][Shape::keys];  ///< of int8
    float value_scales[Shape::buffers][Shape::keys];
    float key_bias[Shape::buffers][Shape::keys];
    PlanMemory<Shape> plan;
    Step steps[Shape::buffers];
    Barrier full[Shape::buffers];   ///< a step is there
    Barrier empty[Shape::buffers];  ///< its buffer may be overwritten
};

}  // namespace mllama::cuda::warpgroup
