// Linear layers of integers on the GPU against the reference.
#include "kernels/cuda/linear_int.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/cuda/quantise_rows.h"
#include "kernels/reference.h"
#include "tests/cuda/device_matrix.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

const Style styles[] = {
    {.coding = Coding::int8, .name = "int8"},
    {.coding = Coding::int8, .name = "int8, f32", .scale = DType::f32},
    {.coding = Coding::int8, .name = "int8, one scale", .one_scale = true},
    {.coding = Coding::int4, .name = "int4, a row", .scale = DType::f16},
    {.coding = Coding::int4, .name = "int4, a row, zeros", .zeros = true},
    {.coding = Coding::int4, .name = "int4, 32", .group = 32},
    {.coding = Coding::int4, .name = "int4, 32, zeros", .group = 32, .zeros = true},
    {.coding = Coding::int4, .name = "int4, 64", .group = 64, .scale = DType::f32},
    {.coding = Coding::int4, .name = "int4, 64, zeros", .group = 64, .zeros = true},
    {.coding = Coding::int4, .name = "int4, 128", .group = 128},
    {.coding = Coding::int4, .name = "int4, 128, zeros", .group = 128, .zeros = true},
    {.coding = Coding::int4, .name = "int4, 256", .group = 256},
    {.coding = Coding::int4, .name = "int4, 384, zeros", .group = 384, .zeros = true},
};

/// One for each kernel.
const Style one_of_each[] = {styles[0], styles[4], styles[6], styles[7], styles[10]};

/// x (rows, k) and w (n, k), and how they lie.
struct Problem {
    int64_t rows, k, n;
    Coded w;
    int64_t x_stride, out_stride;
    std::vector<float> x;

    Problem(const Style& style, int64_t row_count, int64_t depth, int64_t columns)
        : rows(row_count),
          k(depth),
          n(columns),
          w(style, columns, depth, static_cast<uint32_t>(row_count * 31 + depth * 7 + columns)),
          x_stride(depth + 3),
          out_stride(columns + 2),
          x(Numbers(4).floats(rows * x_stride + 1)) {}

    [[nodiscard]] const float* row(int64_t r) const { return x.data() + 1 + r * x_stride; }
    [[nodiscard]] std::vector<float> out() const {
        return std::vector<float>(static_cast<size_t>(rows * out_stride + 1), 7.0f);
    }
};

/// The rows [first, first + count) of the product; those between the rows of `out` keep what they are.
std::vector<float> on_device(const Problem& p, const Matrix& w, int64_t first, int64_t count,
                             const Epilogue& epilogue = {}) {
    const DeviceArray<float> x(p.x);
    const DeviceArray<float> out(p.out());
    Epilogue moved = epilogue;
    if (moved.residual != nullptr) moved.residual = out.data() + first * p.out_stride;
    const Projection projection{w, moved, Compute::int8, out.data() + first * p.out_stride,
                                p.out_stride};
    cuda::linear_int(x.data() + 1 + first * p.x_stride, count, p.x_stride, {&projection, 1});
    return out.values();
}

std::vector<float> expected(const Problem& p, const Epilogue& epilogue = {}) {
    std::vector<float> out = p.out();
    Epilogue moved = epilogue;
    const std::vector<float> residual = out;
    if (moved.residual != nullptr) moved.residual = residual.data();
    reference::linear(p.row(0), p.rows, p.x_stride, p.w.matrix(), moved, Compute::int8, out.data(),
                      p.out_stride);
    return out;
}

void check_product(const Style& style, int64_t rows, int64_t k, int64_t n) {
    CAPTURE(style.name);
    CAPTURE(rows);
    CAPTURE(k);
    CAPTURE(n);
    const Problem p(style, rows, k, n);
    REQUIRE(multiplies_integers(p.w.matrix(), Compute::int8));
    const std::vector<float> right = expected(p);
    for (const int64_t offset : {int64_t{0}, element_bytes(style.coding)}) {
        CAPTURE(offset);
        const DeviceMatrix w(p.w, offset);
        CHECK(compare(on_device(p, w.matrix(), 0, rows), right, sum_tolerance(k)) == "");
    }
}

/// The same with the threads in both orders.
void check_orders(const Style& style, int64_t rows, int64_t k, int64_t n) {
    CAPTURE(style.name);
    CAPTURE(rows);
    const Problem p(style, rows, k, n);
    const DeviceMatrix w(p.w);
    const std::vector<float> right = expected(p);
    in_both_orders([&] {
        std::vector<float> found = on_device(p, w.matrix(), 0, rows);
        CHECK(compare(found, right, sum_tolerance(k)) == "");
        return found;
    });
}

