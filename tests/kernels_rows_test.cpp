// The operations on rows and elements, of every table, against the reference.
#include <doctest/doctest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cpu.h"
#include "kernels/cpu_ops.h"
#include "kernels/reference.h"
#include "tests/compare.h"

namespace mllama::test {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr DType types[] = {DType::f32, DType::bf16, DType::f16};
constexpr Activation activations[] = {Activation::none,      Activation::gelu,
                                      Activation::gelu_tanh, Activation::quick_gelu,
                                      Activation::silu,      Activation::relu};

/// Every finite size of number, both signs, and what is not finite.
std::vector<float> numbers_of_every_size() {
    std::vector<float> values = {0.0f,   -0.0f,   nan,     infinity, -infinity,
                                 1e-45f, -1e-45f, 3.4e38f, -3.4e38f};
    for (float magnitude = 1e-38f; magnitude < 1e38f; magnitude *= 1.7f) {
        values.push_back(magnitude);
        values.push_back(-magnitude);
    }
    return values;
}

/// A wide sweep of the interval in which a function of one number does something.
std::vector<float> sweep(float low, float high, int64_t n) {
    std::vector<float> values;
    for (int64_t i = 0; i <= n; ++i) {
        values.push_back(low + (high - low) * static_cast<float>(i) / static_cast<float>(n));
    }
    return values;
}

std::vector<float> exponential_of(std::vector<float> values) {
    cpu::table().exponential(values.data(), static_cast<int64_t>(values.size()));
    return values;
}

}  // namespace

TEST_CASE("exponential_whole_range_is_within_two_units_in_the_last_place") {
    for_each_table([] {
        for (const std::vector<float>& values :
             {sweep(-110.0f, 95.0f, 400000), sweep(-1.0f, 1.0f, 100000), numbers_of_every_size()}) {
            std::vector<float> expected;
            for (const float x : values)
                expected.push_back(static_cast<float>(std::exp(double{x})));
            CHECK(compare(exponential_of(values), expected, {1.5e-45, 4 * unit_roundoff}) == "");
        }
    });
}

TEST_CASE("exponential_of_minus_infinity_is_zero_and_of_nan_is_nan") {
    for_each_table([] {
        const std::vector<float> out =
            exponential_of({-infinity, -1e30f, -105.0f, 0.0f, infinity, nan, 89.0f});
        CHECK(compare_bits(
                  out, std::vector<float>{0.0f, 0.0f, 0.0f, 1.0f, infinity, nan, infinity}) == "");
    });
}

TEST_CASE("activate_every_activation_matches_reference") {
    for_each_table([] {
        for (const Activation activation : activations) {
            CAPTURE(static_cast<int>(activation));
            for (const std::vector<float>& values :
                 {sweep(-30.0f, 30.0f, 300000), sweep(-120.0f, 120.0f, 10001),
                  numbers_of_every_size()}) {
                std::vector<float> found = values, expected = values;
                cpu::activate(found.data(), static_cast<int64_t>(found.size()), activation);
                reference::activate(expected.data(), static_cast<int64_t>(expected.size()),
                                    activation);
                // A few units in the last place; but where the argument of the exponential is
                // itself rounded, the negative tail is only exact beside 1. (And exp(-x) overflows
                // where silu is still 1e-36.)
                const bool rounded =
                    activation == Activation::gelu_tanh || activation == Activation::quick_gelu;
                const double tail = rounded ? 1e-7 : 1e-36;
                CHECK(compare(found, expected, {tail, 8 * unit_roundoff}) == "");
            }
        }
    });
}

TEST_CASE("activate_any_size_changes_only_its_elements") {
    for_each_table([] {
        for (const Activation activation : activations) {
            for (const int64_t n : sizes_around_lanes()) {
                std::vector<float> found = Numbers(3).floats(n + 2, -3.0f, 3.0f), expected = found;
                cpu::activate(found.data() + 1, n, activation);
                reference::activate(expected.data() + 1, n, activation);
                CHECK(compare(found, expected, {8 * unit_roundoff, 8 * unit_roundoff}) == "");
            }
        }
    });
}

