// Coded weights: what each coding stands for in numbers written by hand, decoding and matrix
// products against the reference.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/decode.h"
#include "kernels/reference.h"
#include "tests/coded_matrices.h"
#include "tests/compare.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

void check_linear(const Style& style, int64_t rows, int64_t k, int64_t n, Compute compute) {
    round_to_words(style, n, k);
    CAPTURE(style.name);
    CAPTURE(rows);
    CAPTURE(k);
    CAPTURE(n);
    CAPTURE(compute == Compute::bf16);
    const Coded coded(style, n, k, static_cast<uint32_t>(rows * 31 + k * 7 + n));
    const std::vector<float> x = Numbers(3).floats(rows * k);
    std::vector<float> found(static_cast<size_t>(rows * n)), expected = found;
    one_layer(cpu::linear, x.data(), rows, k, coded.matrix(), {}, compute, found.data(), n);
    reference::linear(x.data(), rows, k, coded.matrix(), {}, compute, expected.data(), n);
    CHECK(compare(found, expected, coded_tolerance(k, compute)) == "");
}

/// decoded(w)[row, col] for one matrix, by decode_row.
float decoded(const Matrix& w, int64_t row, int64_t col) {
    float value = 0;
    cpu::decode_row(w, row, col, 1, DType::f32, &value);
    CHECK(value == doctest::Approx(reference::weight(w, row, col)).epsilon(1e-6));
    return value;
}

}  // namespace

TEST_CASE("coded_int8_is_number_times_scale") {
    const int8_t numbers[] = {-128, 127, 3, 0, -1, 5};  // (2, 3)
    const float scales[] = {0.5f, 2.0f};
    Matrix w{numbers, DType::f32, 2, 3, 3, Coding::int8, {}};
    w.groups = {.size = 3, .scale = scales, .scale_row = 1, .scale_group = 1};
    CHECK(decoded(w, 0, 0) == -64.0f);
    CHECK(decoded(w, 0, 1) == 63.5f);
    CHECK(decoded(w, 1, 1) == -2.0f);
    CHECK(decoded(w, 1, 2) == 10.0f);
}

TEST_CASE("coded_int4_takes_the_low_nibble_first_and_zeros_along_the_rows") {
    const uint32_t numbers[] = {0x76543210u, 0x0000000Fu, 0xFEDCBA98u, 0x0000000Au};  // (2, 9)
    const uint16_t scales[] = {f32_to_bf16(1.0f), f32_to_bf16(2.0f), f32_to_bf16(4.0f),
                               f32_to_bf16(8.0f)};
    Matrix w{numbers, DType::f32, 2, 9, 9, Coding::int4, {}};
    w.groups = {.size = 5,
                .scale = scales,
                .scale_dtype = DType::bf16,
                .scale_row = 2,
                .scale_group = 1,
                .zero_add = 8};
    CHECK(decoded(w, 0, 0) == -8.0f);
    CHECK(decoded(w, 0, 7) == -2.0f);  // (7 - 8) * 2
    CHECK(decoded(w, 0, 8) == 14.0f);
    CHECK(decoded(w, 1, 0) == 0.0f);
    CHECK(decoded(w, 1, 8) == 16.0f);
    const uint32_t zeros[] = {0x000000A1u, 0x00000053u};  // group 0: 1 and 10; group 1: 3 and 5
    w.groups.zero = reinterpret_cast<const int32_t*>(zeros);
    w.groups.zero_row = 2;
    w.groups.zero_group = 1;
    w.groups.zero_add = 0;
    CHECK(decoded(w, 0, 4) == 3.0f);
    CHECK(decoded(w, 0, 8) == 24.0f);
    CHECK(decoded(w, 1, 4) == 8.0f);   // (12 - 10) * 4
    CHECK(decoded(w, 1, 8) == 40.0f);  // (10 - 5) * 8
    const int32_t of_column[] = {1, 0, 0, 1, 0, 1, 0, 1, 0};
    w.groups.of_column = of_column;
    CHECK(decoded(w, 0, 0) == -6.0f);  // (0 - 3) * 2
    CHECK(decoded(w, 1, 8) == 0.0f);   // (10 - 10) * 4
}

