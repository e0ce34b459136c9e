// Attention of many queries by warpgroups (FlashAttention-3, Shah et al. 2024), for devices of compute
// capability 9.0. A block of threads takes a tile of rows of one key head. Two or three warpgroups
// compute, each holding the scores, the softmax and the sums of 64 rows in registers; one more goes
// ahead of them through the steps of 64 keys, plans who sees what and has keys and values, which
// attention_pack.cu has laid out for it, copied to shared memory. Warpgroups wait for steps, never for
// each other: while one takes exponentials, another multiplies.
//
//     attention_plan.h       which keys the rows go through
//     attention_softmax.h    the online softmax
#include "kernels/cuda/attention_warpgroup.h"

namespace mllama::cuda {
namespace {

using namespace warpgroup;

/// A call whose keys and values are packed.
struct PackedCall {
    Attention args;
    int group;  ///< heads that use a key head
    Packed packed;
};

// ---- the warpgroup that plans and copies ----

/// The numbers that a step's keys have beside them, 0 behind the last.
template <class Shape>
__device__ void copy_numbers(const PackedCall& call, const Step& step, Memory<Shape>& memory) {
    const Attention& args = call.args;
    const int j = Shape::planner();
    if (j >= Shape::keys) return;
    const int64_t key = int64_t{step.begin} + j;
    const bool there = key < args.keys;
    if (args.key_bias != nullptr) memory.key_bias[step.buffer][j] = there ? args.key_bias[key] : 0;
    if (args.kv_dtype != DType::i8) return;
    const int64_t i = args.layout().scale_index(call.packed.first_head + blockIdx.y, key);
    memory.key_scales[step.buffer][j] = there ? args.k_scales[i] : 0;
    memory.value_scales[step.buffer][j] = there ? args.v_scales[i] : 0;
}

/// Starts to copy a step's keys and values, and says so to those who wait for them.
template <class Shape>
__device__ void copy_step(const PackedCall& call, const Step& step, Memory<Shape>& memory) {
    constexpr auto bytes = static_cast<unsigned>(Shape::pieces * sizeof(uint4));
    const int64_t block =
        (int64_t{step.begin / Shape::keys} * call.packed.heads + blockIdx.y) * Shape::pieces;
    Barrier& full = memory.full[step.buffer];
    full.arrive_expecting(2 * bytes);
    full.copy(memory.keys[step.buffer], call.packed.keys + block, bytes);
    full.copy(memory.values[step.buffer], call.packed.values + block, bytes);
}

template <class Shape>
__device__ void provide_steps(const PackedCall& call, Memory<Shape>& memory) {
    Plan<Shape> plan(call.args, call.group);
    int begin = 0;
    for (unsigned i = 0; begin != no_key; ++i) {
        const unsigned buffer = i % Shape::buffers;
        const unsigned round = i / Shape::buffers;
        if (round > 0) memory.empty[buffer].wait(round - 1);
        const Step step = next_step(call.args, plan, begin, static_cast<int>(buffer), memory.plan);
        const bool there = step.begin != no_key;
        if (there) copy_numbers(call, step, memory);
        const bool first = Shape::planner() == 0;
        if (first) memory.steps[buffer] = step;
        if (first && there) {
            copy_step(call, step, memory);
        } else {
            memory.full[buffer].arrive();
        }
        begin = there ? step.begin + Shape::keys : no_key;
    }
}

// ---- the warpgroups that compute ----

/// What a warp holds of its 16 rows in registers.
template <class Shape>
struct State {
    Softmax softmax;
    float out[Shape::parts][Shape::part_columns / 8][4] = {};  ///< sums of 2^(x - max) v
};

/// Of the keys of a step: a lane has keys 8 j + 2 quad and the next one.
template <class Shape>
struct Scores {
    float of[Shape::keys / 8][4];
};

template <class Shape>
struct Query {
    uint32_t at[Shape::columns / 16][4];
};

/// The row that elements 2 half and 2 half + 1 of c belong to.
[[maybe_unused]] __device__ int row_of(int half) {
    const Lane lane = this_lane();
    return lane.warp * 16 + half * 8 + lane.group;
}

/// Where the numbers of one of this lane's rows begin, in rows `stride` apart; -1: there is no such row.
template <class Shape>
__device__ int64_t place_of_row(const PackedCall& call, int half, int64_t stride) {
    const Tile tile = tile_of<Shape>(call.args, call.group, call.packed.first_head);
    const int row = row_of(half);
    if (row >= tile.rows) return -1;
    return query_of(tile, row) * stride + head_of(tile, row) * Shape::columns;
}

template <class Shape>
__device__ void load_query(const PackedCall& call, Query<Shape>& query) {
    const int quad = this_lane().quad;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int64_t place = place_of_row<Shape>(call, half, call.args.q_stride);
        const float* from = call.args.q + (place < 0 ? 0 : place) + 2 * quad;
        for (int i = 0; i < Shape::columns / 8; ++i) {
            uint32_t& unit = query.at[i / 2][i % 2 * 2 + half];
            unit = place < 0 ? 0 : pack_bf16(from[8 * i], from[8 * i + 1]);
        }
    }
}

/// Starts scores = query k^T.
template <class Shape>
__device__ void multiply_keys(const Query<Shape>& query, const uint4 (&keys)[Shape::pieces],
                              Scores<Shape>& scores) {
    constexpr int parts = Shape::columns / 64;  // and maybe one of 16 columns
    constexpr int part_pieces = 8 * Shape::keys;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
        const SharedFactor<8> factor(keys + part * part_pieces);
        for (int i = 0; i < 4; ++i)
            multiply(scores.of, query.at[4 * part + i], factor, 2 * i, part + i > 0);
    }
    if constexpr (Shape::columns % 64 != 0) {
        const SharedFactor<2> factor(keys + parts * part_pieces);
        multiply(scores.of, query.at[4 * parts], factor, 0, true);
    }
    products_commit();
}

