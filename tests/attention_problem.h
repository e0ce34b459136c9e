// Calls of attention that tests compare: random numbers of a shape, and masks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/arguments.h"
#include "kernels/reference.h"
#include "tests/compare.h"
#include "tests/kv_memory.h"

namespace mllama::test {

struct AttentionShape {
    int64_t queries, keys, heads, kv_heads, head_dim;
};

/// Random q, k and v of a shape, with gaps between the rows of q, and a mask.
struct AttentionProblem {
    AttentionShape shape;
    std::vector<float> q;
    std::vector<uint32_t> k, v;
    std::vector<float> k_scales, v_scales;
    std::vector<float> key_bias;
    std::vector<int64_t> first;
    std::vector<KeyRange> ranges;
    Attention args;

    AttentionProblem(const AttentionShape& s, DType dtype, float logits = 1.0f, uint32_t seed = 0)
        : shape(s),
          q(Numbers(seed + 1).floats(s.queries * (s.heads * s.head_dim + 1), -logits, logits)),
          key_bias(Numbers(seed + 4).floats(s.keys)) {
        const KvLayout layout{s.kv_heads, s.head_dim, dtype};
        const int64_t width = s.kv_heads * s.head_dim;
        k = memory_of(layout, layout.key_units(), s.keys);
        v = memory_of(layout, layout.value_units(), s.keys);
        const std::vector<float> key_rows = Numbers(seed + 2).floats(s.keys * width);
        const std::vector<float> value_rows = Numbers(seed + 3).floats(s.keys * width);
        k_scales = scales_for(layout, s.keys);
        v_scales = k_scales;
        reference::store_keys(key_rows.data(), s.keys, width, layout, 0, k.data(), k_scales.data());
        reference::store_values(value_rows.data(), s.keys, width, layout, 0, v.data(),
                                v_scales.data());
        if (layout.scaled()) {
            args.k_scales = k_scales.data();
            args.v_scales = v_scales.data();
        }
        args.q = q.data();
        args.k = k.data();
        args.v = v.data();
        args.kv_dtype = dtype;
        args.queries = s.queries;
        args.keys = s.keys;
        args.heads = s.heads;
        args.kv_heads = s.kv_heads;
        args.head_dim = s.head_dim;
        args.q_stride = s.heads * s.head_dim + 1;
        args.out_stride = s.heads * s.head_dim + 2;
        args.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    }

    /// Query i sees the keys up to its own, the queries being the last keys.
    void causal() {
        for (int64_t i = 0; i < shape.queries; ++i) {
            see({{0, std::max<int64_t>(0, shape.keys - shape.queries + i + 1)}});
        }
        use_mask();
    }

    /// The same mask as a rule.
    void causal_rule() { args.visible = {nullptr, nullptr, shape.keys - shape.queries}; }

    /// Any sorted disjoint ranges, also none, and some of whole chunks.
    void random_mask() {
        Numbers numbers(7);
        for (int64_t i = 0; i < shape.queries; ++i) {
            std::vector<KeyRange> seen;
            int64_t at = numbers.below(shape.keys + 1);
            while (at < shape.keys && i % 7 != 3) {
                const int64_t end = at + 1 + numbers.below(shape.keys - at);
                seen.push_back({at, end});
                at = end + numbers.below(shape.keys);
            }
            see(seen);
        }
        use_mask();
    }

    /// A part of the queries, with the same mask.
    Attention part(int64_t begin, int64_t count, float* out) const {
        Attention one = args;
        one.q = args.q + begin * args.q_stride;
        one.queries = count;
        if (one.visible.first != nullptr) one.visible.first += begin;
        if (one.visible.causal_from >= 0) one.visible.causal_from += begin;
        one.out = out + begin * args.out_stride;
        return one;
    }

    std::vector<float> empty_output() const {
        return std::vector<float>(static_cast<size_t>(shape.queries * args.out_stride), 7.0f);
    }

  private:
    void see(const std::vector<KeyRange>& seen) {
        if (first.empty()) first.push_back(0);
        ranges.insert(ranges.end(), seen.begin(), seen.end());
        first.push_back(static_cast<int64_t>(ranges.size()));
    }

    void use_mask() { args.visible = {first.data(), ranges.data()}; }
};

/// The weights of v sum to 1 and |v| <= 1. A logit is a scaled sum of head_dim products; its error
/// moves a probability by as much, relatively. In bf16 a probability is rounded to 2^-9 of itself, by
/// the kernel and by the reference: with a key or two nothing averages out.
inline Tolerance attention_tolerance(const AttentionShape& shape, Compute compute, float logits) {
    const double depth = static_cast<double>(shape.head_dim),
                 keys = static_cast<double>(shape.keys);
    const double exact = (16.0 + depth * double{logits} + std::sqrt(keys)) * unit_roundoff;
    return {compute == Compute::bf16 ? exact + 0x1p-8 : exact, 0.0};
}

}  // namespace mllama::test