TEST_CASE("coded_gptq_lies_along_the_columns_and_its_zeros_undo_a_borrow") {
    uint32_t numbers[16] = {};     // (2 words, 8 rows): columns 0 to 15
    numbers[8 + 3] = 0x00000C00u;  // row 3, column 10
    const float scales[] = {1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1};  // (2 groups, 8)
    // Zeros 8 8 8 8 and, in group 1, 0 0 0 4 of the rows 0 to 3, each less one with a borrow.
    const uint32_t zeros[] = {0x88888888u - 0x11111111u, 0x88884000u - 0x11111111u};
    Matrix w{numbers, DType::f32, 8, 16, 16, Coding::int4_by_column, {}};
    w.groups = {.size = 8,
                .scale = scales,
                .scale_row = 1,
                .scale_group = 8,
                .zero = reinterpret_cast<const int32_t*>(zeros),
                .zero_row = 1,
                .zero_group = 1,
                .zero_add = 1};
    CHECK(decoded(w, 3, 10) == 24.0f);  // (12 - 4) * 3
    CHECK(decoded(w, 3, 9) == -12.0f);
    CHECK(decoded(w, 0, 15) == 0.0f);
    CHECK(decoded(w, 3, 0) == -16.0f);
    CHECK(decoded(w, 7, 8) == -8.0f);
}

TEST_CASE("coded_fp8_has_the_values_of_its_paper") {
    // Micikevicius et al. 2022, table 1: the largest, the least normal and subnormal; 1.
    const uint8_t numbers[] = {0x7E, 0x08, 0x01, 0x38, 0xB8, 0x80, 0x7F, 0x00};
    const float scale[] = {2.0f};
    Matrix w{numbers, DType::f32, 1, 8, 8, Coding::fp8, {}};
    w.groups = {.size = 8, .scale = scale};
    CHECK(decoded(w, 0, 0) == 896.0f);
    CHECK(decoded(w, 0, 1) == 0x1p-5f);
    CHECK(decoded(w, 0, 2) == 0x1p-8f);
    CHECK(decoded(w, 0, 3) == 2.0f);
    CHECK(decoded(w, 0, 4) == -2.0f);
    CHECK(std::signbit(decoded(w, 0, 5)));
    float nan = 0;
    cpu::decode_row(w, 0, 6, 1, DType::f32, &nan);
    CHECK(std::isnan(nan));
    CHECK(std::isnan(reference::weight(w, 0, 6)));
}

TEST_CASE("coded_nf4_takes_the_high_nibble_first_and_blocks_of_the_flattened_matrix") {
    const uint8_t numbers[] = {0x01, 0x23, 0x45, 0x67, 0x89};  // (3, 3) and a half byte
    std::vector<float> code(16);
    std::iota(code.begin(), code.end(), 0.0f);
    const float scales[] = {1.0f, 10.0f, 100.0f};  // blocks of 4: across rows
    Matrix w{numbers, DType::f32, 3, 3, 3, Coding::nf4, {}};
    w.groups = {.size = 4, .scale = scales, .code = code.data()};
    CHECK(decoded(w, 0, 1) == 1.0f);
    CHECK(decoded(w, 1, 0) == 3.0f);
    CHECK(decoded(w, 1, 1) == 40.0f);
    CHECK(decoded(w, 2, 2) == 800.0f);
    const uint8_t absmax[] = {2, 0, 1};
    const float nested_code[] = {0.5f, 1.5f, -0.25f}, nested_scale[] = {4.0f, 6.0f};
    w.groups.scale = absmax;
    w.groups.scale_dtype = DType::u8;
    w.groups.nested_code = nested_code;
    w.groups.nested_scale = nested_scale;
    w.groups.nested_size = 2;
    w.groups.nested_offset = 2.0f;
    CHECK(decoded(w, 1, 0) == 3.0f);   // 3 * (-0.25 * 4 + 2)
    CHECK(decoded(w, 1, 1) == 16.0f);  // 4 * (0.5 * 4 + 2)
    CHECK(decoded(w, 2, 2) == 88.0f);  // 8 * (1.5 * 6 + 2)
}

TEST_CASE("decode_row_any_stretch_of_any_coding_matches_reference") {
    for (const Style& style : coded_styles) {
        CAPTURE(style.name);
        int64_t rows = 11, cols = 83;
        round_to_words(style, rows, cols);
        const Coded coded(style, rows, cols, 5);
        const Matrix& w = coded.matrix();
        for (int64_t row = 0; row < rows; ++row) {
            for (const auto& [first, count] :
                 {std::pair<int64_t, int64_t>{0, cols}, {1, 1}, {7, 60}, {31, 33}, {cols, 0}}) {
                std::vector<float> found(static_cast<size_t>(count)), expected;
                std::vector<uint16_t> rounded(static_cast<size_t>(count));
                cpu::decode_row(w, row, first, count, DType::f32, found.data());
                cpu::decode_row(w, row, first, count, DType::bf16, rounded.data());
                for (int64_t i = 0; i < count; ++i)
                    expected.push_back(static_cast<float>(reference::weight(w, row, first + i)));
                CHECK(compare(found, expected, {4 * unit_roundoff, 4 * unit_roundoff}) == "");
                for (size_t i = 0; i < rounded.size(); ++i)
                    CHECK(rounded[i] == f32_to_bf16(found[i]));
            }
        }
    }
}