/// Scores to logits in units of ln 2, for keys with scales or a bias.
template <class Shape>
__device__ void make_logits(const Attention& args, int buffer, const Memory<Shape>& memory,
                            Scores<Shape>& scores) {
    const int quad = this_lane().quad;
    for (int j = 0; j < Shape::keys / 8; ++j) {
        for (int i = 0; i < 4; ++i) {
            const int key = 8 * j + 2 * quad + i % 2;
            float scale = args.scale * log2_e;
            if (args.kv_dtype == DType::i8) scale *= memory.key_scales[buffer][key];
            const float bias =
                args.key_bias == nullptr ? 0.0f : log2_e * memory.key_bias[buffer][key];
            scores.of[j][i] = scores.of[j][i] * scale + bias;
        }
    }
}

/// Scores of keys that are not seen become -inf, whatever they are.
template <class Shape>
__device__ void hide_unseen(const uint64_t (&seen)[Shape::rows], Scores<Shape>& scores) {
    const int quad = this_lane().quad;
    for (int half = 0; half < 2; ++half) {
        const uint64_t mine = seen[row_of(half)] >> (2 * quad);
        for (int j = 0; j < Shape::keys / 8; ++j) {
            for (int i = 0; i < 2; ++i) {
                if ((mine >> (8 * j + i) & 1) == 0) scores.of[j][2 * half + i] = minus_infinity;
            }
        }
    }
}

/// Probabilities of the keys of a step as the factor of values.
template <class Shape>
struct Probabilities {
    uint32_t at[Shape::keys / 16][4];
};

/// Takes in the scores of a step, which become probabilities.
template <class Shape>
__device__ Raised take_scores(const Attention& args, const Step& step, const Memory<Shape>& memory,
                              Scores<Shape>& scores, Softmax& softmax) {
    const bool adjusted = args.kv_dtype == DType::i8 || args.key_bias != nullptr;
    const float factor = adjusted ? 1.0f : args.scale * log2_e;
    if (adjusted) make_logits(args, step.buffer, memory, scores);
    if (!step.whole) hide_unseen<Shape>(memory.plan.seen[step.buffer], scores);
    const Raised raised = raise_max(factor, scores.of, softmax);
    for (auto& of : scores.of) {
        for (int i = 0; i < 4; ++i) take_in(factor, raised, i / 2, of[i], softmax);
    }
    return raised;
}

/// Rounds probabilities, times the scales of the values if they have any.
template <class Shape>
__device__ void round(const Attention& args, const Step& step, const Memory<Shape>& memory,
                      Scores<Shape>& scores, Probabilities<Shape>& p) {
    const int quad = this_lane().quad;
    const bool coded = args.kv_dtype == DType::i8;
#pragma unroll
    for (int j = 0; j < Shape::keys / 8; ++j) {
        float(&of)[4] = scores.of[j];
        for (int i = 0; i < 4 && coded; ++i)
            of[i] *= memory.value_scales[step.buffer][8 * j + 2 * quad + i % 2];
        p.at[j / 2][j % 2 * 2] = pack_bf16(of[0], of[1]);
        p.at[j / 2][j % 2 * 2 + 1] = pack_bf16(of[2], of[3]);
    }
}

