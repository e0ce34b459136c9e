// Storing keys and values in units: every table against the reference, and the layout itself.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/kv_layout.h"
#include "kernels/reference.h"
#include "tests/compare.h"
#include "tests/kv_memory.h"

namespace mllama::test {
namespace {

constexpr DType types[] = {DType::f32, DType::bf16, DType::f16, DType::i8};
constexpr int64_t head_dims[] = {1, 2, 7, 16, 63, 80, 128, 130};

}  // namespace

TEST_CASE("kv_layout_gives_every_element_a_place_of_its_own_within_its_block") {
    for (const DType type : types) {
        for (const int64_t head_dim : head_dims) {
            const KvLayout layout{3, head_dim, type};
            const int64_t keys = 150, blocks = KvLayout::blocks(keys);
            std::set<int64_t> of_keys, of_values;
            for (int64_t head = 0; head < 3; ++head) {
                for (int64_t key = 0; key < keys; ++key) {
                    for (int64_t d = 0; d < head_dim; ++d) {
                        of_keys.insert(layout.key_index(head, key, d));
                        of_values.insert(layout.value_index(head, key, d));
                    }
                }
            }
            CHECK(blocks == 3);
            CHECK(static_cast<int64_t>(of_keys.size()) == 3 * keys * head_dim);
            CHECK(static_cast<int64_t>(of_values.size()) == 3 * keys * head_dim);
            CHECK(*of_keys.rbegin() < blocks * 3 * layout.key_units() * layout.unit());
            CHECK(*of_values.rbegin() < blocks * 3 * layout.value_units() * layout.unit());
        }
    }
}

TEST_CASE("kv_units_hold_neighbours_of_the_dimension_that_is_summed") {
    const KvLayout layout{1, 8, DType::bf16};
    CHECK(layout.key_index(0, 5, 6) + 1 == layout.key_index(0, 5, 7));
    CHECK(layout.key_index(0, 5, 6) + 2 == layout.key_index(0, 6, 6));
    CHECK(layout.value_index(0, 6, 5) + 1 == layout.value_index(0, 7, 5));
    CHECK(layout.value_index(0, 6, 5) + 2 == layout.value_index(0, 6, 6));
}

TEST_CASE("kv_stored_piece_by_piece_by_every_table_matches_reference") {
    for_each_table([] {
        for (const DType type : types) {
            for (const int64_t head_dim : head_dims) {
                const KvLayout layout{3, head_dim, type};
                const int64_t width = 3 * head_dim, x_stride = width + 3;
                const std::array<int64_t, 9> pieces{1, 1, 3, 0, 2, 63, 17, 130, 5};
                int64_t total = 0;
                for (const int64_t piece : pieces) total += piece;
                const std::vector<float> x = Numbers(1).floats(total * x_stride);
                auto k = memory_of(layout, layout.key_units(), total), expected_k = k;
                auto v = memory_of(layout, layout.value_units(), total), expected_v = v;
                auto scales = scales_for(layout, total), expected_scales = scales;
                auto value_scales = scales;
                reference::store_keys(x.data(), total, x_stride, layout, 0, expected_k.data(),
                                      expected_scales.data());
                reference::store_values(x.data(), total, x_stride, layout, 0, expected_v.data(),
                                        expected_scales.data());
                int64_t begin = 0;
                for (const int64_t piece : pieces) {
                    const float* rows = x.data() + begin * x_stride;
                    cpu::store_keys(rows, piece, x_stride, layout, begin, k.data(), scales.data());
                    cpu::store_values(rows, piece, x_stride, layout, begin, v.data(),
                                      value_scales.data());
                    begin += piece;
                }
                CAPTURE(std::string(dtype_name(type)));
                CAPTURE(head_dim);
                CHECK(k == expected_k);  // and nothing else is written
                CHECK(compare_bits(scales, expected_scales) == "");
                CHECK(compare_bits(value_scales, expected_scales) == "");
                CHECK(compare_bits(values_in(v, layout, total),
                                   values_in(expected_v, layout, total)) == "");
            }
        }
    });
}

TEST_CASE("kv_of_several_sequences_is_that_of_each") {
    for (const DType type : types) {
        std::vector<std::vector<float>> rows;
        std::vector<std::vector<uint32_t>> keys, values, expected_keys, expected_values;
        std::vector<std::vector<float>> k_scales, v_scales, expected_k_scales, expected_v_scales;
        std::vector<NewKeysValues> args;
        for (const int64_t count : {1, 0, 63, 200, 5}) {
            const KvLayout layout{1 + count % 3, 7 + count % 5, type};
            const int64_t begin = count % 7, width = layout.kv_heads * layout.head_dim;
            rows.push_back(Numbers(1).floats(count * (width + 3) + width));
            const float* v = rows.back().data() + width;  // of the row that follows, in part
            keys.push_back(memory_of(layout, layout.key_units(), begin + count));
            values.push_back(memory_of(layout, layout.value_units(), begin + count));
            k_scales.push_back(scales_for(layout, begin + count));
            v_scales.push_back(k_scales.back());
            expected_keys.push_back(keys.back());
            expected_values.push_back(values.back());
            expected_k_scales.push_back(k_scales.back());
            expected_v_scales.push_back(v_scales.back());
            cpu::store_keys(rows.back().data(), count, width + 3, layout, begin,
                            expected_keys.back().data(), expected_k_scales.back().data());
            cpu::store_values(v, count, width + 2, layout, begin, expected_values.back().data(),
                              expected_v_scales.back().data());
            args.push_back({rows.back().data(), v, count, width + 3, width + 2, layout, begin,
                            nullptr, keys.back().data(), values.back().data(),
                            k_scales.back().data(), v_scales.back().data()});
        }
        cpu::store_keys_values(args);
        CAPTURE(std::string(dtype_name(type)));
        CHECK(keys == expected_keys);
        CHECK(values == expected_values);
        CHECK(k_scales == expected_k_scales);
        CHECK(v_scales == expected_v_scales);
    }
}

TEST_CASE("kv_reference_stores_the_rows_rounded_to_the_type") {
    for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
        const KvLayout layout{2, 5, type};
        const std::vector<float> x = Numbers(2).floats(70 * 10);
        const Typed rounded(x, type);
        std::vector<float> expected;
        for (int64_t i = 0; i < 700; ++i)
            expected.push_back(static_cast<float>(reference::element(rounded.data(), type, i)));
        auto k = memory_of(layout, layout.key_units(), 70);
        auto v = memory_of(layout, layout.value_units(), 70);
        reference::store_keys(x.data(), 70, 10, layout, 0, k.data(), nullptr);
        reference::store_values(x.data(), 70, 10, layout, 0, v.data(), nullptr);
        CHECK(compare_bits(keys_in(k, layout, 70), expected) == "");
        CHECK(compare_bits(values_in(v, layout, 70), expected) == "");
    }
}