TEST_CASE("gated_every_activation_and_size_matches_reference") {
    for_each_table([] {
        for (const Activation activation : activations) {
            for (const int64_t width : sizes_around_lanes()) {
                const int64_t rows = 3, stride = 2 * width + 1;
                const std::vector<float> both = Numbers(5).floats(rows * stride + 1, -4.0f, 4.0f);
                std::vector<float> found(static_cast<size_t>(rows * (width + 1)), 7.0f),
                    expected = found;
                const float* gate = both.data() + 1;
                cpu::gated(gate, gate + width, rows, width, stride, activation, found.data(),
                           width + 1);
                reference::gated(gate, gate + width, rows, width, stride, activation,
                                 expected.data(), width + 1);
                CHECK(compare(found, expected, {8 * unit_roundoff, 8 * unit_roundoff}) == "");
            }
        }
    });
}

TEST_CASE("gated_into_its_gate_matches_reference") {
    for_each_table([] {
        std::vector<float> found = Numbers(5).floats(2 * 74), expected = found;
        cpu::gated(found.data(), found.data() + 37, 2, 37, 74, Activation::silu, found.data(), 74);
        reference::gated(expected.data(), expected.data() + 37, 2, 37, 74, Activation::silu,
                         expected.data(), 74);
        CHECK(compare(found, expected, {8 * unit_roundoff, 8 * unit_roundoff}) == "");
    });
}

namespace {

/// Both norms of rows of any kind; in place if asked for.
void check_norms(int64_t rows, int64_t width, float low, float high, DType dtype, bool in_place) {
    CAPTURE(rows);
    CAPTURE(width);
    CAPTURE(std::string(dtype_name(dtype)));
    const std::vector<float> x = Numbers(1).floats(rows * width + 1, low, high);
    const Typed weight(Numbers(2).floats(width), dtype), bias(Numbers(3).floats(width), dtype);
    // The mean is rounded to float32; how far that is felt depends on how far the mean is from
    // zero.
    const double shift = static_cast<double>(std::abs(low + high) / (high - low));
    const Tolerance tolerance{(8 + 8 * shift) * unit_roundoff, 8 * unit_roundoff};
    std::vector<float> expected(x.size() - 1), found(x.begin() + 1, x.end());
    const float* from = in_place ? found.data() : x.data() + 1;

    cpu::rms_norm(from, rows, width, weight.data(), dtype, 1e-5f, found.data());
    reference::rms_norm(x.data() + 1, rows, width, weight.data(), dtype, 1e-5f, expected.data());
    CHECK(compare(found, expected, tolerance) == "");

    found.assign(x.begin() + 1, x.end());
    cpu::layer_norm(from, rows, width, weight.data(), bias.data(), dtype, 1e-5f, found.data());
    reference::layer_norm(x.data() + 1, rows, width, weight.data(), bias.data(), dtype, 1e-5f,
                          expected.data());
    CHECK(compare(found, expected, tolerance) == "");
}

}  // namespace

TEST_CASE("norms_every_size_and_type_match_reference") {
    for_each_table([] {
        for (const DType dtype : types) {
            for (const int64_t width : sizes_around_lanes()) {
                if (width > 0) check_norms(3, width, -2.0f, 2.0f, dtype, false);
            }
            check_norms(2, 4099, -2.0f, 2.0f, dtype, true);
            check_norms(40, 1280, -1e-3f, 1e-3f, dtype, false);
            check_norms(2, 1000, 99.0f, 101.0f, dtype, true);
        }
        check_norms(0, 16, -1.0f, 1.0f, DType::f32, false);
    });
}

TEST_CASE("norms_keep_a_nan_in_its_row") {
    for_each_table([] {
        std::vector<float> x = Numbers(1).floats(2 * 19), out(x.size());
        const std::vector<float> weight(19, 1.0f);
        x[3] = nan;
        cpu::rms_norm(x.data(), 2, 19, weight.data(), DType::f32, 1e-5f, out.data());
        CHECK(std::isnan(out[18]));
        CHECK(std::isfinite(out[19]));
        cpu::layer_norm(x.data(), 2, 19, weight.data(), weight.data(), DType::f32, 1e-5f,
                        out.data());
        CHECK(std::isnan(out[18]));
        CHECK(std::isfinite(out[19]));
    });
}

