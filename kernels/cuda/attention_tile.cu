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
#include <type_traits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma.h"
#include "kernels/rounding.h"

namespace mllama::cuda {
namespace {

constexpr int block_keys = KvLayout::block;
constexpr int no_key = std::numeric_limits<int>::max();

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
__device__ int value_slot(int row) {
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

__device__ int64_t query_of(const Tile& tile, int row) {
    return (tile.first_row + row) / tile.group;
}
__device__ int64_t head_of(const Tile& tile, int row) {
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

__device__ int warp_min(int x) {
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

// ---- copies ----

/// Keys of a step.
template <class Shape>
__device__ int keys_in(const Attention& args, int begin) {
    return static_cast<int>(std::min<int64_t>(Shape::keys, sequence_of(args).keys - begin));
}

/// Where the block of one head that holds key `begin` lies, in blocks of so many bytes.
__device__ const uint32_t* block_of(const TileCall& call, const void* blocks, int64_t bytes,
                                    int begin) {
    const int64_t i = int64_t{begin / block_keys} * call.args.kv_heads + blockIdx.y;
    return reinterpret_cast<const uint32_t*>(static_cast<const char*>(blocks) + i * bytes);
}

/// Starts to copy a step's keys: rows of units to `all_rows` rows `stride` units apart; zeros for
/// rows that are not there.
template <class Shape, int all_rows, int stride>
__device__ void copy_keys(const TileCall& call, int begin, uint32_t* to) {
    constexpr int row_threads = Shape::keys / 4;
    constexpr int pass_rows = Shape::threads / row_threads;
    const uint32_t* from = block_of(call, call.args.k, call.key_bytes, begin) + begin % block_keys;
    const int first_row = static_cast<int>(threadIdx.x) / row_threads;
    const int column = static_cast<int>(threadIdx.x) % row_threads * 4;
    for (int row = first_row; row < all_rows; row += pass_rows) {
        const bool there = row < call.key_rows;
        copy_async_16(to + row * stride + column, there ? from + row * block_keys + column : from,
                      there);
    }
}

/// The same for values: rows of `columns` units, zeros behind head_dim and in rows of units that hold
/// no key. Row r goes to row value_slot(r), or r if they are not `slotted` yet.
template <class Shape, int unit, int stride, bool slotted>
__device__ void copy_values(const TileCall& call, int begin, uint32_t* to) {
    constexpr int rows = Shape::keys / unit;
    constexpr int row_threads = 4;  // the parts of a row begin at multiples of 16 units
    constexpr int pass_columns = 4 * Shape::threads / rows;
    const int width = call.part_width;
    const uint32_t* from =
        block_of(call, call.args.v, call.value_bytes, begin) + begin % block_keys / unit * width;
    const int thread = static_cast<int>(threadIdx.x);
    const int row = thread / row_threads % rows;
    const int first_column = thread / (row_threads * rows) * 16 + thread % row_threads * 4;
    const bool row_there = row * unit < keys_in<Shape>(call.args, begin);
    to += (slotted ? value_slot(row) : row) * stride;
    for (int column = first_column; column < Shape::columns; column += pass_columns) {
        const bool there = row_there && column < call.args.head_dim;
        const int part = column >= width ? 1 : 0;  // there are at most two
        const uint32_t* place =
            from + row * width + column + part * (block_keys / unit - 1) * width;
        copy_async_16(to + column, there ? place : from, there);
    }
}

/// The numbers that a step's keys have beside them, 0 behind the last.
template <class Shape>
__device__ void copy_numbers(const TileCall& call, const Step& step, Memory<Shape>& memory) {
    const Attention& args = call.args;
    const int j = static_cast<int>(threadIdx.x);
    if (j >= Shape::keys) return;
    const bool there = j < keys_in<Shape>(args, step.begin);
    const int from = there ? step.begin + j : 0;
    if (args.key_bias != nullptr)
        copy_async_4(&memory.key_bias[step.buffer][j], args.key_bias + from, there);
    if constexpr (Shape::coded) {
        const int64_t i = args.layout().scale_index(blockIdx.y, from);
        copy_async_4(&memory.key_scales[step.buffer][j], args.k_scales + i, there);
        copy_async_4(&memory.value_scales[step.buffer][j], args.v_scales + i, there);
    }
}

/// Starts to copy what a step takes, one group of copies.
template <class Shape>
__device__ void start_copies(const TileCall& call, const Step& step, Memory<Shape>& memory) {
    if constexpr (Shape::coded) {
        auto& raw = memory.raw;
        copy_keys<Shape, Shape::columns / 4, Shape::keys>(call, step.begin, raw.keys[0]);
        copy_values<Shape, 4, Shape::columns, false>(call, step.begin, raw.values[0]);
    } else {
        auto& to = memory.factors[step.buffer];
        copy_keys<Shape, Shape::columns / 2, Shape::key_stride>(call, step.begin, to.keys[0]);
        copy_values<Shape, 2, Shape::value_stride, true>(call, step.begin, to.values[0]);
    }
    copy_numbers(call, step, memory);
    copy_async_commit();
}

/// If the last row of units is half a key, the other half, which is no number, becomes 0. All
/// threads call.
template <class Shape>
__device__ void clear_behind(const Attention& args, int begin, Factors<Shape>& factors) {
    const int keys = keys_in<Shape>(args, begin);
    if (keys % 2 == 0) return;
    uint32_t* row = factors.values[value_slot(keys / 2)];
    for (int i = static_cast<int>(threadIdx.x); i < Shape::columns; i += Shape::threads)
        row[i] &= 0xFFFFu;
    __syncthreads();
}

/// Four units of int8 to two rows of bfloat16.
__device__ void convert_units(const uint32_t* from, uint32_t* low, uint32_t* high) {
    const Units units = load_units(from);
    Units lows, highs;
    for (int i = 0; i < 4; ++i) {
        const Pair pair = int8_to_bf16(units.at[i]);
        lows.at[i] = pair.low;
        highs.at[i] = pair.high;
    }
    store_units(low, lows);
    store_units(high, highs);
}

template <class Shape>
__device__ void convert_keys(const Raw<Shape>& raw, Factors<Shape>& factors) {
    constexpr int row_copies = Shape::keys / 4;
    for (int i = static_cast<int>(threadIdx.x); i < Shape::columns / 4 * row_copies;
         i += Shape::threads) {
        const int row = i / row_copies;
        const int column = i % row_copies * 4;
        convert_units(&raw.keys[row][column], &factors.keys[2 * row][column],
                      &factors.keys[2 * row + 1][column]);
    }
}

template <class Shape>
__device__ void convert_values(const Raw<Shape>& raw, Factors<Shape>& factors) {
    constexpr int row_copies = Shape::columns / 4;
    for (int i = static_cast<int>(threadIdx.x); i < Shape::keys / 4 * row_copies;
         i += Shape::threads) {
        const int row = i / row_copies;
        const int column = i % row_copies * 4;
        convert_units(&raw.values[row][column], &factors.values[value_slot(2 * row)][column],
                      &factors.values[value_slot(2 * row + 1)][column]);
    }
}

/// What was copied becomes what is multiplied; then all threads may read it.
template <class Shape>
__device__ void prepare(const Attention& args, const Step& step, Memory<Shape>& memory) {
    if constexpr (Shape::coded) {
        convert_keys(memory.raw, memory.factors[0]);
        convert_values(memory.raw, memory.factors[0]);
        __syncthreads();
    } else {
        clear_behind(args, step.begin, memory.factors[step.buffer]);
    }
}

// ---- arithmetic ----

/// What a warp holds of its rows in registers.
template <class Shape>
struct State {
    static constexpr int fragments = Shape::fragments;
    float out[fragments][Shape::columns / 8][4] = {};  ///< sums of 2^(x - max) v
    float sum[fragments][2] = {};  ///< sums of 2^(x - max), a lane's part of them
    float max[fragments][2];       ///< about the largest score so far, times `factor` a logit

    __device__ State() {
        for (auto& of_fragment : max) of_fragment[0] = of_fragment[1] = minus_infinity;
    }
};

/// Scores of the keys of a step: of each 32 of them the four products of attention_mma.h.
template <class Shape>
struct Scores {
    static constexpr int halves = Shape::keys / 32;
    float of[Shape::fragments][halves][4][4];
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
    const Tile tile = tile_of<Shape>(call);
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
                    mma_bf16(scores.of[f][half][n], q[f].at, {low.at[n], high.at[n]});
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
                    float(&of)[4] = scores.of[f][half][n];
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
                            scores.of[f][half][n][2 * row_half + i] = minus_infinity;
                    }
                }
            }
        }
    }
}

