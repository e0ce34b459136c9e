// Matrix products of every table against the reference, and their independence of batch, split and
// threads.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/reference.h"
#include "tests/compare.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

/// The factors of a product. x (rows, k) with rows x_stride apart, w (n, k) with rows w_stride
/// apart.
struct Problem {
    int64_t rows, k, n, x_stride;
    std::vector<float> x;
    Typed w_data;
    Matrix w;

    Problem(int64_t row_count, int64_t depth, int64_t columns, DType dtype, uint32_t seed)
        : rows(row_count),
          k(depth),
          n(columns),
          x_stride(depth + 3),
          x(Numbers(seed).floats(rows * x_stride + 1)),
          w_data(Numbers(seed + 1).floats(columns * (depth + 5)), dtype),
          w{w_data.data(), dtype, columns, depth, depth + 5} {}

    const float* x_data() const { return x.data() + 1; }
};

struct Result {
    std::vector<float> found, expected;
};

/// Both implementations, with gaps between the rows of `out` that must stay as they are.
Result run(const Problem& p, const Epilogue& epilogue, Compute compute) {
    const int64_t out_stride = p.n + 2;
    std::vector<float> found(static_cast<size_t>(p.rows * out_stride), 7.0f);
    std::vector<float> expected = found;
    one_layer(cpu::linear, p.x_data(), p.rows, p.x_stride, p.w, epilogue, compute, found.data(),
              out_stride);
    reference::linear(p.x_data(), p.rows, p.x_stride, p.w, epilogue, compute, expected.data(),
                      out_stride);
    return {found, expected};
}

void check_product(int64_t rows, int64_t k, int64_t n, DType dtype, Compute compute) {
    CAPTURE(rows);
    CAPTURE(k);
    CAPTURE(n);
    CAPTURE(std::string(dtype_name(dtype)));
    CAPTURE(compute == Compute::bf16);
    const Problem p(rows, k, n, dtype, static_cast<uint32_t>(rows * 31 + k * 7 + n));
    const Result result = run(p, {}, compute);
    CHECK(compare(result.found, result.expected, sum_tolerance(k)) == "");
}

constexpr DType weight_types[] = {DType::f32, DType::bf16, DType::f16};
constexpr Compute computes[] = {Compute::f32, Compute::bf16};

}  // namespace

TEST_CASE("linear_every_remainder_of_rows_columns_and_depth_matches_reference") {
    for_each_table([] {
        const cpu::Product& product = cpu::table().bf16;
        for (const Compute compute : computes) {
            for (const DType dtype : weight_types) {
                for (const int64_t k : sizes_around_lanes()) check_product(3, k, 5, dtype, compute);
                for (const int64_t n : sizes_around_lanes())
                    check_product(2, 33, n, dtype, compute);
                for (int64_t n = 1; n <= 2 * product.panel_width + 3; n += 13) {
                    check_product(product.tile_rows + 1, 70, n, dtype, compute);
                }
                for (int64_t rows = 0; rows <= 2 * product.tile_rows + 1; ++rows) {
                    check_product(rows, 37, product.panel_width + 1, dtype, compute);
                }
            }
        }
    });
}

TEST_CASE("linear_depth_of_several_blocks_matches_reference") {
    for_each_table([] {
        for (const Compute compute : computes) {
            for (const DType dtype : weight_types) {
                check_product(1, 2051, 70, dtype, compute);
                check_product(17, 1025, 67, dtype, compute);
                check_product(4, 1024, 64, dtype, compute);
            }
        }
    });
}

TEST_CASE("linear_more_rows_than_a_block_matches_reference") {
    for_each_table([] { check_product(1030, 5, 3, DType::bf16, Compute::bf16); });
}

TEST_CASE("linear_every_epilogue_matches_reference") {
    for_each_table([] {
        for (const Activation activation :
             {Activation::none, Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu,
              Activation::silu, Activation::relu}) {
            for (const int64_t n : {1, 19, 70}) {
                CAPTURE(static_cast<int>(activation));
                const Problem p(9, 24, n, DType::f32, 5);
                const std::vector<float> bias = Numbers(8).floats(n);
                const std::vector<float> residual = Numbers(9).floats(p.rows * (n + 2));
                const Tolerance tolerance{(24 + 16) * unit_roundoff, 16 * unit_roundoff};
                for (const float* add : {static_cast<const float*>(nullptr), residual.data()}) {
                    for (const float* shift : {static_cast<const float*>(nullptr), bias.data()}) {
                        const Result result = run(p, {shift, activation, 0.75f, add}, Compute::f32);
                        CHECK(compare(result.found, result.expected, tolerance) == "");
                    }
                }
            }
        }
    });
}

TEST_CASE("linear_residual_that_is_the_output_is_added_to") {
    for_each_table([] {
        const Problem p(13, 20, 70, DType::bf16, 3);
        std::vector<float> found = Numbers(4).floats(p.rows * p.n);
        std::vector<float> expected = found;
        const Epilogue in_place{nullptr, Activation::none, 1.0f, found.data()};
        const Epilogue in_place_expected{nullptr, Activation::none, 1.0f, expected.data()};
        one_layer(cpu::linear, p.x_data(), p.rows, p.x_stride, p.w, in_place, Compute::f32,
                  found.data(), p.n);
        reference::linear(p.x_data(), p.rows, p.x_stride, p.w, in_place_expected, Compute::f32,
                          expected.data(), p.n);
        CHECK(compare(found, expected, sum_tolerance(20)) == "");
    });
}

TEST_CASE("linear_not_finite_input_stays_in_its_row_or_column") {
    for_each_table([] {
        for (const Compute compute : computes) {
            const int64_t rows = 8, k = 35, n = 70;
            Numbers numbers(11);
            std::vector<float> x = numbers.floats(rows * k), w = numbers.floats(n * k, 0.5f, 1.0f);
            x[static_cast<size_t>(2 * k + 34)] = std::numeric_limits<float>::quiet_NaN();
            x[static_cast<size_t>(4 * k + 1)] = std::numeric_limits<float>::infinity();
            w[static_cast<size_t>(69 * k + 7)] = std::numeric_limits<float>::quiet_NaN();
            const Matrix matrix{w.data(), DType::f32, n, k, k};
            std::vector<float> found(static_cast<size_t>(rows * n)), expected = found;
            one_layer(cpu::linear, x.data(), rows, k, matrix, {}, compute, found.data(), n);
            reference::linear(x.data(), rows, k, matrix, {}, compute, expected.data(), n);
            CHECK(compare(found, expected, sum_tolerance(k)) == "");
            CHECK(std::isnan(found[2 * n]));
            CHECK(std::isinf(found[4 * n]));
        }
    });
}

TEST_CASE("linear_rows_do_not_depend_on_batch_split_or_threads_bit_for_bit") {
    for_each_table([] {
        for (const Compute compute : computes) {
            for (const DType dtype : weight_types) {
                const Problem p(37, 1100, 150, dtype, 21);
                const Epilogue epilogue{nullptr, Activation::silu, 0.5f, nullptr};
                CHECK(compare_splits(p.rows, p.n, [&](int64_t first, int64_t count, float* out) {
                          one_layer(cpu::linear, p.x_data() + first * p.x_stride, count, p.x_stride,
                                    p.w, epilogue, compute, out, p.n);
                      }) == "");
            }
        }
    });
}

}  // namespace mllama::test