TEST_CASE("rope_every_size_matches_reference") {
    for_each_table([] {
        for (const int64_t half : sizes_around_lanes()) {
            const int64_t rows = 3, heads = 2, stride = heads * 2 * half + 3;
            std::vector<float> angles = Numbers(2).floats(rows * half, -3.0f, 3.0f), cosines, sines;
            for (const float angle : angles) {
                cosines.push_back(std::cos(angle));
                sines.push_back(std::sin(angle));
            }
            std::vector<float> found = Numbers(1).floats(rows * stride + 1), expected = found;
            cpu::rope(found.data() + 1, rows, heads, 2 * half, stride, cosines.data(),
                      sines.data());
            reference::rope(expected.data() + 1, rows, heads, 2 * half, stride, cosines.data(),
                            sines.data());
            CHECK(compare(found, expected, {4 * unit_roundoff, 0.0}) == "");
        }
    });
}

TEST_CASE("add_scaled_every_size_and_type_matches_reference") {
    for_each_table([] {
        for (const DType dtype : types) {
            for (const int64_t n : sizes_around_lanes()) {
                const Typed x(Numbers(1).floats(n), dtype);
                std::vector<float> found = Numbers(2).floats(n + 2), expected = found;
                cpu::add_scaled(found.data() + 1, x.data(), dtype, -0.7f, n);
                reference::add_scaled(expected.data() + 1, x.data(), dtype, -0.7f, n);
                CHECK(compare(found, expected, {2 * unit_roundoff, 2 * unit_roundoff}) == "");
            }
        }
    });
}

TEST_CASE("scale_rows_factor_zero_gives_zero_even_where_not_finite") {
    for_each_table([] {
        for (const int64_t width : sizes_around_lanes()) {
            std::vector<float> found = Numbers(1).floats(4 * width), expected;
            for (size_t i = 0; i < found.size(); i += 3) found[i] = i % 2 == 0 ? nan : infinity;
            expected = found;
            const float factors[] = {0.0f, 1.0f, -0.0f, 2.5f};
            cpu::scale_rows(found.data(), 4, width, factors);
            reference::scale_rows(expected.data(), 4, width, factors);
            CHECK(compare_bits(found, expected) == "");
        }
    });
}

TEST_CASE("reference_argmax_is_the_first_of_the_largest_or_none") {
    const auto of = [](std::vector<float> row) {
        int64_t index = 7;
        reference::argmax(row.data(), 1, static_cast<int64_t>(row.size()), &index);
        return index;
    };
    CHECK(of({1.0f, 3.0f, 3.0f, 2.0f}) == 1);
    CHECK(of({-infinity, -2.0f}) == 1);
    CHECK(of({1.0f, infinity}) == 1);
    CHECK(of({1.0f, nan, 2.0f}) == -1);
    CHECK(of({infinity, -infinity}) == -1);
    CHECK(of({}) == -1);
}

namespace {

/// Rows in which many numbers are equal and a few are not finite; of the first all are -infinity, of the
/// second infinity, of the third NaNs.
std::vector<float> rows_to_rank(int64_t rows, int64_t width) {
    std::vector<float> x = Numbers(1).floats(rows * width, -2.0f, 2.0f);
    Numbers random(2);
    for (float& value : x) {
        value = std::round(value * 8);
        if (random.below(3 * std::max<int64_t>(width, 1)) == 0)
            value = random.below(2) == 0 ? nan : random.below(2) == 0 ? infinity : -infinity;
    }
    auto row = x.begin();
    for (const float value : {-infinity, infinity, nan}) row = std::fill_n(row, width, value);
    return x;
}

}  // namespace

TEST_CASE("argmax_matches_reference") {
    for (const int64_t width : {0, 1, 2, 7, 100, 5000}) {
        CAPTURE(width);
        constexpr int64_t rows = 40;
        const std::vector<float> x = rows_to_rank(rows, width);
        std::vector<int64_t> found(rows, 7), expected(rows, 8);
        cpu::argmax(x.data(), rows, width, found.data());
        reference::argmax(x.data(), rows, width, expected.data());
        CHECK(found == expected);
    }
}