/// Starts out += p v.
template <class Shape>
__device__ void multiply_values(const Probabilities<Shape>& p, const uint4 (&values)[Shape::pieces],
                                State<Shape>& state) {
#pragma unroll
    for (int part = 0; part < Shape::parts; ++part) {
        const SharedFactor<8> factor(values + part * Shape::part_columns * 8);
        for (int step = 0; step < Shape::keys / 16; ++step)
            multiply(state.out[part], p.at[step], factor, 2 * step, true);
    }
    products_commit();
}

template <class Shape>
__device__ void wait_for_values(State<Shape>& state) {
    for (auto& part : state.out) products_wait<0>(part);
}

/// Pair i of a row's sums: columns 8 i + 2 quad and the next.
template <class Shape>
__device__ const float* sums_of(const State<Shape>& state, int half, int i) {
    constexpr int pairs = Shape::part_columns / 8;
    return &state.out[i / pairs][i % pairs][2 * half];
}

template <class Shape>
__device__ void store_rows(const PackedCall& call, const State<Shape>& state) {
    const Floats& out = call.args.out;
    const int quad = this_lane().quad;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float factor = last_factor(state.softmax.sum[half]);
        const int64_t place = place_of_row<Shape>(call, half, call.args.out_stride);
        if (place < 0) continue;
        const Floats to = out.from(place + 2 * quad);
        if (to.dtype == DType::f32) {
            auto* floats = static_cast<float*>(to.data);
            for (int i = 0; i < Shape::columns / 8; ++i) {
                const float* sums = sums_of(state, half, i);
                floats[8 * i] = sums[0] * factor;
                floats[8 * i + 1] = sums[1] * factor;
            }
        } else {
            for (int i = 0; i < Shape::columns / 8; ++i) {
                const float* sums = sums_of(state, half, i);
                store_float(to, 8 * i, sums[0] * factor);
                store_float(to, 8 * i + 1, sums[1] * factor);
            }
        }
    }
}

/// Waits for step number i.
template <class Shape>
__device__ Step await_step(Memory<Shape>& memory, unsigned i) {
    const unsigned buffer = i % Shape::buffers;
    memory.full[buffer].wait(i / Shape::buffers);
    return memory.steps[buffer];
}

/// This warp needs a step's buffer no more.
template <class Shape>
__device__ void leave_step(Memory<Shape>& memory, const Step& step) {
    __syncwarp();
    if (threadIdx.x % warp_size == 0) memory.empty[step.buffer].arrive();
}

/// The products of a step's probabilities with its values are started beside those of the next query
/// and keys. (The compiler waits for both in front of the exponentials. Made to wait behind them, or
/// to take 128 keys a step, the kernel was no faster on an H100.)
template <class Shape>
__device__ void compute_rows(const PackedCall& call, Memory<Shape>& memory) {
    const Attention& args = call.args;
    Query<Shape> query;
    load_query(call, query);
    State<Shape> state;
    Probabilities<Shape> p;
    Scores<Shape> scores;
    Step step = await_step(memory, 0);
    if (step.begin != no_key) {
        products_begin();
        multiply_keys(query, memory.keys[step.buffer], scores);
        products_wait<0>(scores.of);
        take_scores(args, step, memory, scores, state.softmax);
        round(args, step, memory, scores, p);
        for (unsigned i = 1;; ++i) {
            const Step next = await_step(memory, i);
            if (next.begin == no_key) break;
            products_begin();
            multiply_keys(query, memory.keys[next.buffer], scores);
            multiply_values<Shape>(p, memory.values[step.buffer], state);
            products_wait<1>(scores.of);
            const Raised raised = take_scores(args, next, memory, scores, state.softmax);
            wait_for_values(state);
            leave_step(memory, step);
            for (int part = 0; part < Shape::parts && raised.any; ++part)
                correct(raised, state.out[part]);
            round(args, next, memory, scores, p);
            step = next;
        }
        products_begin();
        multiply_values<Shape>(p, memory.values[step.buffer], state);
        wait_for_values(state);
    }
    store_rows(call, state);
}

// ---- the kernel ----