/// The largest of a row's scores, half `row_half` of the fragment.
template <int halves>
__device__ float largest(const float (&scores)[halves][4][4], int row_half) {
    float max = minus_infinity;
    for (int half = 0; half < halves; ++half) {
        for (int n = 0; n < 4; ++n) {
            const float(&of)[4] = scores[half][n];
            max = fmaxf(max, fmaxf(of[2 * row_half], of[2 * row_half + 1]));
        }
    }
    return row_max(max);
}

/// What was summed so far times a correction for each row.
template <class Shape>
__device__ void correct(const float (&by)[Shape::fragments][2], State<Shape>& state) {
    for (int f = 0; f < Shape::fragments; ++f) {
        for (int product = 0; product < Shape::columns / 8; ++product) {
            for (int i = 0; i < 4; ++i) state.out[f][product][i] *= by[f][i / 2];
        }
        for (int row_half = 0; row_half < 2; ++row_half) state.sum[f][row_half] *= by[f][row_half];
    }
}

/// Takes the largest scores into account: where the max is raised, what was summed so far is brought
/// to the new one. shift: what is subtracted from the logits of each row.
template <class Shape>
__device__ void raise_max(float factor, const Scores<Shape>& scores, State<Shape>& state,
                          float (&shift)[Shape::fragments][2]) {
    constexpr float slack = 8;  // exponents up to this are as exact: most steps correct nothing
    float correction[Shape::fragments][2];
    bool raised = false;
    for (int f = 0; f < Shape::fragments; ++f) {
        for (int row_half = 0; row_half < 2; ++row_half) {
            float& max = state.max[f][row_half];
            const float found = largest(scores.of[f], row_half);
            // Of the row's own numbers alone: a row never depends on others of its warp.
            const bool raise = found > max && !((found - max) * factor <= slack);
            const float old = max;
            if (raise) max = found;
            shift[f][row_half] = shift_of(max * factor);
            correction[f][row_half] = raise ? exp2_fast(old * factor - shift[f][row_half]) : 1.0f;
            raised = raised || raise;
        }
    }
    if (__any_sync(whole_warp, raised)) correct(correction, state);
}