TEST_CASE("reference_top_k_is_in_order_and_the_first_of_equal_ones_first") {
    const std::vector<float> x = {1.0f, 3.0f, -2.0f, 3.0f, nan, 0.0f, 7.0f, 1.0f};
    std::vector<float> values(5);
    std::vector<int64_t> index(5);
    reference::top_k(x.data(), 1, 8, 5, values.data(), index.data());
    CHECK(index == std::vector<int64_t>{4, 6, 1, 3, 0});
    CHECK(compare_bits(values, std::vector<float>{nan, 7.0f, 3.0f, 3.0f, 1.0f}) == "");
}

TEST_CASE("top_k_matches_reference") {
    for (const int64_t width : {0, 1, 2, 7, 100, 5000}) {
        constexpr int64_t rows = 20;
        const std::vector<float> x = rows_to_rank(rows, width);
        for (const int64_t k : {0, 1, 2, 51, 1024}) {
            if (k > width) continue;
            CAPTURE(width);
            CAPTURE(k);
            const auto n = static_cast<size_t>(rows * k);
            std::vector<float> found(n), expected(n);
            std::vector<int64_t> found_index(n), expected_index(n);
            cpu::top_k(x.data(), rows, width, k, found.data(), found_index.data());
            reference::top_k(x.data(), rows, width, k, expected.data(), expected_index.data());
            CHECK(found_index == expected_index);
            CHECK(compare_bits(found, expected) == "");
        }
    }
}

TEST_CASE("embedding_of_every_type_matches_reference") {
    for_each_table([] {
        for (const DType dtype : types) {
            for (const int64_t width : sizes_around_lanes()) {
                const Typed entries(Numbers(1).floats(9 * width), dtype);
                const int64_t ids[] = {8, 0, 3, 3, 7};
                std::vector<float> found(static_cast<size_t>(5 * width)), expected = found;
                cpu::embedding(ids, 5, entries.data(), dtype, width, found.data());
                reference::embedding(ids, 5, entries.data(), dtype, width, expected.data());
                CHECK(compare_bits(found, expected) == "");
            }
        }
    });
}

namespace {

/// Whether two bit patterns of a type are the same number, or both a NaN.
bool same_number(const Typed& a, const Typed& b, int64_t i) {
    const auto x = static_cast<float>(reference::element(a.data(), a.dtype(), i));
    const auto y = static_cast<float>(reference::element(b.data(), b.dtype(), i));
    return compare_bits({&x, 1}, {&y, 1}).empty();
}

int64_t count_wrong_conversions(const std::vector<float>& values, DType from, DType to) {
    const auto n = static_cast<int64_t>(values.size());
    const Typed source(values, from);
    Typed found(std::vector<float>(values.size(), 7.0f), to), expected = found;
    cpu::convert(source.data(), from, found.data(), to, n);
    reference::convert(source.data(), from, expected.data(), to, n);
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) wrong += same_number(found, expected, i) ? 0 : 1;
    return wrong;
}

}  // namespace

TEST_CASE("convert_every_half_precision_number_is_exact") {
    std::vector<float> all_bf16, all_f16, ties;
    for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
        all_bf16.push_back(bf16_to_f32(static_cast<uint16_t>(bits)));
        all_f16.push_back(f16_to_f32(static_cast<uint16_t>(bits)));
        // around the middle of two neighbours of either type
        for (const uint32_t low : {0x7FFFu, 0x8000u, 0x8001u, 0x0FFFu, 0x1000u, 0x1001u}) {
            ties.push_back(std::bit_cast<float>(bits << 16 | low));
        }
    }
    for_each_table([&] {
        for (const DType from : types) {
            for (const DType to : types) {
                CAPTURE(std::string(dtype_name(from)));
                CAPTURE(std::string(dtype_name(to)));
                CHECK(count_wrong_conversions(all_bf16, from, to) == 0);
                CHECK(count_wrong_conversions(all_f16, from, to) == 0);
                CHECK(count_wrong_conversions(ties, from, to) == 0);
            }
        }
    });
}

TEST_CASE("convert_any_size_writes_only_its_elements") {
    for_each_table([] {
        for (const DType from : types) {
            for (const DType to : types) {
                for (const int64_t n : sizes_around_lanes()) {
                    const Typed source(Numbers(1).floats(n), from);
                    Typed found(std::vector<float>(static_cast<size_t>(n) + 1, 7.0f), to),
                        expected = found;
                    cpu::convert(source.data(), from, found.data(), to, n);
                    reference::convert(source.data(), from, expected.data(), to, n);
                    for (int64_t i = 0; i <= n; ++i) CHECK(same_number(found, expected, i));
                }
            }
        }
    });
}

