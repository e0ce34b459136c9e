// Linear layers of coded weights on the GPU, which decode them, against the reference.
#include "kernels/reference.h"
#include "tests/cuda/device_matrix.h"

namespace mllama::test {
namespace {

std::vector<float> on_device(const std::vector<float>& x, int64_t rows, const Matrix& w,
                             Compute compute) {
    const DeviceArray<float> in(x);
    const DeviceArray<float> out(std::vector<float>(static_cast<size_t>(rows * w.rows), 7.0f));
    cuda::linear(in.data(), rows, w.cols, w, {}, compute, out.data(), w.rows);
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
    for (const int64_t offset : {int64_t{0}, element_bytes(style.coding)}) {
        CAPTURE(offset);
        const DeviceMatrix w(coded, offset);
        in_both_orders([&] {
            std::vector<float> found = on_device(x, rows, w.matrix(), compute);
            CHECK(compare(found, expected, coded_tolerance(k, compute)) == "");
            return found;
        });
    }
}

constexpr Compute computes[] = {Compute::f32, Compute::bf16};

}  // namespace

TEST_CASE("cuda_linear_of_coded_weights_matches_reference") {
    if (!has_device()) return;
    for (const Style& style : coded_styles) {
        for (const Compute compute : computes) {
            for (const int64_t k : {1, 2, 7, 8, 31, 32, 33, 64, 160, 250})
                check_linear(style, 3, k, 9, compute);
            for (const int64_t n : {1, 7, 8, 17}) check_linear(style, 2, 96, n, compute);
            for (const int64_t rows : {1, 5, 8, 9, 20}) check_linear(style, rows, 96, 21, compute);
            check_linear(style, 1, 1152, 10, compute);
            check_linear(style, 9, 1152, 10, compute);
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
        const int64_t rows = 8, k = 352, n = 24;
        const Coded coded(style, n, k, 7);
        const DeviceMatrix w(coded);
        const std::vector<float> x = Numbers(3).floats(rows * k);
        for (const Compute compute : computes) {
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

}  // namespace mllama::test