TEST_CASE("kv_value_behind_the_last_in_a_unit_is_zero_when_stored") {
    for_each_table([] {
        const KvLayout layout{1, 20, DType::bf16};
        const std::vector<float> x = Numbers(3).floats(3 * 20);
        auto v = memory_of(layout, layout.value_units(), 4);
        cpu::store_values(x.data(), 3, 20, layout, 0, v.data(), nullptr);
        for (int64_t d = 0; d < 20; ++d) {
            CHECK(reference::element(v.data(), DType::bf16, layout.value_index(0, 3, d)) == 0.0);
        }
    });
}

TEST_CASE("kv_int8_is_the_row_within_half_a_step_and_its_scale_the_largest_by_127") {
    for_each_table([] {
        const KvLayout layout{2, 37, DType::i8};
        const std::vector<float> x = Numbers(4).floats(70 * 74, -3.0f, 3.0f);
        auto k = memory_of(layout, layout.key_units(), 70);
        auto scales = scales_for(layout, 70);
        cpu::store_keys(x.data(), 70, 74, layout, 0, k.data(), scales.data());
        const std::vector<float> whole = keys_in(k, layout, 70);
        for (int64_t key = 0; key < 70; ++key) {
            for (int64_t head = 0; head < 2; ++head) {
                const float scale = scales[static_cast<size_t>(layout.scale_index(head, key))];
                float largest = 0.0f, largest_whole = 0.0f, worst = 0.0f;
                for (int64_t d = 0; d < 37; ++d) {
                    const auto at = static_cast<size_t>(key * 74 + head * 37 + d);
                    largest = std::max(largest, std::abs(x[at]));
                    largest_whole = std::max(largest_whole, std::abs(whole[at]));
                    worst = std::max(worst, std::abs(whole[at] * scale - x[at]));
                }
                CHECK(scale == largest / 127.0f);
                CHECK(largest_whole == 127.0f);
                CHECK(worst <= 0.5001f * scale);
            }
        }
    });
}

TEST_CASE("kv_int8_of_zeros_tiny_numbers_and_no_numbers") {
    const float infinity = std::numeric_limits<float>::infinity();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const KvLayout layout{1, 2, DType::i8};
    const std::vector<float> x = {0.0f, -0.0f, 1e-45f, -1e-45f, infinity,
                                  1.0f, 1.0f,  nan,    3e38f,   -3e38f};
    auto k = memory_of(layout, layout.key_units(), 5), expected = k;
    auto scales = scales_for(layout, 5), expected_scales = scales;
    cpu::store_keys(x.data(), 5, 2, layout, 0, k.data(), scales.data());
    reference::store_keys(x.data(), 5, 2, layout, 0, expected.data(), expected_scales.data());
    CHECK(k == expected);
    CHECK(compare_bits(scales, expected_scales) == "");
    CHECK(scales[0] == 0.0f);
    CHECK(scales[1] == 0.0f);
    CHECK(std::isnan(scales[2]));
    CHECK(std::isnan(scales[3]));
    CHECK(scales[4] == 3e38f / 127.0f);
}

}  // namespace mllama::test