// Rounding.

const int64_t awkward_widths[] = {1, 3, 31, 32, 33, 64, 100, 127, 128, 129, 250, 256, 1000, 4100};

/// Rows to round: ordinary ones, tiny ones, zeros, ties, and those that are not finite somewhere.
std::vector<float> rows_to_round(int64_t rows, int64_t width) {
    std::vector<float> x = Numbers(3).floats(rows * width, -3.0f, 3.0f);
    const auto row = [&](int64_t r) { return x.begin() + r * width; };
    const auto middle = width / 2;
    std::transform(row(1), row(2), row(1), [](float v) { return v * 0x1p-110f; });
    std::fill(row(2), row(3), 0.0f);
    for (int64_t i = 0; i < width; ++i) row(3)[i] = static_cast<float>(i % 255 - 127) * 0.5f;
    row(3)[middle] = 127.0f;
    row(4)[middle] = std::numeric_limits<float>::infinity();
    row(5)[width - 1] = std::numeric_limits<float>::quiet_NaN();
    std::transform(row(6), row(7), row(6), [](float v) { return v * 0x1p120f; });
    row(7)[middle] = smallest_quantised * 1.5f;
    std::fill(row(8), row(9), -smallest_quantised);
    return x;
}
constexpr int64_t rows_to_round_count = 10;

/// Copies of arrays of the device.
template <class T>
std::vector<T> copied(const T* from, int64_t n) {
    std::vector<T> result(static_cast<size_t>(n));
    if (n > 0) cuda::copy_to_host(result.data(), from, n * static_cast<int64_t>(sizeof(T)));
    return result;
}

/// Where column col of a row stands: in int4 the even ones of 32 come first.
int64_t place_of(int64_t col, bool nibbles) {
    return nibbles ? col / 32 * 32 + col % 2 * 16 + col % 32 / 2 : col;
}

void check_rounding(int64_t width, bool nibbles, int64_t segment, int64_t multiple) {
    CAPTURE(width);
    CAPTURE(nibbles);
    CAPTURE(segment);
    const int64_t rows = rows_to_round_count;
    const std::vector<float> x = rows_to_round(rows, width);
    const DeviceArray<float> in(x);
    const cuda::IntLayout layout{nibbles, width, segment};
    cuda::Workspace memory;
    const cuda::IntRows found =
        cuda::quantise_rows(in.data(), rows, width, layout, multiple, memory);
    REQUIRE(found.padded_rows == round_up(rows, multiple));
    const std::vector<int8_t> numbers = copied(found.numbers, rows * layout.stride());
    const std::vector<float> scales = copied(found.scales, layout.scales() * found.padded_rows);
    const std::vector<int32_t> sums = copied(found.sums, layout.sums() * found.padded_rows);
    const int64_t piece = nibbles ? cuda::x_piece : layout.stride();
    for (int64_t r = 0; r < rows; ++r) {
        CAPTURE(r);
        for (int64_t p = 0; p < layout.scales(); ++p) {
            std::vector<int8_t> right(static_cast<size_t>(piece), 0);
            const float scale = reference::quantise(
                x.data() + r * width + p * piece, std::min(piece, width - p * piece), right.data());
            CHECK(compare_bits({&scales[static_cast<size_t>(p * found.padded_rows + r)], 1},
                               {&scale, 1}) == "");
            std::vector<int8_t> in_order(right.size());
            for (int64_t i = 0; i < piece; ++i) {
                in_order[static_cast<size_t>(i)] = numbers[static_cast<size_t>(
                    r * layout.stride() + place_of(p * piece + i, nibbles))];
            }
            CHECK(in_order == right);
            for (int64_t s = 0; nibbles && s < piece / segment; ++s) {
                const auto begin = right.begin() + s * segment;
                const int64_t at = (p * piece / segment + s) * found.padded_rows + r;
                CHECK(sums[static_cast<size_t>(at)] == std::accumulate(begin, begin + segment, 0));
            }
        }
    }
}

}  // namespace

TEST_CASE("cuda_quantise_rows_gives_the_bits_of_the_reference") {
    if (!has_device()) return;
    for (const int64_t width : awkward_widths) {
        check_rounding(width, false, cuda::x_piece, 8);
        for (const int64_t segment : {32, 64, 128}) check_rounding(width, true, segment, 128);
    }
}

