// Coded weights: the published formats by hand, and the decoding of every table against the plain
// one and the reference.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu.h"
#include "kernels/decode.h"
#include "kernels/reference.h"
#include "tests/compare.h"

namespace mllama::test {
namespace {

using cpu::Compute;
using cpu::Matrix;

struct Kind {
    Coding coding;
    int64_t group_size;  ///< 0: a whole row
    bool zeros = false;
    bool by_activation = false;  ///< columns of a group are anywhere
    bool nested = false;         ///< nf4: quantised scales
};

const std::vector<Kind> kinds{{Coding::int8, 0},
                              {Coding::int4, 128},
                              {Coding::int4, 40, true},
                              {Coding::int4, 32, true, true},
                              {Coding::int4_by_column, 32},
                              {Coding::int4_by_column, 128, true},
                              {Coding::int4_by_column, 64, true, true},
                              {Coding::fp8, 0},
                              {Coding::nf4, 64},
                              {Coding::nf4, 64, false, false, true}};

/// A random coded matrix (n, k).
struct Problem {
    std::vector<int32_t> numbers, zero, of_column;
    std::vector<float> scale, code, nested_code, nested_scale;
    std::vector<uint8_t> nested;
    Matrix w;

    Problem(int64_t n, int64_t k, const Kind& kind, uint32_t seed) {
        Numbers random(seed);
        numbers.resize(static_cast<size_t>(n * (k + 7) + 8));
        for (int32_t& word : numbers) word = static_cast<int32_t>(random.below(int64_t{1} << 32));
        const int64_t size = kind.group_size == 0 ? k : kind.group_size;
        const int64_t groups = (k + size - 1) / size;
        scale = random.floats((n + 8) * (k / size + 2), 0.5f, 2.0f);
        w = {numbers.data(), DType::i32, n, k, k, kind.coding, {}};
        w.groups.size = size;
        w.groups.scale = scale.data();
        const bool by_column = kind.coding == Coding::int4_by_column;
        w.groups.scale_row = by_column ? 1 : groups;
        w.groups.scale_group = by_column ? n : 1;
        w.groups.zero_add = kind.coding == Coding::int4 || by_column ? 8 : 0;
        if (kind.zeros) {
            zero.resize(static_cast<size_t>((n + 8) * groups));
            for (int32_t& word : zero) word = static_cast<int32_t>(random.below(int64_t{1} << 32));
            w.groups.zero = zero.data();
            w.groups.zero_row = by_column ? 1 : groups;
            w.groups.zero_group = by_column ? (n + 7) / 8 : 1;
            w.groups.zero_add = by_column ? 1 : 0;
        }
        if (kind.by_activation) {
            for (int64_t i = 0; i < k; ++i)
                of_column.push_back(static_cast<int32_t>(random.below(groups)));
            w.groups.of_column = of_column.data();
        }
        if (kind.coding != Coding::nf4) return;
        scale = random.floats(n * k / size + 1, 0.5f, 2.0f);
        w.groups.scale = scale.data();
        code = random.floats(16);
        w.groups.code = code.data();
        if (!kind.nested) return;
        for (int64_t i = 0; i <= n * k / size; ++i)
            nested.push_back(static_cast<uint8_t>(random.below(256)));
        nested_code = random.floats(256);
        nested_scale = random.floats(n * k / size / 4 + 1);
        w.groups.scale = nested.data();
        w.groups.scale_dtype = DType::u8;
        w.groups.nested_code = nested_code.data();
        w.groups.nested_scale = nested_scale.data();
        w.groups.nested_size = 4;
        w.groups.nested_offset = 0.125f;
    }
};

}  // namespace

TEST_CASE("f8_e4m3_values_are_those_of_the_format") {
    CHECK(f8_e4m3_to_f32(0x38) == 1.0f);
    CHECK(f8_e4m3_to_f32(0xB9) == -1.125f);
    CHECK(f8_e4m3_to_f32(0x7E) == 448.0f);
    CHECK(f8_e4m3_to_f32(0x01) == 0x1p-9f);
    CHECK(f8_e4m3_to_f32(0x08) == 0x1p-6f);
    CHECK(f8_e4m3_to_f32(0x00) == 0.0f);
    CHECK(std::signbit(f8_e4m3_to_f32(0x80)));
    CHECK(std::isnan(f8_e4m3_to_f32(0x7F)));
    CHECK(std::isnan(f8_e4m3_to_f32(0xFF)));
}

TEST_CASE("weight_int4_reads_the_low_nibble_first_and_takes_the_zero_of_its_row") {
    const int32_t words[2] = {static_cast<int32_t>(0x76543210), static_cast<int32_t>(0xFEDCBA98)};
    const float scale[2] = {0.5f, 2.0f};
    const int32_t zeros[1] = {0x00000021};  // of rows 0 and 1
    Matrix w{words, DType::i32, 2, 8, 8, Coding::int4, {}};
    w.groups.size = 8;
    w.groups.scale = scale;
    w.groups.scale_row = w.groups.scale_group = 1;
    w.groups.zero_add = 8;
    CHECK(reference::weight(w, 0, 3) == (3 - 8) * 0.5);
    CHECK(reference::weight(w, 1, 7) == (15 - 8) * 2.0);
    w.groups.zero = zeros;
    w.groups.zero_row = 1;
    w.groups.zero_add = 0;
    CHECK(reference::weight(w, 0, 3) == (3 - 1) * 0.5);
    CHECK(reference::weight(w, 1, 0) == (8 - 2) * 2.0);
}

TEST_CASE("weight_int4_by_column_reads_eight_columns_of_a_row_from_a_word") {
    const int32_t words[2] = {static_cast<int32_t>(0x76543210), static_cast<int32_t>(0xFEDCBA98)};
    const float scale[2] = {0.5f, 2.0f};
    Matrix w{words, DType::i32, 2, 8, 8, Coding::int4_by_column, {}};
    w.groups.size = 8;
    w.groups.scale = scale;
    w.groups.scale_row = 1;
    w.groups.scale_group = 2;
    CHECK(reference::weight(w, 0, 6) == 3.0);
    CHECK(reference::weight(w, 1, 1) == 18.0);
}

TEST_CASE("weight_nf4_reads_the_high_nibble_first") {
    const uint8_t bytes[2] = {0x12, 0xF0};
    std::vector<float> code(16);
    for (size_t i = 0; i < 16; ++i) code[i] = static_cast<float>(i);
    const uint8_t scale[2] = {3, 4};
    const std::vector<float> nested_code(256, 0.5f);
    const float nested_scale[1] = {2.0f};
    Matrix w{bytes, DType::u8, 2, 2, 2, Coding::nf4, {}};
    w.groups.size = 2;
    w.groups.scale = scale;
    w.groups.scale_dtype = DType::u8;
    w.groups.code = code.data();
    w.groups.nested_code = nested_code.data();
    w.groups.nested_scale = nested_scale;
    w.groups.nested_size = 256;
    w.groups.nested_offset = 0.25f;
    CHECK(reference::weight(w, 0, 0) == 1 * 1.25);
    CHECK(reference::weight(w, 0, 1) == 2 * 1.25);
    CHECK(reference::weight(w, 1, 0) == 15 * 1.25);
}

TEST_CASE("decode_row_rounds_the_reference_once") {
    for (const Kind& kind : kinds) {
        const int64_t n = 5, k = 200;
        const Problem p(n, k, kind, 3);
        std::vector<float> found(static_cast<size_t>(n * k)), expected = found;
        for (int64_t row = 0; row < n; ++row) {
            cpu::decode_row(p.w, row, 0, k, DType::f32, found.data() + row * k);
            for (int64_t col = 0; col < k; ++col)
                expected[static_cast<size_t>(row * k + col)] =
                    static_cast<float>(reference::weight(p.w, row, col));
        }
        // A nested scale is a product and a sum in float32, which may cancel.
        const double cancelled = kind.nested ? 4 * unit_roundoff : 0.0;
        CHECK(compare(found, expected, {cancelled, 4 * unit_roundoff}) == "");
    }
}

TEST_CASE("decode_of_every_table_is_the_plain_one_to_the_bit") {
    for_each_table([] {
        for (const Kind& kind : kinds) {
            for (const int64_t k : {1, 2, 7, 8, 15, 16, 17, 40, 64, 96, 201}) {
                for (const int64_t n : {1, 3, 16, 33}) {
                    const Problem p(n, k, kind, static_cast<uint32_t>(k + 7 * n));
                    for (const int64_t first : {int64_t{0}, k / 2, k - 1}) {
                        const int64_t count = k - first;
                        CAPTURE(static_cast<int>(kind.coding));
                        CAPTURE(k);
                        CAPTURE(n);
                        CAPTURE(first);
                        std::vector<float> found(static_cast<size_t>(n * count), 7.0f);
                        std::vector<float> expected = found;
                        std::vector<uint16_t> found_bf16(found.size()), expected_bf16 = found_bf16;
                        for (int64_t row = 0; row < n; ++row) {
                            cpu::decode_row(p.w, row, first, count, DType::f32,
                                            expected.data() + row * count);
                            cpu::decode_row(p.w, row, first, count, DType::bf16,
                                            expected_bf16.data() + row * count);
                        }
                        const cpu::Table& leaves = cpu::table();
                        leaves.decode(p.w, 0, n, first, count, DType::f32, found.data());
                        leaves.decode(p.w, 0, n, first, count, DType::bf16, found_bf16.data());
                        CHECK(compare_bits(found, expected) == "");
                        CHECK(found_bf16 == expected_bf16);
                    }
                }
            }
        }
    });
}

TEST_CASE("linear_with_coded_weights_matches_reference") {
    for_each_table([] {
        for (const Kind& kind : kinds) {
            if (kind.coding == Coding::fp8) continue;  // random bytes would be NaN: see below
            for (const Compute compute : {Compute::f32, Compute::bf16}) {
                for (const int64_t rows : {1, 3, 40}) {
                    for (const int64_t k : {8, 72, 200}) {
                        const int64_t n = 70;
                        const Problem p(n, k, kind, 17);
                        const std::vector<float> x = Numbers(5).floats(rows * k);
                        std::vector<float> found(static_cast<size_t>(rows * n)), expected = found;
                        cpu::linear(x.data(), rows, k, p.w, {}, compute, found.data(), n);
                        reference::linear(x.data(), rows, k, p.w, {}, compute, expected.data(), n);
                        Tolerance tolerance = sum_tolerance(k);
                        tolerance.absolute *= 256 * 2;  // |number - zero| * scale
                        // A weight on the edge between two bfloat16 may fall to either side.
                        if (compute == Compute::bf16) tolerance.absolute += 2.0;
                        CHECK(compare(found, expected, tolerance) == "");
                    }
                }
            }
        }
    });
}

TEST_CASE("linear_with_fp8_weights_matches_reference") {
    for_each_table([] {
        for (const Compute compute : {Compute::f32, Compute::bf16, Compute::int8}) {
            const int64_t rows = 3, n = 70, k = 200;
            Problem p(n, k, {Coding::fp8, 0}, 17);
            auto* bytes = reinterpret_cast<uint8_t*>(p.numbers.data());
            for (int64_t i = 0; i < n * k; ++i) bytes[i] &= 0xBF;  // below 2
            const std::vector<float> x = Numbers(5).floats(rows * k);
            std::vector<float> found(static_cast<size_t>(rows * n)), expected = found;
            cpu::linear(x.data(), rows, k, p.w, {}, compute, found.data(), n);
            reference::linear(x.data(), rows, k, p.w, {}, compute, expected.data(), n);
            Tolerance tolerance = sum_tolerance(k);
            tolerance.absolute *= 4;
            CHECK(compare(found, expected, tolerance) == "");
        }
    });
}

}  // namespace mllama::test