TEST_CASE("row_operations_do_not_depend_on_threads_bit_for_bit") {
    const int before = cpu::threads();
    for_each_table([] {
        const std::vector<float> x = Numbers(1).floats(300 * 515);
        const std::vector<float> weight = Numbers(2).floats(515);
        const auto all = [&] {
            std::vector<float> y = x;
            cpu::rms_norm(y.data(), 300, 515, weight.data(), DType::f32, 1e-5f, y.data());
            cpu::activate(y.data(), 300 * 515, Activation::gelu);
            cpu::add_scaled(y.data(), x.data(), DType::f32, 0.3f, 300 * 515);
            cpu::layer_norm(y.data(), 300, 515, weight.data(), weight.data(), DType::f32, 1e-5f,
                            y.data());
            return y;
        };
        cpu::set_threads(1);
        const std::vector<float> expected = all();
        for (const int threads : {2, 3, 16}) {
            cpu::set_threads(threads);
            CHECK(compare_bits(all(), expected) == "");
        }
    });
    cpu::set_threads(before);
}

TEST_CASE("add_to_rows_matches_reference") {
    for_each_table([] {
        Numbers numbers(21);
        for (const int64_t width : sizes_around_lanes()) {
            for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
                CAPTURE(width);
                const int64_t rows = 3;
                const Typed x(numbers.floats(width), dtype);
                std::vector<float> y = numbers.floats(rows * width), expected = y;
                reference::add_to_rows(expected.data(), rows, width, x.data(), dtype, 0.75f);
                cpu::add_to_rows(y.data(), rows, width, x.data(), dtype, 0.75f);
                CHECK(compare(y, expected, {1e-6, 1e-6}) == "");
            }
        }
    });
}

TEST_CASE("rope_angles_match_reference_at_far_positions") {
    Numbers numbers(22);
    const std::vector<int64_t> positions = {0, 1, 17, 4095, 131071};
    const std::vector<float> frequencies = numbers.floats(33, 1e-6f, 1.0f);
    const auto rows = static_cast<int64_t>(positions.size());
    std::vector<float> cos(positions.size() * 33), sin = cos, wanted_cos = cos, wanted_sin = cos;
    reference::rope_angles(positions.data(), rows, frequencies.data(), 33, wanted_cos.data(),
                           wanted_sin.data());
    cpu::rope_angles(positions.data(), rows, frequencies.data(), 33, cos.data(), sin.data());
    CHECK(compare(cos, wanted_cos, {1e-7, 1e-7}) == "");
    CHECK(compare(sin, wanted_sin, {1e-7, 1e-7}) == "");
}

TEST_CASE("unfold_patches_and_interleave_match_reference") {
    Numbers numbers(23);
    for (const auto& [channels, side, patch] :
         {std::tuple<int64_t, int64_t, int64_t>{3, 12, 4}, {1, 7, 7}, {2, 11, 3}, {3, 5, 1}}) {
        CAPTURE(side);
        const std::vector<float> pixels = numbers.floats(channels * side * side);
        const int64_t across = side / patch;
        std::vector<float> found(static_cast<size_t>(across * across * channels * patch * patch));
        std::vector<float> expected = found;
        cpu::unfold_patches(pixels.data(), channels, side, patch, found.data());
        reference::unfold_patches(pixels.data(), channels, side, patch, expected.data());
        CHECK(compare_bits(found, expected) == "");
    }
    const int64_t rows = 5, width = 13, stride = 50;
    const std::vector<float> a = numbers.floats(rows * width), b = numbers.floats(rows * width),
                             c = numbers.floats(rows * width);
    const float* states[] = {a.data(), b.data(), c.data()};
    std::vector<float> found = numbers.floats(rows * stride), expected = found;
    cpu::interleave(states, 3, rows, width, found.data(), stride);
    reference::interleave(states, 3, rows, width, expected.data(), stride);
    CHECK(compare_bits(found, expected) == "");
    CHECK(found[1] == b[0]);
    CHECK(found[static_cast<size_t>(stride)] == a[static_cast<size_t>(width)]);
}

}  // namespace mllama::test