TEST_CASE("decode_of_every_table_is_decode_row_to_the_bit") {
    for_each_table([] {
        for (const Style& style : coded_styles) {
            CAPTURE(style.name);
            // The last: more groups of 16 than are made ready for columns in any order.
            for (const int64_t size : {1, 2, 8, 15, 16, 17, 40, 64, 96, 201, 37 * 446}) {
                int64_t rows = size % 37 + 1, cols = size;
                round_to_words(style, rows, cols);
                const Coded coded(style, rows, cols, static_cast<uint32_t>(size));
                for (const int64_t first : {int64_t{0}, cols / 2, cols - 1}) {
                    const int64_t count = cols - first;
                    CAPTURE(cols);
                    CAPTURE(first);
                    std::vector<float> found(static_cast<size_t>(rows * count), 7.0f);
                    std::vector<uint16_t> found_bf16(found.size());
                    std::vector<float> expected = found;
                    std::vector<uint16_t> expected_bf16 = found_bf16;
                    for (int64_t row = 0; row < rows; ++row) {
                        cpu::decode_row(coded.matrix(), row, first, count, DType::f32,
                                        expected.data() + row * count);
                        cpu::decode_row(coded.matrix(), row, first, count, DType::bf16,
                                        expected_bf16.data() + row * count);
                    }
                    const auto decode = cpu::table().decode;
                    decode(coded.matrix(), 0, rows, first, count, DType::f32, found.data());
                    decode(coded.matrix(), 0, rows, first, count, DType::bf16, found_bf16.data());
                    CHECK(compare_bits(found, expected) == "");
                    CHECK(found_bf16 == expected_bf16);
                }
            }
        }
    });
}

TEST_CASE("decode_of_any_fp8_number_times_any_scale_is_decode_row_to_the_bit") {
    const std::vector<float> scales{1.0f,       -1.0f,    0.0f,      1.37f,     -0.0123f,
                                    0x1.FFp-1f, 0x1p-99f, 0x1p-101f, 0x1p-126f, 0x1p-149f,
                                    0x1.8p99f,  0x1p101f, 3e38f,     -1e-38f,   0x1.0101p-4f};
    const auto rows = static_cast<int64_t>(scales.size());
    constexpr int64_t cols = 256 + 32;  // once without a NaN in the first numbers, once with it
    std::vector<uint8_t> numbers(static_cast<size_t>(rows * cols));
    for (size_t i = 0; i < numbers.size(); ++i)
        numbers[i] = static_cast<uint8_t>(i % cols + (i / cols) * 7);
    Matrix w{numbers.data(), DType::f32, rows, cols, cols, Coding::fp8, {}};
    w.groups = {.size = cols, .scale = scales.data(), .scale_row = 1, .scale_group = 1};
    for_each_table([&] {
        for (int64_t row = 0; row < rows; ++row) {
            CAPTURE(scales[static_cast<size_t>(row)]);
            std::vector<uint16_t> found(cols), expected(cols);
            cpu::decode_row(w, row, 0, cols, DType::bf16, expected.data());
            cpu::table().decode(w, row, 1, 0, cols, DType::bf16, found.data());
            for (size_t i = 0; i < expected.size(); ++i) {
                CAPTURE(int{numbers[static_cast<size_t>(row * cols) + i]});
                CHECK(found[i] == expected[i]);
            }
        }
    });
}

TEST_CASE("linear_of_coded_weights_matches_reference") {
    for_each_table([] {
        const int64_t width = cpu::table().bf16.panel_width;
        for (const Style& style : coded_styles) {
            for (const Compute compute : {Compute::f32, Compute::bf16}) {
                for (const int64_t k : {1, 2, 7, 8, 31, 33, 64, 127, 250})
                    check_linear(style, 3, k, 9, compute);
                for (const int64_t n : {int64_t{1}, int64_t{7}, width - 1, width, width + 1})
                    check_linear(style, 2, 40, n, compute);
                for (const int64_t rows : {1, 5, 40}) check_linear(style, rows, 96, 21, compute);
                check_linear(style, 37, 1100, 70, compute);  // panels of several blocks of k
            }
        }
    });
}

TEST_CASE("linear_of_coded_weights_does_not_depend_on_batch_split_or_threads_bit_for_bit") {
    for_each_table([] {
        for (const Style& style : coded_styles) {
            CAPTURE(style.name);
            const int64_t rows = 29, k = 1096, n = 152;
            const Coded coded(style, n, k, 7);
            const std::vector<float> x = Numbers(3).floats(rows * k);
            for (const Compute compute : {Compute::f32, Compute::bf16}) {
                CHECK(compare_splits(rows, n, [&](int64_t first, int64_t count, float* out) {
                          one_layer(cpu::linear, x.data() + first * k, count, k, coded.matrix(), {},
                                    compute, out, n);
                      }) == "");
            }
        }
    });
}

}  // namespace mllama::test