TEST_CASE("cuda_linear_int_of_any_style_matches_reference") {
    if (!has_device()) return;
    for (const Style& style : styles) {
        for (const int64_t rows : {3, 9}) {
            for (const int64_t k : {33, 400}) check_product(style, rows, k, 5);
        }
    }
}

TEST_CASE("cuda_linear_int_of_any_depth_matches_reference") {
    if (!has_device()) return;
    for (const Style& style : one_of_each) {
        // Around words, loads, chunks of 64 bytes, pieces of x and steps of a warp.
        for (const int64_t k : {1, 8, 31, 32, 64, 127, 160, 513}) {
            check_product(style, 3, k, 3);
            check_product(style, 9, k, 3);
        }
        check_product(style, 2, 2336, 3);
    }
}

TEST_CASE("cuda_linear_int_of_any_rows_and_columns_matches_reference") {
    if (!has_device()) return;
    for (const Style& style : one_of_each) {
        for (const int64_t rows : {0, 1, 2, 5, 8, 17, 65}) check_product(style, rows, 160, 11);
        for (const int64_t n : {0, 1, 7, 8, 9, 17, 130}) check_product(style, 4, 32, n);
        for (const int64_t n : {0, 1, 8, 63, 64, 65}) check_product(style, 9, 32, n);
    }
}

TEST_CASE("cuda_linear_int_in_any_order_of_threads_matches_reference") {
    if (!has_device()) return;
    for (const Style& style : one_of_each) {
        check_orders(style, 3, 416, 20);
        check_orders(style, 9, 416, 70);
    }
}

TEST_CASE("cuda_linear_int_large_tiles_match_reference") {
    if (!has_device()) return;
    for (const Style& style : one_of_each) check_orders(style, 130, 96, 129);
    // Steps enough for the stages to come round.
    check_product(one_of_each[0], 129, 304, 130);
    check_product(one_of_each[4], 129, 416, 130);
}

TEST_CASE("cuda_linear_int_without_columns_is_the_epilogue_alone") {
    if (!has_device()) return;
    for (const Style& style : {styles[0], styles[5], styles[10]}) {
        for (const int64_t rows : {2, 11}) check_product(style, rows, 0, 5);
    }
}

TEST_CASE("cuda_linear_int_every_epilogue_matches_reference") {
    if (!has_device()) return;
    for (const Style& style : {styles[0], styles[9]}) {
        for (const int64_t rows : {3, 11}) {
            for (const Activation activation :
                 {Activation::none, Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu,
                  Activation::silu, Activation::relu}) {
                CAPTURE(rows);
                CAPTURE(static_cast<int>(activation));
                const Problem p(style, rows, 96, 21);
                const DeviceMatrix w(p.w);
                const std::vector<float> bias = Numbers(8).floats(p.n);
                const DeviceArray<float> device_bias(bias);
                Tolerance tolerance = sum_tolerance(96);
                tolerance.absolute += 16 * unit_roundoff;
                for (const bool added : {false, true}) {
                    Epilogue epilogue{bias.data(), activation, 0.75f,
                                      added ? bias.data() : nullptr};
                    const std::vector<float> right = expected(p, epilogue);
                    epilogue.bias = device_bias.data();
                    CHECK(compare(on_device(p, w.matrix(), 0, rows, epilogue), right, tolerance) ==
                          "");
                }
            }
        }
    }
}

TEST_CASE("cuda_linear_int_extreme_numbers_do_not_overflow") {
    if (!has_device()) return;
    // As wide as a matrix may be, for a row; what is left of its time for a tile.
    // -128 in int8; -8 and 7 in int4, stored as 0 and 15.
    const std::pair<Style, uint8_t> extremes[] = {{styles[0], uint8_t{0x80}},
                                                  {styles[3], uint8_t{0}},
                                                  {styles[3], uint8_t{0xFF}},
                                                  {styles[9], uint8_t{0}},
                                                  {styles[9], uint8_t{0xFF}}};
    for (const auto& [style, numbers] : extremes) {
        CAPTURE(style.name);
        for (const int64_t rows : {1, 9}) {
            const int64_t k = rows == 1 ? int64_t{1} << 17 : 2048;
            CAPTURE(k);
            Problem p(style, rows, k, 1);
            std::fill(p.x.begin(), p.x.end(), 127.0f);
            const std::vector<uint8_t> bytes(static_cast<size_t>(k), numbers);
            const DeviceArray<uint8_t> device_bytes(bytes);
            const DeviceMatrix w(p.w);
            Matrix here = p.w.matrix(), there = w.matrix();
            here.data = bytes.data();
            there.data = device_bytes.data();
            std::vector<float> right = p.out();
            reference::linear(p.row(0), rows, p.x_stride, here, {}, Compute::int8, right.data(),
                              p.out_stride);
            CHECK(compare(on_device(p, there, 0, rows), right, {0.0, 1e-5}) == "");
        }
    }
}

