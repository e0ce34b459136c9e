// Linear layers of coded weights on the GPU, which decode them, against the reference.
#include <cmath>
#include <string>

#include "kernels/reference.h"
#include "tests/cuda/device_matrix.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

std::vector<float> on_device(const std::vector<float>& x, int64_t rows, const Matrix& w,
                             Compute compute) {
    const DeviceArray<float> in(x);
    const DeviceArray<float> out(std::vector<float>(static_cast<size_t>(rows * w.rows), 7.0f));
    one_layer(cuda::linear, in.data(), rows, w.cols, w, {}, compute, out.data(), w.rows);
    return out.values();
}

void check_linear(const Style& style, int64_t rows, int64_t k, int64_t n, Compute compute) {
    round_to_words(style, n, k);
    CAPTURE(style.name);
    CAPTURE(rows);
    CAPTURE(k);
    CAPTURE(n);
    CAPTURE(compute == Compute::f32);
    const Coded coded(style, n, k, static_cast<uint32_t>(rows * 31 + k * 7 + n));
    const std::vector<float> x = Numbers(3).floats(rows * k);
    std::vector<float> expected(static_cast<size_t>(rows * n));
    reference::linear(x.data(), rows, k, coded.matrix(), {}, compute, expected.data(), n);
    const Tolerance tolerance = coded_tolerance(k, compute);
    const DeviceMatrix w(coded);
    in_both_orders([&] {
        std::vector<float> found = on_device(x, rows, w.matrix(), compute);
        CHECK(compare(found, expected, tolerance) == "");
        return found;
    });
    const DeviceMatrix crooked(coded, element_bytes(style.coding));
    CHECK(compare(on_device(x, rows, crooked.matrix(), compute), expected, tolerance) == "");
}

constexpr Compute computes[] = {Compute::f32, Compute::bf16};

}  // namespace

TEST_CASE("cuda_linear_of_coded_weights_matches_reference") {
    if (!has_device()) return;
    for (const Style& style : coded_styles) {
        for (const Compute compute : computes) {
            for (const int64_t k : {1, 8, 33, 160}) check_linear(style, 3, k, 9, compute);
            for (const int64_t rows : {1, 8, 33, 66}) check_linear(style, rows, 96, 17, compute);
            check_linear(style, 2, 1152, 9, compute);
            check_linear(style, 9, 1152, 9, compute);
        }
    }
}

TEST_CASE("cuda_linear_of_fp8_decodes_every_code") {
    if (!has_device()) return;
    // Row r has code r in column 5; x is 1 there. Zeros beside a NaN are multiplied with it nowhere.
    constexpr int64_t rows = 256, cols = 32;
    std::vector<uint8_t> codes(rows * cols, 0);
    std::vector<float> x(cols, 0.0f), expected(rows);
    x[5] = 1.0f;
    for (size_t r = 0; r < rows; ++r) {
        codes[r * cols + 5] = static_cast<uint8_t>(r);
        expected[r] = f8_e4m3_to_f32(static_cast<uint8_t>(r));
    }
    const DeviceArray<uint8_t> data(codes);
    const DeviceArray<float> scale(std::vector<float>(1, 1.0f));
    Matrix w{data.data(), DType::f32, rows, cols, cols, Coding::fp8, {}};
    w.groups.size = cols;
    w.groups.scale = scale.data();
    w.groups.scale_dtype = DType::f32;
    for (const Compute compute : computes) {
        const std::vector<float> found = on_device(x, 1, w, compute);
        for (size_t r = 0; r < rows; ++r) {
            CAPTURE(r);
            CHECK(std::isnan(found[r]) == std::isnan(expected[r]));
            if (!std::isnan(expected[r])) CHECK(found[r] == expected[r]);
        }
    }
}

TEST_CASE("cuda_linear_of_coded_weights_decodes_the_very_elements") {
    if (!has_device()) return;
    for (const Style& style : coded_styles) {
        CAPTURE(style.name);
        int64_t n = 9, k = 64;
        round_to_words(style, n, k);
        const Coded coded(style, n, k, 5);
        const DeviceMatrix w(coded);
        // The rows of a unit matrix pick the elements, one by one.
        std::vector<float> unit(static_cast<size_t>(k * k), 0.0f);
        for (int64_t i = 0; i < k; ++i) unit[static_cast<size_t>(i * k + i)] = 1.0f;
        std::vector<float> expected(static_cast<size_t>(k * n));
        reference::linear(unit.data(), k, k, coded.matrix(), {}, Compute::f32, expected.data(), n);
        const Tolerance nearly{0.0, 4 * unit_roundoff};
        CHECK(compare(on_device(unit, k, w.matrix(), Compute::f32), expected, nearly) == "");
        const auto few = std::vector<float>(unit.begin(), unit.begin() + 8 * k);
        expected.resize(static_cast<size_t>(8 * n));
        CHECK(compare(on_device(few, 8, w.matrix(), Compute::f32), expected, nearly) == "");
    }
}

TEST_CASE("cuda_linear_of_coded_weights_a_row_of_few_does_not_depend_on_the_others_bit_for_bit") {
    if (!has_device()) return;
    for (const Style& style : coded_styles) {
        CAPTURE(style.name);
        const int64_t k = 352, n = 8;
        const Coded coded(style, n, k, 7);
        const DeviceMatrix w(coded);
        for (const Compute compute : computes) {
            const int64_t rows = compute == Compute::f32 ? cuda::few_rows : 26;
            const std::vector<float> x = Numbers(3).floats(rows * k);
            const std::vector<float> all = on_device(x, rows, w.matrix(), compute);
            std::vector<float> pieces;
            for (int64_t r = 0; r < rows; ++r) {
                const std::vector<float> row(x.begin() + r * k, x.begin() + (r + 1) * k);
                const std::vector<float> one = on_device(row, 1, w.matrix(), compute);
                pieces.insert(pieces.end(), one.begin(), one.end());
            }
            CHECK(compare_bits(pieces, all) == "");
        }
    }
}

TEST_CASE("cuda_linear_of_weights_that_are_no_integers_takes_int8_as_bfloat16") {
    if (!has_device()) return;
    for (const Style& style : coded_styles) {
        CAPTURE(style.name);
        const int64_t k = 96, n = 8;
        const Coded coded(style, n, k, 7);
        if (multiplies_integers(coded.matrix(), Compute::int8)) continue;
        const DeviceMatrix w(coded);
        for (const int64_t rows : {2, 10, 70}) {
            const std::vector<float> x = Numbers(3).floats(rows * k);
            CHECK(compare_bits(on_device(x, rows, w.matrix(), Compute::int8),
                               on_device(x, rows, w.matrix(), Compute::bf16)) == "");
        }
    }
}

TEST_CASE("cuda_linear_decodes_in_pieces_what_does_not_fit_a_panel") {
    if (!has_device()) return;
    // A decoded row takes 8 MiB, a panel for few rows of x some 15.
    const int64_t k = int64_t{1} << 21, n = 2;
    const Coded coded({.coding = Coding::int4, .name = "int4"}, n, k, 7);
    const DeviceMatrix crooked(coded, 4);
    const std::vector<float> x = Numbers(3).floats(k, 0.0f, 1e-3f);
    const std::vector<float> found = on_device(x, 1, crooked.matrix(), Compute::f32);
    for (int64_t i = 0; i < n; ++i) {
        const float expected = reference::linear_element(x.data(), coded.matrix(), i, Compute::f32);
        CHECK(found[static_cast<size_t>(i)] == doctest::Approx(expected).epsilon(1e-3));
    }
}

}  // namespace mllama::test
