// Linear layers with weights in int8 and int4, multiplied as integers: every table against the
// reference, and their independence of batch, split and threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/reference.h"
#include "tests/compare.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

/// How weights are cut into groups.
struct Kind {
    Coding coding;
    int64_t group_size;  ///< 0: the whole row
    bool zeros = false;  ///< a zero for each group
    DType scale_dtype = DType::bf16;
};

const std::vector<Kind> kinds{{Coding::int8, 0, false, DType::f32},
                              {Coding::int8, 0, false, DType::bf16},
                              {Coding::int4, 128},
                              {Coding::int4, 64, false, DType::f16},
                              {Coding::int4, 32},
                              {Coding::int4, 256},
                              {Coding::int4, 0},
                              {Coding::int4, 128, true},
                              {Coding::int4, 32, true, DType::f32}};

/// Random coded weights (n, k) and random x (rows, k), rows x_stride apart.
struct Problem {
    int64_t rows, k, n, x_stride;
    std::vector<float> x;
    std::vector<uint8_t> numbers;
    Typed scale;
    std::vector<int32_t> zero;
    Matrix w;

    Problem(int64_t row_count, int64_t depth, int64_t columns, const Kind& kind, uint32_t seed)
        : rows(row_count),
          k(depth),
          n(columns),
          x_stride(depth + 3),
          x(Numbers(seed).floats(rows * x_stride + 1, -3.0f, 3.0f)),
          scale(Numbers(seed + 1).floats(columns * groups_of(depth, kind), 0.01f, 0.02f),
                kind.scale_dtype) {
        Numbers random(seed + 2);
        const int64_t row_bytes = kind.coding == Coding::int8 ? k : (k + 7) / 8 * 4;
        numbers.resize(static_cast<size_t>(n * row_bytes + 4));
        for (uint8_t& byte : numbers) byte = static_cast<uint8_t>(random.below(256));
        const int64_t groups = groups_of(k, kind);
        w = {numbers.data(), DType::i8, n, k, k, kind.coding, {}};
        w.groups.size = kind.group_size == 0 ? std::max<int64_t>(k, 1) : kind.group_size;
        w.groups.scale = scale.data();
        w.groups.scale_dtype = kind.scale_dtype;
        w.groups.scale_row = groups;
        w.groups.scale_group = 1;
        w.groups.zero_add = kind.coding == Coding::int4 ? 8 : 0;
        if (!kind.zeros) return;
        zero.resize(static_cast<size_t>((n + 7) / 8 * groups));
        for (int32_t& word : zero) word = static_cast<int32_t>(random.below(int64_t{1} << 32));
        w.groups.zero_add = 0;
        w.groups.zero = zero.data();
        w.groups.zero_row = groups;
        w.groups.zero_group = 1;
    }

    static int64_t groups_of(int64_t k, const Kind& kind) {
        return kind.group_size == 0 ? 1 : (k + kind.group_size - 1) / kind.group_size;
    }
    [[nodiscard]] const float* x_data() const { return x.data() + 1; }
};

/// Sums of k products of |x| <= 3 and |w| <= 128 * 0.02.
Tolerance int_tolerance(int64_t k) {
    Tolerance tolerance = sum_tolerance(k);
    tolerance.absolute *= 3.0 * 128 * 0.02;
    return tolerance;
}

void check_product(int64_t rows, int64_t k, int64_t n, const Kind& kind) {
    CAPTURE(rows);
    CAPTURE(k);
    CAPTURE(n);
    CAPTURE(kind.group_size);
    CAPTURE(kind.zeros);
    CAPTURE(static_cast<int>(kind.coding));
    const Problem p(rows, k, n, kind, static_cast<uint32_t>(rows + 31 * k + 1000 * n));
    REQUIRE(multiplies_integers(p.w, Compute::int8));
    const int64_t out_stride = n + 2;
    std::vector<float> found(static_cast<size_t>(rows * out_stride), 7.0f), expected = found;
    one_layer(cpu::linear, p.x_data(), rows, p.x_stride, p.w, {}, Compute::int8, found.data(),
              out_stride);
    reference::linear(p.x_data(), rows, p.x_stride, p.w, {}, Compute::int8, expected.data(),
                      out_stride);
    CHECK(compare(found, expected, int_tolerance(k)) == "");
}

}  // namespace

TEST_CASE("quantise_rounds_to_nearest_even_of_127_steps") {
    const std::vector<float> x{127.0f, 0.5f, 1.5f, -2.5f, -127.0f, 3.49f};
    std::vector<int8_t> numbers(x.size());
    CHECK(reference::quantise(x.data(), 6, numbers.data()) == 1.0f);
    CHECK(numbers == std::vector<int8_t>{127, 0, 2, -2, -127, 3});
    const std::vector<float> tiny{1e-38f, -1e-40f};
    CHECK(reference::quantise(tiny.data(), 2, numbers.data()) == 0.0f);
    CHECK(numbers[0] == 0);
    const std::vector<float> infinite{1.0f, std::numeric_limits<float>::infinity()};
    CHECK(std::isnan(reference::quantise(infinite.data(), 2, numbers.data())));
    CHECK(numbers[0] == 0);
}