template <class Shape>
__device__ void make_barriers(Memory<Shape>& memory) {
    constexpr unsigned warps = 4 * Shape::computing;
    if (threadIdx.x == 0) {
        for (Barrier& barrier : memory.full) barrier.make(Shape::planners);
        for (Barrier& barrier : memory.empty) barrier.make(warps);
        made_barriers();
    }
    __syncthreads();
}

/// Grid: tiles of rows, key heads. Shared: Memory.
template <int columns, int computing>
__global__ void __launch_bounds__(Shape<columns, computing>::threads, 1)
    warpgroup_kernel(const __grid_constant__ PackedCall call) {
    after_previous();
    if constexpr (compiled_for_warpgroups) {
        using Shape = Shape<columns, computing>;
        auto& memory = *reinterpret_cast<Memory<Shape>*>(dynamic_shared());
        make_barriers(memory);
        if (threadIdx.x / warpgroup_size == Shape::computing) {
            give_registers_away<Shape::planning_registers>();
            provide_steps(call, memory);
        } else {
            take_registers<Shape::computing_registers>();
            compute_rows(call, memory);
        }
    }
}

template <int columns, int computing>
void attend_by(const PackedCall& call) {
    using Shape = Shape<columns, computing>;
    const Attention& args = call.args;
    const dim3 grid(static_cast<unsigned>(pieces(args.queries * call.group, Shape::rows)),
                    static_cast<unsigned>(call.packed.heads));
    launch("attention_warpgroup", warpgroup_kernel<columns, computing>, grid, Shape::threads,
           static_cast<int64_t>(sizeof(Memory<Shape>)), call);
}

/// About how long tiles of so many rows take, on a device that works on one for each processor.
template <int columns, int computing>
int64_t duration(const PackedCall& call) {
    constexpr int64_t of_tile = computing + 1;  // three take 4/3 of the time of two, not 3/2
    const int64_t rows = call.args.queries * call.group;
    const int64_t tiles = pieces(rows, Shape<columns, computing>::rows) * call.packed.heads;
    return pieces(tiles, int64_t{processors()}) * of_tile;
}

template <int columns>
void attend(const PackedCall& call) {
    if constexpr (columns > 80) {  // registers are for two
        attend_by<columns, 2>(call);
    } else if (duration<columns, 2>(call) < duration<columns, 3>(call)) {
        attend_by<columns, 2>(call);
    } else {
        attend_by<columns, 3>(call);
    }
}

/// 16 bytes each of the packed keys of a head, and of its values.
int64_t head_pieces(const Attention& args) {
    return KvLayout::blocks(args.keys) * args.head_dim * KvLayout::block / 8;
}

/// How many key heads there is room for at a time.
int64_t heads_at_a_time(const Attention& args, const Workspace& memory) {
    constexpr int64_t gaps = 512;
    const int64_t of_head = 2 * head_pieces(args) * int64_t{sizeof(uint4)};
    return std::min(args.kv_heads, (memory.left() - gaps) / of_head);
}

}  // namespace

bool warpgroup_takes(const Attention& args, const Workspace& memory) {
    constexpr int64_t least_rows = 128;  // fewer are not worth packing keys for
    const bool type = args.kv_dtype == DType::bf16 || args.kv_dtype == DType::i8;
    const bool width = args.head_dim == 64 || args.head_dim == 80 || args.head_dim == 128;
    return type && width && args.past == nullptr && args.keys > 0 &&
           args.queries * (args.heads / args.kv_heads) >= least_rows &&
           heads_at_a_time(args, memory) > 0 && has_warpgroups();
}

void attention_warpgroup(const Attention& args, Workspace& memory) {
    const int64_t heads = heads_at_a_time(args, memory);
    PackedCall call{args, static_cast<int>(args.heads / args.kv_heads), {}};
    call.packed.keys = memory.take<uint4>(heads * head_pieces(args));
    call.packed.values = memory.take<uint4>(heads * head_pieces(args));
    for (int64_t first = 0; first < args.kv_heads; first += heads) {
        call.packed.first_head = static_cast<int>(first);
        call.packed.heads = static_cast<int>(std::min(heads, args.kv_heads - first));
        pack(args, call.packed);
        if (args.head_dim == 64) {
            attend<64>(call);
        } else if (args.head_dim == 80) {
            attend<80>(call);
        } else {
            attend<128>(call);
        }
    }
}

}  // namespace mllama::cuda
