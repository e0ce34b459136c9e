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
#include "tests/attention_problem.h"
#include "tests/compare.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

void check(AttentionProblem& problem, Compute compute, float logits = 1.0f) {
    const AttentionShape& s = problem.shape;
    CAPTURE(s.queries);
    CAPTURE(s.keys);
    CAPTURE(s.heads);
    CAPTURE(s.kv_heads);
    CAPTURE(s.head_dim);
    CAPTURE(std::string(dtype_name(problem.args.kv_dtype)));
    CAPTURE(compute == Compute::bf16);
    std::vector<float> found = problem.empty_output(), expected = found;
    one_sequence(cpu::attention, problem.part(0, s.queries, found.data()), compute);
    reference::attention(problem.args, compute, expected.data(), problem.args.out_stride);
    CHECK(compare(found, expected, attention_tolerance(s, compute, logits)) == "");
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
                AttentionProblem problem({5, keys, 2, 1, 10}, DType::f32);
                check(problem, compute);
            }
            for (const int64_t head_dim : {1, 2, 7, 16, 63, 64, 65, 80, 128, 130}) {
                for (const DType type : types) {
                    for (const int64_t queries : {1, 9}) {
                        AttentionProblem problem({queries, 43, 2, 2, head_dim}, type);
                        check(problem, compute);
                    }
                }
            }
        }
    });
}

TEST_CASE("attention_of_a_long_text_matches_reference") {
    // More keys than any chunk, more chunks than are merged at once: 512 and 64.
    const int before = cpu::threads();
    for_each_table([] {
        for (const auto& [compute, type] : bf16_and_int8) {
            for (const int threads : {1, 3}) {
                cpu::set_threads(threads);
                for (const int64_t keys : {6 * 512 + 1, 64 * 512, 65 * 512 + 3}) {
                    AttentionProblem problem({1, keys, 2, 2, 4}, type);
                    check(problem, compute);
                }
            }
            cpu::set_threads(2);
            AttentionProblem many({12, 6 * 512 + 1, 2, 1, 4}, type);
            many.causal();
            check(many, compute);
        }
    });
    cpu::set_threads(before);
}

TEST_CASE("attention_grouped_heads_of_every_type_match_reference") {
    for_each_table([] {
        for (const Compute compute : computes) {
            for (const DType type : types) {
                for (const int64_t kv_heads : {1, 2, 3, 6}) {
                    for (const int64_t queries : {1, 3, 11}) {
                        AttentionProblem problem({queries, 600, 6, kv_heads, 24}, type);
                        check(problem, compute);
                        problem.causal();
                        check(problem, compute);
                    }
                }
                for (const int64_t heads : {5, 7, 8, 9}) {  // rows of a token, around few_rows_max
                    AttentionProblem problem({1, 1030, heads, 1, 80}, type);
                    check(problem, compute);
                }
            }
        }
    });
}

TEST_CASE("attention_causal_rule_equals_causal_ranges_bit_for_bit") {
    for_each_table([] {
        for (const auto& [compute, type] : bf16_and_int8) {
            AttentionProblem problem({70, 1100, 4, 2, 20}, type);
            problem.causal();
            std::vector<float> ranges = problem.empty_output(), rule = ranges;
            one_sequence(cpu::attention, problem.part(0, 70, ranges.data()), compute);
            problem.causal_rule();
            check(problem, compute);
            one_sequence(cpu::attention, problem.part(0, 70, rule.data()), compute);
            CHECK(compare_bits(rule, ranges) == "");
        }
    });
}

TEST_CASE("attention_random_ranges_and_key_bias_match_reference") {
    for_each_table([] {
        for (const auto& [compute, type] : bf16_and_int8) {
            AttentionProblem problem({60, 700, 4, 2, 20}, type);
            problem.args.key_bias = problem.key_bias.data();
            problem.random_mask();
            check(problem, compute);
        }
    });
}

TEST_CASE("attention_large_logits_match_reference") {
    for_each_table([] {
        AttentionProblem problem({10, 520, 2, 1, 16}, DType::f32, 100.0f);
        check(problem, Compute::f32, 100.0f);
    });
}

TEST_CASE("attention_query_that_sees_nothing_is_zero") {
    for_each_table([] {
        for (const Compute compute : computes) {
            AttentionProblem problem({2, 300, 2, 1, 8}, DType::f32);
            problem.first = {0, 0, 1};
            problem.ranges = {{280, 281}};
            problem.args.visible = {problem.first.data(), problem.ranges.data()};
            std::vector<float> out = problem.empty_output();
            one_sequence(cpu::attention, problem.part(0, 2, out.data()), compute);
            for (size_t i = 0; i < 16; ++i) CHECK(out[i] == 0.0f);
            CHECK(out[16] == 7.0f);  // the gap between rows
            check(problem, compute);
        }
    });
}

TEST_CASE("attention_key_bias_of_minus_infinity_hides_a_key") {
    for_each_table([] {
        AttentionProblem problem({3, 270, 2, 1, 8}, DType::f32);
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
            AttentionProblem problem({20, 300, 2, 1, 12}, DType::f32);
            problem.q[static_cast<size_t>(4 * problem.args.q_stride + 1)] =
                std::numeric_limits<float>::quiet_NaN();
            problem.causal();
            check(problem, compute);
            std::vector<float> out = problem.empty_output();
            one_sequence(cpu::attention, problem.part(0, 20, out.data()), compute);
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
                AttentionProblem problem({70, 1100, 4, 2, 20}, type);
                if (causal) {
                    problem.causal();
                } else {
                    problem.random_mask();
                }
                cpu::set_threads(1);
                std::vector<float> whole = problem.empty_output(), parts = whole;
                one_sequence(cpu::attention, problem.part(0, 70, whole.data()), compute);
                for (const int64_t size : {1, 3, 32}) {
                    for (int64_t i = 0; i < 70; i += size) {
                        one_sequence(cpu::attention,
                                     problem.part(i, std::min<int64_t>(size, 70 - i), parts.data()),
                                     compute);
                    }
                    CHECK(compare_bits(parts, whole) == "");
                }
                for (const int threads : {2, 3, 16}) {
                    cpu::set_threads(threads);
                    parts = problem.empty_output();
                    one_sequence(cpu::attention, problem.part(0, 70, parts.data()), compute);
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
            AttentionProblem problem({1100, 1100, 2, 1, 16}, type);
            problem.causal();
            std::vector<float> whole = problem.empty_output(), one = whole;
            one_sequence(cpu::attention, problem.part(0, 1100, whole.data()), compute);
            for (int64_t i = 0; i < 1100;
                 i += 13) {  // as a decoder would: only the keys that exist yet
                Attention step = problem.part(i, 1, one.data());
                step.keys = i + 1;
                step.visible = {};
                one_sequence(cpu::attention, step, compute);
                const size_t at = static_cast<size_t>(i * problem.args.out_stride);
                CHECK(compare_bits({one.data() + at, 32}, {whole.data() + at, 32}) == "");
            }
        }
    });
}

TEST_CASE("attention_weights_match_reference") {
    AttentionProblem problem({7, 50, 6, 2, 9}, DType::f16);
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