TEST_CASE("cuda_linear_int_what_sums_cannot_hold_is_an_error") {
    if (!has_device()) return;
    const DeviceArray<float> x(std::vector<float>(1));
    Matrix w{x.data(), DType::i8, 1, (int64_t{1} << 17) + 1, 0, Coding::int8, {}};
    w.groups.size = w.cols;
    CHECK_THROWS(one_layer(cuda::linear, x.data(), 1, w.cols, w, {}, Compute::int8, x.data(), 1));
    w.coding = Coding::int4;
    w.cols = w.groups.size = 8;
    w.groups.zero_add = 128;
    CHECK_THROWS(one_layer(cuda::linear, x.data(), 1, w.cols, w, {}, Compute::int8, x.data(), 1));
}

TEST_CASE("cuda_linear_int_not_finite_input_gives_nan_in_its_row_alone") {
    if (!has_device()) return;
    for (const Style& style : styles) {
        CAPTURE(style.name);
        for (const int64_t rows : {3, 12}) {
            Problem p(style, rows, 200, 20);
            p.x[static_cast<size_t>(1 + p.x_stride + 150)] = std::numeric_limits<float>::infinity();
            p.x[static_cast<size_t>(1 + 2 * p.x_stride)] = std::numeric_limits<float>::quiet_NaN();
            const DeviceMatrix w(p.w);
            const std::vector<float> found = on_device(p, w.matrix(), 0, rows);
            CHECK(compare(found, expected(p), sum_tolerance(200)) == "");
            CHECK(std::isfinite(found[0]));
            CHECK(std::isnan(found[static_cast<size_t>(p.out_stride)]));
        }
    }
}

TEST_CASE("cuda_linear_int_a_row_of_few_does_not_depend_on_the_others_bit_for_bit") {
    if (!has_device()) return;
    for (const Style& style : styles) {
        CAPTURE(style.name);
        const Problem p(style, 8, 640, 9);
        const DeviceMatrix w(p.w);
        const std::vector<float> all = on_device(p, w.matrix(), 0, 8);
        for (const int64_t count : {1, 3}) {
            std::vector<float> found = p.out();
            for (int64_t first = 0; first < p.rows; first += count) {
                const int64_t rows = std::min(count, p.rows - first);
                const std::vector<float> some = on_device(p, w.matrix(), first, rows);
                const int64_t begin = first * p.out_stride, end = begin + rows * p.out_stride;
                std::copy(some.begin() + begin, some.begin() + end, found.begin() + begin);
            }
            CHECK(compare_bits(found, all) == "");
        }
    }
}

TEST_CASE("cuda_linear_int_a_row_of_many_does_not_depend_on_the_others_bit_for_bit") {
    if (!has_device()) return;
    for (const Style& style : one_of_each) {
        CAPTURE(style.name);
        const Problem p(style, 130, 144, 129);
        const DeviceMatrix w(p.w);
        const std::vector<float> all = on_device(p, w.matrix(), 0, 130);
        std::vector<float> few = on_device(p, w.matrix(), 100, 9);  // other tiles
        few = {few.begin() + 100 * p.out_stride, few.begin() + 109 * p.out_stride};
        CHECK(compare_bits(few, {all.data() + 100 * p.out_stride, few.size()}) == "");
    }
}

TEST_CASE("cuda_linear_int_many_rows_agree_with_few") {
    if (!has_device()) return;
    for (const Style& style : styles) {
        CAPTURE(style.name);
        const Problem p(style, 9, 1200, 9);
        const DeviceMatrix w(p.w);
        std::vector<float> few = on_device(p, w.matrix(), 0, 8);
        std::vector<float> many = on_device(p, w.matrix(), 0, 9);
        few.resize(static_cast<size_t>(8 * p.out_stride));
        many.resize(few.size());
        CHECK(compare(few, many, sum_tolerance(1200)) == "");
        // The sums of int8 are whole numbers to the end.
        if (style.coding == Coding::int8) CHECK(compare_bits(few, many) == "");
    }
}

}  // namespace mllama::test