TEST_CASE("linear_int_awkward_sizes_match_reference") {
    for_each_table([] {
        for (const Kind& kind : kinds) {
            for (const int64_t k : {1, 7, 8, 31, 33, 64, 100, 127, 128, 129, 256, 300, 520}) {
                for (const int64_t rows : {1, 2, 3, 5, 20}) check_product(rows, k, 19, kind);
            }
            for (const int64_t n : {1, 4, 15, 16, 17, 63, 64, 65, 130}) {
                for (const int64_t rows : {1, 4, 9, 13}) check_product(rows, 200, n, kind);
            }
            // More than one block of columns.
            for (const int64_t rows : {1, 17}) check_product(rows, 4096 + 72, 20, kind);
        }
    });
}

TEST_CASE("linear_int_epilogue_and_residual_match_reference") {
    for_each_table([] {
        for (const Kind& kind : {kinds[0], kinds[2]}) {
            for (const int64_t rows : {2, 21}) {
                const Problem p(rows, 96, 50, kind, 5);
                const std::vector<float> bias = Numbers(6).floats(50);
                std::vector<float> found = Numbers(7).floats(rows * 50), expected = found;
                const Epilogue in_place{bias.data(), Activation::gelu, 0.5f, found.data()};
                Epilogue apart = in_place;
                const std::vector<float> residual = found;
                apart.residual = residual.data();
                one_layer(cpu::linear, p.x_data(), rows, p.x_stride, p.w, in_place, Compute::int8,
                          found.data(), 50);
                reference::linear(p.x_data(), rows, p.x_stride, p.w, apart, Compute::int8,
                                  expected.data(), 50);
                CHECK(compare(found, expected, int_tolerance(96)) == "");
            }
        }
    });
}

TEST_CASE("linear_int_extreme_numbers_do_not_overflow") {
    for_each_table([] {
        // -128 and 127 in int8; -8 and 7 in int4, stored as 0 and 15; and x at its largest.
        const std::pair<Coding, uint8_t> extremes[] = {{Coding::int8, uint8_t{0x80}},
                                                       {Coding::int8, uint8_t{0x7F}},
                                                       {Coding::int4, uint8_t{0}},
                                                       {Coding::int4, uint8_t{0xFF}}};
        for (const auto& [coding, number] : extremes) {
            const Kind kind{coding, 0, false, DType::f32};
            for (const int64_t rows : {1, 40}) {
                Problem p(rows, 28672, 17, kind, 3);
                std::fill(p.numbers.begin(), p.numbers.end(), number);
                std::fill(p.x.begin(), p.x.end(), 127.0f);
                std::vector<float> found(static_cast<size_t>(rows * 17)), expected = found;
                one_layer(cpu::linear, p.x_data(), rows, p.x_stride, p.w, {}, Compute::int8,
                          found.data(), 17);
                reference::linear(p.x_data(), rows, p.x_stride, p.w, {}, Compute::int8,
                                  expected.data(), 17);
                CHECK(compare(found, expected, {0.0, 1e-5}) == "");
            }
        }
    });
}

TEST_CASE("linear_int_not_finite_input_gives_nan_in_its_row_alone") {
    for_each_table([] {
        for (const Kind& kind : kinds) {
            Problem p(3, 200, 20, kind, 9);
            p.x[static_cast<size_t>(1 + p.x_stride + 150)] = std::numeric_limits<float>::infinity();
            std::vector<float> found(60), expected(60);
            one_layer(cpu::linear, p.x_data(), 3, p.x_stride, p.w, {}, Compute::int8, found.data(),
                      20);
            reference::linear(p.x_data(), 3, p.x_stride, p.w, {}, Compute::int8, expected.data(),
                              20);
            CHECK(compare(found, expected, int_tolerance(200)) == "");
            CHECK(std::isnan(found[20]));
            CHECK(std::isfinite(found[0]));
        }
    });
}

TEST_CASE("linear_int_rows_do_not_depend_on_batch_split_or_threads_bit_for_bit") {
    for_each_table([] {
        for (const Kind& kind : kinds) {
            const Problem p(37, 4500, 150, kind, 21);
            CHECK(compare_splits(p.rows, p.n, [&](int64_t first, int64_t count, float* out) {
                      one_layer(cpu::linear, p.x_data() + first * p.x_stride, count, p.x_stride,
                                p.w, {}, Compute::int8, out, p.n);
                  }) == "");
        }
    });
}

TEST_CASE("multiplies_integers_leaves_other_groups_to_decoding") {
    Matrix w{nullptr, DType::i32, 64, 512, 512, Coding::int4, {}};
    w.groups.scale_group = 1;
    for (const int64_t size : {32, 64, 128, 256, 512, 1024}) {
        w.groups.size = size;
        CHECK(multiplies_integers(w, Compute::int8));
        CHECK(!multiplies_integers(w, Compute::bf16));
    }
    for (const int64_t size : {8, 16, 48, 96, 192}) {
        w.groups.size = size;
        CHECK(!multiplies_integers(w, Compute::int8));
    }
    w.groups.size = 128;
    const int32_t order[1] = {0};
    w.groups.of_column = order;
    CHECK(!multiplies_integers(w, Compute::int8));
    w.groups.of_column = nullptr;
    w.coding = Coding::int8;
    CHECK(!multiplies_integers(w, Compute::int8));
    w.groups.size = 512;
    CHECK(multiplies_integers(w, Compute::int8));
}

}  // namespace mllama::test
