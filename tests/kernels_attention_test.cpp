// Attention of every table against the reference, and its independence of how queries are split.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/kv_layout.h"
#include "kernels/reference.h"
#include "tests/compare.h"

namespace mllama::test {
namespace {

struct Shape {
    int64_t queries, keys, heads, kv_heads, head_dim;
};

/// Keys or values in units, behind which there is no number.
std::vector<uint32_t> not_numbers(int64_t units) {
    return std::vector<uint32_t>(static_cast<size_t>(units), 0xFFFFFFFFu);
}

/// Random q, k and v of a shape, with gaps between the rows of q, and a mask.
struct Problem {
    Shape shape;
    std::vector<float> q;
    std::vector<uint32_t> k, v;
    std::vector<float> k_scales, v_scales;
    std::vector<float> key_bias;
    std::vector<int64_t> first;
    std::vector<KeyRange> ranges;
    Attention args;

    Problem(const Shape& s, DType dtype, float logits = 1.0f)
        : shape(s),
          q(Numbers(1).floats(s.queries * (s.heads * s.head_dim + 1), -logits, logits)),
          key_bias(Numbers(4).floats(s.keys)) {
        const KvLayout layout{s.kv_heads, s.head_dim, dtype};
        const int64_t blocks = KvLayout::blocks(s.keys), width = s.kv_heads * s.head_dim;
        k = not_numbers(blocks * s.kv_heads * layout.key_units());
        v = not_numbers(blocks * s.kv_heads * layout.value_units());
        const std::vector<float> key_rows = Numbers(2).floats(s.keys * width);
        const std::vector<float> value_rows = Numbers(3).floats(s.keys * width);
        k_scales.assign(static_cast<size_t>(blocks * s.kv_heads * KvLayout::block), 9.0f);
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
/// moves a probability by as much, relatively. In bf16 a probability is rounded to 2^-9 of itself.
Tolerance tolerance_of(const Shape& shape, Compute compute, float logits) {
    const double depth = static_cast<double>(shape.head_dim),
                 keys = static_cast<double>(shape.keys);
    const double exact = (16.0 + depth * double{logits} + std::sqrt(keys)) * unit_roundoff;
    return {compute == Compute::bf16 ? exact + 0x1p-9 : exact, 0.0};
}

void check(Problem& problem, Compute compute, float logits = 1.0f) {
    const Shape& s = problem.shape;
    CAPTURE(s.queries);
    CAPTURE(s.keys);
    CAPTURE(s.heads);
    CAPTURE(s.kv_heads);
    CAPTURE(s.head_dim);
    CAPTURE(std::string(dtype_name(problem.args.kv_dtype)));
    CAPTURE(compute == Compute::bf16);
    std::vector<float> found = problem.empty_output(), expected = found;
    cpu::attention(problem.part(0, s.queries, found.data()), compute);
    reference::attention(problem.args, compute, expected.data(), problem.args.out_stride);
    CHECK(compare(found, expected, tolerance_of(s, compute, logits)) == "");
}

/// Compute and type of keys and values.
constexpr std::pair<Compute, DType> bf16_and_int8[] = {{Compute::f32, DType::bf16},
                                                       {Compute::bf16, DType::bf16},
                                                       {Compute::f32, DType::i8},
                                                       {Compute::bf16, DType::i8}};
constexpr Compute computes[] = {Compute::f32, Compute::bf16};
constexpr DType types[] = {DType::f32, DType::bf16, DType::f16, DType::i8};

}  // namespace

TEST_CASE("attention_any_number_of_keys_and_head_dim_matches_reference") {
    for_each_table([] {
        for (const Compute compute : computes) {
            for (const int64_t keys : {0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1030}) {
                Problem problem({5, keys, 2, 1, 10}, DType::f32);
                check(problem, compute);
            }
            for (const int64_t head_dim : {1, 2, 7, 16, 63, 64, 65, 80, 128, 130}) {
                for (const DType type : types) {
                    for (const int64_t queries : {1, 9}) {
                        Problem problem({queries, 43, 2, 2, head_dim}, type);
                        check(problem, compute);
                    }
                }
            }
        }
    });
}

TEST_CASE("attention_grouped_heads_of_every_type_match_reference") {
    for_each_table([] {
        for (const Compute compute : computes) {
            for (const DType type : types) {
                for (const int64_t kv_heads : {1, 2, 3, 6}) {
                    for (const int64_t queries : {1, 3, 11}) {
                        Problem problem({queries, 600, 6, kv_heads, 24}, type);
                        check(problem, compute);
                        problem.causal();
                        check(problem, compute);
                    }
                }
                for (const int64_t heads : {5, 7, 8, 9}) {  // rows of a token, around few_rows_max
                    Problem problem({1, 1030, heads, 1, 80}, type);
                    check(problem, compute);
                }
            }
        }
    });
}

TEST_CASE("attention_causal_rule_equals_causal_ranges_bit_for_bit") {
    for_each_table([] {
        for (const auto& [compute, type] : bf16_and_int8) {
            Problem problem({70, 1100, 4, 2, 20}, type);
            problem.causal();
            std::vector<float> ranges = problem.empty_output(), rule = ranges;
            cpu::attention(problem.part(0, 70, ranges.data()), compute);
            problem.causal_rule();
            check(problem, compute);
            cpu::attention(problem.part(0, 70, rule.data()), compute);
            CHECK(compare_bits(rule, ranges) == "");
        }
    });
}

TEST_CASE("attention_random_ranges_and_key_bias_match_reference") {
    for_each_table([] {
        for (const auto& [compute, type] : bf16_and_int8) {
            Problem problem({60, 700, 4, 2, 20}, type);
            problem.args.key_bias = problem.key_bias.data();
            problem.random_mask();
            check(problem, compute);
        }
    });
}

TEST_CASE("attention_large_logits_match_reference") {
    for_each_table([] {
        Problem problem({10, 520, 2, 1, 16}, DType::f32, 100.0f);
        check(problem, Compute::f32, 100.0f);
    });
}

TEST_CASE("attention_query_that_sees_nothing_is_zero") {
    for_each_table([] {
        for (const Compute compute : computes) {
            Problem problem({2, 300, 2, 1, 8}, DType::f32);
            problem.first = {0, 0, 1};
            problem.ranges = {{280, 281}};
            problem.args.visible = {problem.first.data(), problem.ranges.data()};
            std::vector<float> out = problem.empty_output();
            cpu::attention(problem.part(0, 2, out.data()), compute);
            for (size_t i = 0; i < 16; ++i) CHECK(out[i] == 0.0f);
            CHECK(out[16] == 7.0f);  // the gap between rows
            check(problem, compute);
        }
    });
}

TEST_CASE("attention_key_bias_of_minus_infinity_hides_a_key") {
    for_each_table([] {
        Problem problem({3, 270, 2, 1, 8}, DType::f32);
        std::fill(problem.key_bias.begin(), problem.key_bias.end(), 0.0f);
        for (size_t j = 100; j < 270; ++j)
            problem.key_bias[j] = -std::numeric_limits<float>::infinity();
        problem.args.key_bias = problem.key_bias.data();
        check(problem, Compute::f32);
        std::fill(problem.key_bias.begin(), problem.key_bias.end(),
                  -std::numeric_limits<float>::infinity());
        check(problem, Compute::f32);
    });
}

TEST_CASE("attention_nan_reaches_the_rows_that_see_it") {
    for_each_table([] {
        for (const Compute compute : computes) {
            Problem problem({20, 300, 2, 1, 12}, DType::f32);
            problem.q[static_cast<size_t>(4 * problem.args.q_stride + 1)] =
                std::numeric_limits<float>::quiet_NaN();
            problem.causal();
            check(problem, compute);
            std::vector<float> out = problem.empty_output();
            cpu::attention(problem.part(0, 20, out.data()), compute);
            CHECK(std::isnan(out[static_cast<size_t>(4 * problem.args.out_stride)]));
            CHECK(std::isfinite(out[static_cast<size_t>(5 * problem.args.out_stride)]));
        }
    });
}

TEST_CASE("attention_does_not_depend_on_the_split_of_queries_or_threads_bit_for_bit") {
    const int before = cpu::threads();
    for_each_table([] {
        for (const auto& [compute, type] : bf16_and_int8) {
            for (const bool causal : {true, false}) {
                Problem problem({70, 1100, 4, 2, 20}, type);
                if (causal) {
                    problem.causal();
                } else {
                    problem.random_mask();
                }
                cpu::set_threads(1);
                std::vector<float> whole = problem.empty_output(), parts = whole;
                cpu::attention(problem.part(0, 70, whole.data()), compute);
                for (const int64_t size : {1, 3, 32}) {
                    for (int64_t i = 0; i < 70; i += size) {
                        cpu::attention(
                            problem.part(i, std::min<int64_t>(size, 70 - i), parts.data()),
                            compute);
                    }
                    CHECK(compare_bits(parts, whole) == "");
                }
                for (const int threads : {2, 3, 16}) {
                    cpu::set_threads(threads);
                    parts = problem.empty_output();
                    cpu::attention(problem.part(0, 70, parts.data()), compute);
                    CHECK(compare_bits(parts, whole) == "");
                }
            }
        }
    });
    cpu::set_threads(before);
}

TEST_CASE("attention_one_query_with_fewer_keys_equals_prefill_bit_for_bit") {
    for_each_table([] {
        for (const auto& [compute, type] : bf16_and_int8) {
            Problem problem({1100, 1100, 2, 1, 16}, type);
            problem.causal();
            std::vector<float> whole = problem.empty_output(), one = whole;
            cpu::attention(problem.part(0, 1100, whole.data()), compute);
            for (int64_t i = 0; i < 1100;
                 i += 13) {  // as a decoder would: only the keys that exist yet
                Attention step = problem.part(i, 1, one.data());
                step.keys = i + 1;
                step.visible = {};
                cpu::attention(step, compute);
                const size_t at = static_cast<size_t>(i * problem.args.out_stride);
                CHECK(compare_bits({one.data() + at, 32}, {whole.data() + at, 32}) == "");
            }
        }
    });
}

TEST_CASE("attention_weights_match_reference") {
    Problem problem({7, 50, 6, 2, 9}, DType::f16);
    problem.random_mask();
    problem.args.key_bias = problem.key_bias.data();
    std::vector<float> found(7 * 50 * 6), expected = found;
    cpu::attention_weights(problem.args, found.data());
    for (int64_t head = 0; head < 6; ++head) {
        reference::attention_weights(problem.args, Compute::f32, head,
                                     expected.data() + head * 7 * 50);
    }
    CHECK(compare(found, expected, {0.0, unit_roundoff}) == "");
    for (int64_t row = 0; row < 6 * 7; ++row) {
        double sum = 0.0;
        for (int64_t j = 0; j < 50; ++j) sum += found[static_cast<size_t>(row * 50 + j)];
        const bool blind = problem.first[static_cast<size_t>(row % 7)] ==
                           problem.first[static_cast<size_t>(row % 7 + 1)];
        CHECK(sum == doctest::Approx(blind ? 0.0 : 1.0));
    }
}

}  // namespace mllama::test
