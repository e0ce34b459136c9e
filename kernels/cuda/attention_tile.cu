// Attention of many queries on tensor cores (FlashAttention-2, Dao 2023). A block of threads takes a
// tile of rows of one key head (a row is a query and one of the heads that use that key head) and
// goes through the blocks of 64 keys that any of them sees; each of its four warps holds 16 or 32
// rows: their scores, the state of their softmax and the sums of values stay in registers.
//
// Keys and values are copied to shared memory a whole step ahead, into the buffers that the last step
// has left:
//
//     copy         | step 1                               | step 2
//     compute      | step 0: scores = q k^T, softmax,     | step 1
//                  |         out += p v                   |
//
// int8 is copied as it is and converted to bfloat16, exactly, in shared memory; its scales are
// factors of scores and of probabilities.
//
//     attention_plan.h       which keys the rows go through
//     attention_tile.h       shared memory
//     attention_tile_copy.h  copies
//     attention_softmax.h    the online softmax
#include "kernels/cuda/attention_softmax.h"
#include "kernels/cuda/attention_tile_copy.h"

namespace mllama::cuda {
namespace {

using namespace tile;

// ---- arithmetic ----

/// What a warp holds of its rows in registers.
template <class Shape>
struct State {
    static constexpr int fragments = Shape::fragments;
    float out[fragments][Shape::columns / 8][4] = {};  ///< sums of 2^(x - max) v
    Softmax softmax[fragments];
};

/// Scores of the keys of a step: product 4 half + n is product n of attention_mma.h, of the keys from
/// 32 half on.
template <class Shape>
struct Scores {
    static constexpr int halves = Shape::keys / 32;
    float of[Shape::fragments][4 * halves][4];
};

__device__ void load_query(const Attention& args, const Tile& tile, int row, int d,
                           float (&to)[4]) {
    const bool there = row < tile.rows && d < args.head_dim;
    const float* from = args.q;
    if (there) from += query_of(tile, row) * args.q_stride + head_of(tile, row) * args.head_dim + d;
    for (int i = 0; i < 4; ++i) to[i] = there ? from[i] : 0.0f;
}

/// A warp's query.
template <class Shape>
struct Query {
    QueryPart at[Shape::columns / 16][Shape::fragments];
};

/// Where the query lies: if it is to go on to registers, where other things come later.
template <class Shape>
__device__ QueryMemory<Shape>& query_memory(Memory<Shape>& memory) {
    if constexpr (Shape::query_in_registers) {
        static_assert(sizeof(QueryMemory<Shape>) <= sizeof(memory));
        return reinterpret_cast<QueryMemory<Shape>&>(memory);
    } else {
        return memory.query;
    }
}

template <class Shape>
__device__ QueryPart kept_query(const QueryMemory<Shape>& memory, int step, int f) {
    const uint4 part = memory.at[this_lane().warp][step][f][threadIdx.x % warp_size];
    return {{part.x, part.y, part.z, part.w}};
}

/// Each lane keeps its own parts of fragments: nobody waits for them.
template <class Shape>
__device__ void keep_query(const TileCall& call, QueryMemory<Shape>& memory) {
    const Tile tile = tile_of<Shape>(call.args, call.group);
    const Lane lane = this_lane();
    for (int step = 0; step < Shape::columns / 16; ++step) {
        for (int f = 0; f < Shape::fragments; ++f) {
            float low_row[4], high_row[4];
            load_query(call.args, tile, row_of<Shape>(f, 0), 16 * step + 4 * lane.quad, low_row);
            load_query(call.args, tile, row_of<Shape>(f, 1), 16 * step + 4 * lane.quad, high_row);
            const QueryPart part = query_part(low_row, high_row);
            memory.at[lane.warp][step][f][threadIdx.x % warp_size] = {part.at[0], part.at[1],
                                                                      part.at[2], part.at[3]};
        }
    }
}

template <class Shape>
__device__ void load_registers(const QueryMemory<Shape>& memory, Query<Shape>& query) {
#pragma unroll
    for (int step = 0; step < Shape::columns / 16; ++step) {
        for (int f = 0; f < Shape::fragments; ++f) query.at[step][f] = kept_query(memory, step, f);
    }
}

template <class Shape>
__device__ void multiply_keys(const Query<Shape>& query, const Memory<Shape>& memory,
                              const Factors<Shape>& factors, Scores<Shape>& scores) {
    constexpr int stride = Shape::key_stride;
    const Lane lane = this_lane();
    scores = {};
#pragma unroll
    for (int step = 0; step < Shape::columns / 16; ++step) {
        QueryPart q[Shape::fragments];
        for (int f = 0; f < Shape::fragments; ++f) {
            if constexpr (Shape::query_in_registers) {
                q[f] = query.at[step][f];
            } else {
                q[f] = kept_query(memory.query, step, f);
            }
        }
        for (int half = 0; half < scores.halves; ++half) {
            const uint32_t* from =
                &factors.keys[8 * step + 2 * lane.quad][32 * half + 4 * lane.group];
            const Units low = load_units(from);
            const Units high = load_units(from + stride);
            for (int n = 0; n < 4; ++n) {
                for (int f = 0; f < Shape::fragments; ++f)
                    mma_bf16(scores.of[f][4 * half + n], q[f].at, {low.at[n], high.at[n]});
            }
        }
    }
}

/// Scores to logits in units of ln 2, for keys with scales or a bias.
template <class Shape>
__device__ void make_logits(const Attention& args, int buffer, const Memory<Shape>& memory,
                            Scores<Shape>& scores) {
    const float factor = args.scale * log2_e;
    const bool biased = args.key_bias != nullptr;
    for (int half = 0; half < scores.halves; ++half) {
        for (int n = 0; n < 4; ++n) {
            for (int i = 0; i < 2; ++i) {
                const int j = 32 * half + key_of(n, i);
                float scale = factor;
                if constexpr (Shape::coded) scale *= memory.key_scales[buffer][j];
                const float bias = biased ? log2_e * memory.key_bias[buffer][j] : 0.0f;
                for (int f = 0; f < Shape::fragments; ++f) {
                    float(&of)[4] = scores.of[f][4 * half + n];
                    of[i] = of[i] * scale + bias;
                    of[i + 2] = of[i + 2] * scale + bias;
                }
            }
        }
    }
}

/// Scores of keys that are not seen become -inf, whatever they are.
template <class Shape>
__device__ void hide_unseen(const uint64_t (&seen)[Shape::rows], Scores<Shape>& scores) {
    for (int f = 0; f < Shape::fragments; ++f) {
        for (int row_half = 0; row_half < 2; ++row_half) {
            const uint64_t bits = seen[row_of<Shape>(f, row_half)];
            for (int half = 0; half < scores.halves; ++half) {
                const auto mine = static_cast<uint32_t>(bits >> (32 * half));
                for (int n = 0; n < 4; ++n) {
                    for (int i = 0; i < 2; ++i) {
                        if ((mine >> key_of(n, i) & 1) == 0)
                            scores.of[f][4 * half + n][2 * row_half + i] = minus_infinity;
                    }
                }
            }
        }
    }
}

/// The half of step `step` of a lane's scores p (4, 4) of 32 keys to 2^(x - max).
__device__ void take_half(float factor, const Raised& raised, int step, float (*p)[4],
                          Softmax& softmax) {
    for (int row = 0; row < 2; ++row) {
        for (int n = 0; n < 4; ++n) take_in(factor, raised, row, p[n][2 * row + step % 2], softmax);
    }
}

/// The same half times the scales of the values.
__device__ void scale_by_values(const float* scales, int step, float (*p)[4]) {
    for (int n = 0; n < 4; ++n) {
        const float scale = scales[step / 2 * 32 + key_of(n, step % 2)];
        p[n][step % 2] *= scale;
        p[n][2 + step % 2] *= scale;
    }
}

/// out += p v, 32 columns at a time, and the last 16.
template <class Shape>
__device__ void multiply_values(const float* scales, const Factors<Shape>& factors, float factor,
                                Scores<Shape>& scores, State<Shape>& state) {
    constexpr int stride = Shape::value_stride;
    constexpr int whole_parts = Shape::columns / 32;
    const Lane lane = this_lane();
    Raised raised[Shape::fragments];
    for (int f = 0; f < Shape::fragments; ++f) {
        raised[f] = raise_max(factor, scores.of[f], state.softmax[f]);
        if (raised[f].any) correct(raised[f], state.out[f]);
    }
    for (int step = 0; step < 2 * scores.halves; ++step) {
        QueryPart a[Shape::fragments];
        for (int f = 0; f < Shape::fragments; ++f) {
            float(*p)[4] = &scores.of[f][step / 2 * 4];
            take_half(factor, raised[f], step, p, state.softmax[f]);
            if constexpr (Shape::coded) scale_by_values(scales, step, p);
            a[f] = probability_part(p, step % 2);
        }
        const uint32_t* row = factors.values[step / 2 * 16 + step % 2 * 8 + lane.quad];
        for (int part = 0; part < whole_parts; ++part) {
            const Units low = load_units(row + 32 * part + 4 * lane.group);
            const Units high = load_units(row + 4 * stride + 32 * part + 4 * lane.group);
            for (int n = 0; n < 4; ++n) {
                for (int f = 0; f < Shape::fragments; ++f)
                    mma_bf16(state.out[f][4 * part + n], a[f].at, {low.at[n], high.at[n]});
            }
        }
        if constexpr (Shape::columns % 32 != 0) {
            const uint32_t* last = row + 32 * whole_parts + 2 * lane.group;
            const uint2 low = *reinterpret_cast<const uint2*>(last);
            const uint2 high = *reinterpret_cast<const uint2*>(last + 4 * stride);
            for (int f = 0; f < Shape::fragments; ++f) {
                mma_bf16(state.out[f][4 * whole_parts], a[f].at, {low.x, high.x});
                mma_bf16(state.out[f][4 * whole_parts + 1], a[f].at, {low.y, high.y});
            }
        }
    }
}

/// The column of element i of c of a product with values.
template <int columns>
__device__ int column_of(int product, int i) {
    constexpr int whole = columns / 32 * 4;
    if (product < whole) return product / 4 * 32 + key_of(product % 4, i);
    return whole * 8 + this_lane().quad * 4 + i % 2 * 2 + product - whole;
}

/// The rows of one half of a fragment, of which `out` are the sums.
template <int columns, int half>
__device__ void store_half(const Attention& args, const Tile& tile, int row, float sum,
                           const float (&out)[columns / 8][4]) {
    const float factor = last_factor(sum);
    if (row >= tile.rows) return;
    const Floats to =
        args.out.from(query_of(tile, row) * args.out_stride + head_of(tile, row) * args.head_dim);
    for (int product = 0; product < columns / 8; ++product) {
        for (int i = 0; i < 2; ++i) {
            const int d = column_of<columns>(product, i);
            if (d < args.head_dim) store_float(to, d, out[product][2 * half + i] * factor);
        }
    }
}

template <class Shape>
__device__ void store_fragment(const TileCall& call, int f, const float (&sum)[2],
                               const float (&out)[Shape::columns / 8][4]) {
    const Tile tile = tile_of<Shape>(call.args, call.group);
    store_half<Shape::columns, 0>(call.args, tile, row_of<Shape>(f, 0), sum[0], out);
    store_half<Shape::columns, 1>(call.args, tile, row_of<Shape>(f, 1), sum[1], out);
}

/// No loop, which might not be unrolled: registers have no index.
template <class Shape>
__device__ void store_rows(const TileCall& call, const State<Shape>& state) {
    static_assert(Shape::fragments <= 2);
    store_fragment<Shape>(call, 0, state.softmax[0].sum, state.out[0]);
    if constexpr (Shape::fragments == 2)
        store_fragment<Shape>(call, 1, state.softmax[1].sum, state.out[1]);
}

// ---- the kernel ----

/// A step's part of the sums.
template <class Shape>
__device__ void take_step(const Attention& args, const Step& step, const Query<Shape>& query,
                          const Memory<Shape>& memory, State<Shape>& state) {
    const Factors<Shape>& factors = memory.factors[Shape::coded ? 0 : step.buffer];
    const bool adjusted = Shape::coded || args.key_bias != nullptr;
    Scores<Shape> scores;
    multiply_keys(query, memory, factors, scores);
    if (adjusted) make_logits(args, step.buffer, memory, scores);
    if (!step.whole) hide_unseen(memory.plan.seen[step.buffer], scores);
    const float factor = adjusted ? 1.0f : args.scale * log2_e;
    multiply_values(memory.value_scales[step.buffer], factors, factor, scores, state);
}

/// Grid: tiles of rows, key heads. Shared: Memory.
template <int columns, bool coded>
__global__ void __launch_bounds__(TileShape<columns, coded>::threads,
                                  TileShape<columns, coded>::blocks)
    tile_kernel(const __grid_constant__ TileCall call) {
    after_previous();
    using Shape = TileShape<columns, coded>;
    auto& memory = *reinterpret_cast<Memory<Shape>*>(dynamic_shared());
    Plan<Shape> plan(call.args, call.group);
    State<Shape> state;
    Query<Shape> query;
    keep_query(call, query_memory(memory));
    if constexpr (Shape::query_in_registers) load_registers(query_memory(memory), query);

    // The first turn only starts copies, so that the code of a turn is there once.
    for (Step step{-Shape::keys, true, 1}; step.begin != no_key;) {
        const bool there = step.begin >= 0;
        copy_async_wait<0>();
        __syncthreads();  // this step's copies are there, the last step's have been read
        if (there) prepare(call.args, step, memory);
        const Step next =
            next_step(call.args, plan, step.begin + Shape::keys, 1 - step.buffer, memory.plan);
        if (next.begin != no_key) start_copies(call, next, memory);
        if (there) take_step(call.args, step, query, memory, state);
        step = next;
    }
    store_rows(call, state);
}

template <int columns, bool coded>
void attend_as(const Attention& args) {
    using Shape = TileShape<columns, coded>;
    const int64_t rows = args.queries * (args.heads / args.kv_heads);
    const dim3 grid(static_cast<unsigned>(pieces(rows, Shape::rows)),
                    static_cast<unsigned>(args.kv_heads));
    launch("attention_tile", tile_kernel<columns, coded>, grid, Shape::threads,
           static_cast<int64_t>(sizeof(Memory<Shape>)), TileCall(args));
}

template <int columns>
void attend(const Attention& args) {
    if (args.kv_dtype == DType::i8) {
        attend_as<columns, true>(args);
    } else {
        attend_as<columns, false>(args);
    }
}

}  // namespace

bool tile_takes(const Attention& args) {
    return (args.kv_dtype == DType::bf16 || args.kv_dtype == DType::i8) && args.head_dim % 8 == 0 &&
           args.head_dim <= 128 && aligned_blocks(args);
}

void attention_tile(const Attention& args) {
    if (args.head_dim <= 16) {
        attend<16>(args);
    } else if (args.head_dim <= 32) {
        attend<32>(args);
    } else if (args.head_dim <= 64) {
        attend<64>(args);
    } else if (args.head_dim <= 80) {
        attend<80>(args);
    } else if (args.head_dim <= 96) {
        attend<96>(args);
    } else {
        attend<128>(args);
    }
}

}  // namespace mllama::cuda
