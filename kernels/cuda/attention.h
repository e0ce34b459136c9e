// What the kernels of attention share: who sees which keys, and partial results.
//
//     attention.cu            any call: a block of threads for each query and head
//     attention_decode.cu     few queries: the keys are cut into pieces, each for a block of threads
//     attention_tile.cu       many queries: tiles of queries on tensor cores
//     attention_warpgroup.cu  the same on devices of compute capability 9.0, up to twice as fast
//
// Logits are taken in units of ln 2 everywhere, so that exp(logit) = 2^x: the scale of attention
// and log2(e) are one factor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/arguments.h"
#include "kernels/cuda/together.h"
#include "kernels/cuda/warp.h"
#include "kernels/cuda/workspace.h"

namespace mllama::cuda {

inline constexpr float log2_e = 1.44269504f;
inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/// The keys of a call, and who sees them.
struct Sequence {
    int64_t keys;
    int64_t causal_from;
};

__device__ inline Sequence sequence_of(const Attention& args) {
    if (args.past == nullptr) return {args.keys, args.visible.causal_from};
    return {*args.past + args.queries, *args.past};
}

/// The ranges of keys that a query sees, and one of them; a rule without ranges is one range.
__device__ inline int64_t seen_ranges(const Attention& args, const Sequence& sequence,
                                      int64_t query) {
    const int64_t* first = args.visible.first;
    return sequence.causal_from >= 0 || first == nullptr ? 1 : first[query + 1] - first[query];
}
__device__ inline KeyRange seen_range(const Attention& args, const Sequence& sequence,
                                      int64_t query, int64_t i) {
    if (sequence.causal_from >= 0)
        return {0, std::min(sequence.keys, sequence.causal_from + query + 1)};
    if (args.visible.first == nullptr) return {0, sequence.keys};
    const KeyRange& range = args.visible.ranges[args.visible.first[query] + i];
    return {range.begin, std::min(sequence.keys, range.end)};
}

/// The first range from i on that holds `key` or keys behind it: not one that is empty, or begins
/// behind the last key.
__device__ inline int64_t skip_ranges(const Attention& args, const Sequence& sequence,
                                      int64_t query, int64_t i, int64_t key) {
    const int64_t count = seen_ranges(args, sequence, query);
    for (; i < count; ++i) {
        const KeyRange range = seen_range(args, sequence, query, i);
        if (std::max(range.begin, key) < range.end) break;
    }
    return i;
}

/// Which of the 64 keys from `begin` on a query sees, bit by bit; range i is the first that may show
/// one of them.
__device__ inline uint64_t seen_bits(const Attention& args, const Sequence& sequence, int64_t query,
                                     int64_t i, int64_t begin) {
    constexpr int64_t n = KvLayout::block;
    const int64_t count = seen_ranges(args, sequence, query);
    uint64_t bits = 0;
    for (; i < count; ++i) {
        const KeyRange range = seen_range(args, sequence, query, i);
        if (range.begin >= begin + n) break;
        const int64_t from = std::max<int64_t>(range.begin - begin, 0);
        const int64_t to = std::min(range.end - begin, n);
        if (from < to) bits |= ~uint64_t{0} >> (n - (to - from)) << from;
    }
    return bits;
}

/// What is subtracted from logits before they are exponents: the largest so far, but never -inf,
/// which would make a NaN of a key that is not seen.
__device__ inline float shift_of(float max) {
    return max == minus_infinity ? 0.0f : max;
}

/// Softmax over the keys of each piece, for each query and head: the largest logit, the sum of
/// 2^(x - max) and the sums of their products with values. The pieces begin at multiples of
/// piece_keys whatever there is behind them, so that a result depends on its keys alone.
struct Partials {
    static constexpr int64_t piece_keys = 2 * KvLayout::block;

    int64_t pieces = 0;    ///< 0: there are no partial results
    float* max = nullptr;  ///< (queries, heads, pieces)
    float* sum = nullptr;  ///< (queries, heads, pieces)
    float* out = nullptr;  ///< (queries, heads, pieces, head_dim); not written where a query sees
                           ///< no key of the piece
};

/// A call of few queries, a block for each of its pieces.
struct DecodeCall {
    Attention args;
    Partials partials;
};

/// Calls that are launched together: of as many queries and heads, of one head_dim and type of keys.
using DecodeCalls = Together<DecodeCall, most_sequences>;

/// What all calls have in common is read from the first: at a fixed address it takes no registers.
__device__ inline Attention args_of(const DecodeCalls& calls, unsigned call) {
    const Attention& first = calls.of[0].args;
    Attention args = calls.of[call].args;
    args.queries = first.queries;
    args.heads = first.heads;
    args.kv_heads = first.kv_heads;
    args.head_dim = first.head_dim;
    return args;
}

/// Whether the blocks of keys and values can be loaded 16 bytes at a time.
inline bool aligned_blocks(const Attention& args) {
    return (reinterpret_cast<uintptr_t>(args.k) | reinterpret_cast<uintptr_t>(args.v)) % 16 == 0;
}

/// Whether attention_decode.cu and attention_tile.cu can compute a call with factors of bfloat16.
bool decode_takes(const Attention& args);
bool tile_takes(const Attention& args);

/// The same for attention_warpgroup.cu, which needs room for packed keys and values, of one key head
/// at least.
bool warpgroup_takes(const Attention& args, const Workspace& memory);

/// The partial results of all pieces, of calls that decode_takes.
void attention_decode(const DecodeCalls& calls);
void attention_tile(const Attention& args);
void attention_warpgroup(const Attention& args, Workspace& memory);

}  // namespace mllama::cuda