/// Half of a lane's scores of 32 keys to 2^(x - max).
__device__ void take_in(float factor, const float (&shift)[2], float (&scores)[4][4], int half,
                        float (&sum)[2]) {
    for (int row_half = 0; row_half < 2; ++row_half) {
        for (int n = 0; n < 4; ++n) {
            float& p = scores[n][2 * row_half + half];
            p = exp2_fast(fmaf(p, factor, -shift[row_half]));
            sum[row_half] += p;
        }
    }
}

/// The same half of step `step` times the scales of the values.
__device__ void scale_by_values(const float* scales, int step, float (&p)[4][4]) {
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
    float shift[Shape::fragments][2];
    raise_max(factor, scores, state, shift);
    for (int step = 0; step < 2 * scores.halves; ++step) {
        QueryPart a[Shape::fragments];
        for (int f = 0; f < Shape::fragments; ++f) {
            float(&p)[4][4] = scores.of[f][step / 2];
            take_in(factor, shift[f], p, step % 2, state.sum[f]);
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
    sum = row_sum(sum);
    if (row >= tile.rows) return;
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    float* to =
        args.out + query_of(tile, row) * args.out_stride + head_of(tile, row) * args.head_dim;
    for (int product = 0; product < columns / 8; ++product) {
        for (int i = 0; i < 2; ++i) {
            const int d = column_of<columns>(product, i);
            if (d < args.head_dim) to[d] = out[product][2 * half + i] * factor;
        }
    }
}

template <class Shape>
__device__ void store_fragment(const TileCall& call, int f, const float (&sum)[2],
                               const float (&out)[Shape::columns / 8][4]) {
    const Tile tile = tile_of<Shape>(call);
    store_half<Shape::columns, 0>(call.args, tile, row_of<Shape>(f, 0), sum[0], out);
    store_half<Shape::columns, 1>(call.args, tile, row_of<Shape>(f, 1), sum[1], out);
}

/// No loop, which might not be unrolled: registers have no index.
template <class Shape>
__device__ void store_rows(const TileCall& call, const State<Shape>& state) {
    static_assert(Shape::fragments <= 2);
    store_fragment<Shape>(call, 0, state.sum[0], state.out[0]);
    if constexpr (Shape::fragments == 2) store_fragment<Shape>(call, 1, state.sum[1], state.out[1]);
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
    if (!step.whole) hide_unseen(memory.seen[step.buffer], scores);
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
    Plan plan{query_to_plan<Shape>(call, static_cast<int>(threadIdx.x))};
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
            next_step(call.args, plan, step.begin + Shape::keys, 1 - step.buffer, memory);
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
