// The GPU's operations on rows and elements against the reference.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/error.h"
#include "kernels/reference.h"
#include "tests/cuda/device.h"

namespace mllama::test {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr DType types[] = {DType::f32, DType::bf16, DType::f16};
constexpr Activation activations[] = {Activation::none,      Activation::gelu,
                                      Activation::gelu_tanh, Activation::quick_gelu,
                                      Activation::silu,      Activation::relu};

/// Around a thread's four elements, a warp's 128 and a block's 1024.
const std::vector<int64_t> widths = {0, 1, 3, 4, 5, 8, 33, 127, 128, 132, 1000, 1023, 1024, 1028};

/// How many elements behind an aligned address the operands of an operation begin.
struct Shifts {
    int64_t x = 0, other = 0, out = 0;
};
constexpr Shifts all_shifts[] = {{0, 0, 0}, {1, 0, 0}, {0, 1, 0}, {0, 0, 1}};

/// An array of the device that begins `shift` elements behind an aligned address and ends with its
/// last element.
class Placed {
  public:
    Placed(const void* from, int64_t n, DType dtype, int64_t shift)
        : begin_(shift * dtype_size(dtype)),
          bytes_(n * dtype_size(dtype)),
          memory_(begin_ + bytes_) {
        if (n > 0) cuda::Uploader().copy(data(), from, bytes_);
    }
    Placed(const std::vector<float>& values, int64_t shift)
        : Placed(values.data(), static_cast<int64_t>(values.size()), DType::f32, shift) {}
    Placed(const Typed& values, int64_t n, int64_t shift)
        : Placed(values.data(), n, values.dtype(), shift) {}

    [[nodiscard]] void* data() const { return static_cast<std::byte*>(memory_.data()) + begin_; }
    [[nodiscard]] float* floats() const { return static_cast<float*>(data()); }
    void copy_to(void* host) const {
        if (bytes_ > 0) cuda::copy_to_host(host, data(), bytes_);
    }
    [[nodiscard]] std::vector<float> values() const {
        std::vector<float> result(static_cast<size_t>(bytes_) / sizeof(float));
        copy_to(result.data());
        return result;
    }

  private:
    int64_t begin_, bytes_;
    DeviceBytes memory_;
};

/// Runs an operation in both orders of threads and compares what it gives.
void check(const std::vector<float>& expected, const Tolerance& tolerance,
           const std::function<std::vector<float>()>& operation) {
    in_both_orders([&] {
        std::vector<float> found = operation();
        CHECK(compare(found, expected, tolerance) == "");
        return found;
    });
}

/// Both norms; in place if asked for.
void check_norms(int64_t rows, int64_t width, float low, float high, DType dtype, Shifts shifts,
                 bool in_place) {
    CAPTURE(width);
    CAPTURE(shifts.x);
    CAPTURE(shifts.other);
    CAPTURE(std::string(dtype_name(dtype)));
    const std::vector<float> x = Numbers(1).floats(rows * width, low, high);
    const Typed weight(Numbers(2).floats(width), dtype), bias(Numbers(3).floats(width), dtype);
    const Placed w(weight, width, shifts.other), b(bias, width, shifts.other), in(x, shifts.x);
    // The mean is rounded to float32; how far that is felt depends on how far it is from zero.
    const double shift_of_mean = static_cast<double>(std::abs(low + high) / (high - low));
    const Tolerance tolerance{(8 + 8 * shift_of_mean) * unit_roundoff, 8 * unit_roundoff};
    std::vector<float> expected(x.size());

    reference::rms_norm(x.data(), rows, width, weight.data(), dtype, 1e-5f, expected.data());
    check(expected, tolerance, [&] {
        const Placed out(x, in_place ? shifts.x : shifts.out);
        cuda::rms_norm((in_place ? out : in).floats(), rows, width, w.data(), dtype, 1e-5f,
                       out.floats());
        return out.values();
    });
    reference::layer_norm(x.data(), rows, width, weight.data(), bias.data(), dtype, 1e-5f,
                          expected.data());
    check(expected, tolerance, [&] {
        const Placed out(x, in_place ? shifts.x : shifts.out);
        cuda::layer_norm((in_place ? out : in).floats(), rows, width, w.data(), b.data(), dtype,
                         1e-5f, out.floats());
        return out.values();
    });
}

}  // namespace

TEST_CASE("cuda_norms_every_width_and_type_match_reference") {
    if (!has_device()) return;
    for (const DType dtype : types) {
        for (const int64_t width : widths) {
            for (const Shifts shifts : all_shifts)
                check_norms(3, width, -2, 2, dtype, shifts, false);
        }
        check_norms(2, 1280, 99.0f, 101.0f, dtype, {}, true);
        check_norms(2, 4096, -1e-3f, 1e-3f, dtype, {}, true);
    }
    check_norms(0, 16, -1, 1, DType::f32, {}, false);
}

TEST_CASE("cuda_norms_of_rows_that_the_registers_do_not_hold_match_reference") {
    if (!has_device()) return;
    for (const int64_t width : {8192, 8196, 8197, 20000}) {
        for (const int64_t shift : {0, 1})
            check_norms(2, width, -2, 2, DType::bf16, {shift, 0, 0}, true);
    }
}

TEST_CASE("cuda_norms_of_a_row_do_not_depend_on_the_others_or_on_where_it_lies") {
    if (!has_device()) return;
    const int64_t width = 260;
    std::vector<float> x = Numbers(1).floats(3 * width);
    x[5] = nan;  // of the first row
    const DeviceArray<float> weight(Numbers(2).floats(width));
    const auto norms = [&](const std::vector<float>& rows, int64_t shift, bool mean) {
        const Placed out(rows, shift);
        const auto n = static_cast<int64_t>(rows.size()) / width;
        if (mean) {
            cuda::layer_norm(out.floats(), n, width, weight.data(), weight.data(), DType::f32,
                             1e-5f, out.floats());
        } else {
            cuda::rms_norm(out.floats(), n, width, weight.data(), DType::f32, 1e-5f, out.floats());
        }
        return out.values();
    };
    for (const bool mean : {false, true}) {
        const std::vector<float> all = norms(x, 0, mean);
        CHECK(std::all_of(all.begin(), all.begin() + width, [](float y) { return y != y; }));
        const std::vector<float> last_two(x.begin() + width, x.end());
        const std::vector<float> expected(all.begin() + width, all.end());
        CHECK(compare_bits(norms(last_two, 0, mean), expected) == "");
        CHECK(compare_bits(norms(last_two, 1, mean), expected) == "");
    }
}

TEST_CASE("cuda_rope_angles_match_reference") {
    if (!has_device()) return;
    const std::vector<int64_t> positions = {0, 1, 7, 4095, 131071, (int64_t{1} << 24) + 1};
    const auto rows = static_cast<int64_t>(positions.size());
    const DeviceArray<int64_t> device_positions(positions);
    for (const int64_t pairs : {0, 1, 64, 300}) {
        const std::vector<float> frequencies = Numbers(1).floats(pairs, 0.0f, 1.0f);
        std::vector<float> expected(static_cast<size_t>(2 * rows * pairs));
        reference::rope_angles(positions.data(), rows, frequencies.data(), pairs, expected.data(),
                               expected.data() + rows * pairs);
        const Placed device_frequencies(frequencies, 0);
        check(expected, {4 * unit_roundoff, 8 * unit_roundoff}, [&] {
            const Placed out(std::vector<float>(expected.size(), 7.0f), 0);
            cuda::rope_angles(device_positions.data(), rows, device_frequencies.floats(), pairs,
                              out.floats(), out.floats() + rows * pairs);
            return out.values();
        });
    }
}

TEST_CASE("cuda_rope_every_size_matches_reference") {
    if (!has_device()) return;
    for (const int64_t half : {0, 1, 4, 5, 8, 33, 64}) {
        for (const int64_t heads : {0, 1, 2, 9}) {
            for (const int64_t gap : {0, 3, 4}) {  // between rows
                CAPTURE(half);
                CAPTURE(heads);
                const int64_t rows = 3, stride = heads * 2 * half + gap;
                const std::vector<float> cosines = Numbers(2).floats(rows * half),
                                         sines = Numbers(3).floats(rows * half),
                                         x = Numbers(1).floats(rows * stride);
                std::vector<float> expected = x;
                reference::rope(expected.data(), rows, heads, 2 * half, stride, cosines.data(),
                                sines.data());
                const Placed cos(cosines, heads == 9 ? 1 : 0), sin(sines, heads == 1 ? 1 : 0);
                check(expected, {4 * unit_roundoff, 0.0}, [&] {
                    const Placed found(x, gap % 2);
                    cuda::rope(found.floats(), rows, heads, 2 * half, stride, cos.floats(),
                               sin.floats());
                    return found.values();
                });
            }
        }
    }
}

namespace {

/// For functions of one number: where they do something, and every size of it.
std::vector<float> sweep() {
    std::vector<float> values = {0.0f, -0.0f, nan, infinity, -infinity, 3.4e38f, -3.4e38f};
    for (int i = -3000; i <= 3000; ++i) values.push_back(static_cast<float>(i) * 0.01f);
    for (float magnitude = 1e-38f; magnitude < 1e38f; magnitude *= 1.7f) {
        values.push_back(magnitude);
        values.push_back(-magnitude);
    }
    return values;
}

/// Beside 1, as the negative tails are not exact.
constexpr Tolerance activation_tolerance{1e-6, 16 * unit_roundoff};

}  // namespace

TEST_CASE("cuda_activate_every_activation_matches_reference") {
    if (!has_device()) return;
    for (const Activation activation : activations) {
        CAPTURE(static_cast<int>(activation));
        for (const int64_t shift : {0, 1}) {
            std::vector<float> values = sweep();
            values.resize(values.size() / 4 * 4);
            std::vector<float> expected = values;
            const auto n = static_cast<int64_t>(values.size());
            reference::activate(expected.data(), n, activation);
            check(expected, activation_tolerance, [&] {
                const Placed x(values, shift);
                cuda::activate(x.floats(), n, activation);
                return x.values();
            });
        }
    }
}

TEST_CASE("cuda_activate_any_size_changes_only_its_elements") {
    if (!has_device()) return;
    for (const int64_t n : widths) {
        const std::vector<float> values = Numbers(3).floats(n + 2, -3.0f, 3.0f);
        std::vector<float> expected = values;
        reference::activate(expected.data() + 1, n, Activation::silu);
        check(expected, activation_tolerance, [&] {
            const Placed x(values, 3);
            cuda::activate(x.floats() + 1, n, Activation::silu);
            return x.values();
        });
    }
}

TEST_CASE("cuda_gated_every_activation_and_width_matches_reference") {
    if (!has_device()) return;
    for (const Activation activation : activations) {
        for (const int64_t width : widths) {
            for (const auto [gap, apart, out_shift] : all_shifts) {
                CAPTURE(width);
                // Rows that begin aligned, but need not end so; and rows that do not begin so.
                const int64_t whole = (width + 3) / 4 * 4;
                const int64_t rows = 3, stride = 2 * whole + gap + 4 * apart;
                const int64_t out_stride = whole + gap;
                const std::vector<float> both = Numbers(5).floats(rows * stride, -4.0f, 4.0f);
                const std::vector<float> before(static_cast<size_t>(rows * out_stride), 7.0f);
                std::vector<float> expected = before;
                reference::gated(both.data(), both.data() + whole + apart, rows, width, stride,
                                 activation, expected.data(), out_stride);
                const Placed gate(both, gap);
                check(expected, activation_tolerance, [&] {
                    const Placed out(before, out_shift);
                    cuda::gated(gate.floats(), gate.floats() + whole + apart, rows, width, stride,
                                activation, out.floats(), out_stride);
                    return out.values();
                });
            }
        }
    }
}

TEST_CASE("cuda_gated_into_its_gate_matches_reference") {
    if (!has_device()) return;
    for (const int64_t width : {37, 1028}) {
        const std::vector<float> both = Numbers(5).floats(2 * 2 * width);
        std::vector<float> expected = both;
        reference::gated(expected.data(), expected.data() + width, 2, width, 2 * width,
                         Activation::silu, expected.data(), 2 * width);
        check(expected, activation_tolerance, [&] {
            const Placed x(both, 0);
            cuda::gated(x.floats(), x.floats() + width, 2, width, 2 * width, Activation::silu,
                        x.floats(), 2 * width);
            return x.values();
        });
    }
}

TEST_CASE("cuda_sums_every_width_and_type_match_reference") {
    if (!has_device()) return;
    const Tolerance tolerance{2 * unit_roundoff, 2 * unit_roundoff};
    for (const DType dtype : types) {
        for (const int64_t width : widths) {
            for (const Shifts shifts : all_shifts) {
                CAPTURE(width);
                const int64_t rows = 3;
                const Typed x(Numbers(1).floats(rows * width), dtype);
                const Placed added(x, rows * width, shifts.other), row(x, width, shifts.other);
                const std::vector<float> y = Numbers(2).floats(rows * width);
                std::vector<float> expected = y;
                reference::add_scaled(expected.data(), x.data(), dtype, -0.7f, rows * width);
                check(expected, tolerance, [&] {
                    const Placed found(y, shifts.x);
                    cuda::add_scaled(found.floats(), added.data(), dtype, -0.7f, rows * width);
                    return found.values();
                });
                expected = y;
                reference::add_to_rows(expected.data(), rows, width, x.data(), dtype, -0.7f);
                check(expected, tolerance, [&] {
                    const Placed found(y, shifts.x);
                    cuda::add_to_rows(found.floats(), rows, width, row.data(), dtype, -0.7f);
                    return found.values();
                });
            }
        }
    }
}

TEST_CASE("cuda_scale_rows_factor_zero_gives_zero_even_where_not_finite") {
    if (!has_device()) return;
    const DeviceArray<float> factors(std::vector<float>{0.0f, 1.0f, -0.0f, 2.5f});
    for (const int64_t width : widths) {
        std::vector<float> x = Numbers(1).floats(4 * width), expected;
        for (size_t i = 0; i < x.size(); i += 3) x[i] = i % 2 == 0 ? nan : infinity;
        expected = x;
        reference::scale_rows(expected.data(), 4, width, factors.values().data());
        for (const int64_t shift : {0, 1}) {
            const Placed found(x, shift);
            cuda::scale_rows(found.floats(), 4, width, factors.data());
            CHECK(compare_bits(found.values(), expected) == "");
        }
    }
}

TEST_CASE("cuda_embedding_of_every_type_matches_reference") {
    if (!has_device()) return;
    const std::vector<int64_t> ids = {8, 0, 3, 3, 7};
    const DeviceArray<int64_t> device_ids(ids);
    for (const DType dtype : types) {
        for (const int64_t width : widths) {
            const Typed table(Numbers(1).floats(9 * width), dtype);
            std::vector<float> expected(static_cast<size_t>(5 * width));
            reference::embedding(ids.data(), 5, table.data(), dtype, width, expected.data());
            for (const Shifts shifts : all_shifts) {
                const Placed entries(table, 9 * width, shifts.other);
                const Placed out(std::vector<float>(expected.size(), 7.0f), shifts.out);
                cuda::embedding(device_ids.data(), 5, entries.data(), dtype, width, out.floats());
                CHECK(compare_bits(out.values(), expected) == "");
            }
        }
    }
}

namespace {

/// Whether two elements are the same number, or both a NaN.
bool same_number(const Typed& a, const Typed& b, int64_t i) {
    const auto x = static_cast<float>(reference::element(a.data(), a.dtype(), i));
    const auto y = static_cast<float>(reference::element(b.data(), b.dtype(), i));
    return compare_bits({&x, 1}, {&y, 1}).empty();
}

int64_t count_wrong_conversions(const std::vector<float>& values, DType from, DType to,
                                Shifts shifts) {
    const auto n = static_cast<int64_t>(values.size());
    const Typed source(values, from);
    Typed found(std::vector<float>(values.size(), 7.0f), to), expected = found;
    reference::convert(source.data(), from, expected.data(), to, n);
    const Placed in(source, n, shifts.x), out(found, n, shifts.other);
    cuda::convert(in.data(), from, out.data(), to, n);
    out.copy_to(found.data());
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) wrong += same_number(found, expected, i) ? 0 : 1;
    return wrong;
}

/// All of bfloat16 and of binary16, and numbers around the middle of two neighbours of either.
std::vector<float> numbers_to_round() {
    std::vector<float> values;
    for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
        values.push_back(f16_to_f32(static_cast<uint16_t>(bits)));
        for (const uint32_t low : {0u, 0x7FFFu, 0x8000u, 0x8001u, 0x0FFFu, 0x1000u, 0x1001u})
            values.push_back(std::bit_cast<float>(bits << 16 | low));
    }
    return values;
}

}  // namespace

TEST_CASE("cuda_convert_every_number_is_exact") {
    if (!has_device()) return;
    const std::vector<float> values = numbers_to_round();
    for (const DType from : types) {
        for (const DType to : types) {
            CAPTURE(std::string(dtype_name(from)));
            CAPTURE(std::string(dtype_name(to)));
            CHECK(count_wrong_conversions(values, from, to, {}) == 0);
        }
    }
}

TEST_CASE("cuda_convert_any_size_and_place_is_exact") {
    if (!has_device()) return;
    for (const DType from : types) {
        for (const DType to : types) {
            for (const int64_t n : widths) {
                for (const Shifts shifts : all_shifts)
                    CHECK(count_wrong_conversions(Numbers(1).floats(n), from, to, shifts) == 0);
            }
        }
    }
}

TEST_CASE("cuda_convert_to_the_same_type_keeps_all_bits") {
    if (!has_device()) return;
    std::vector<uint16_t> all;
    for (uint32_t bits = 0; bits < 0x10000u; ++bits) all.push_back(static_cast<uint16_t>(bits));
    for (const DType dtype : types) {
        for (const int64_t shift : {0, 1}) {
            const auto n = static_cast<int64_t>(all.size()) * 2 / dtype_size(dtype) - 3;
            std::vector<uint16_t> found(all.size());
            const Placed in(all.data(), n, dtype, shift), out(found.data(), n, dtype, 0);
            cuda::convert(in.data(), dtype, out.data(), dtype, n);
            out.copy_to(found.data());
            CHECK(std::memcmp(found.data(), all.data(),
                              static_cast<size_t>(n * dtype_size(dtype))) == 0);
        }
    }
}

TEST_CASE("cuda_unfold_patches_matches_reference") {
    if (!has_device()) return;
    // (channels, side, patch): one pixel; one patch; pixels left over; several blocks a patch
    const std::array<int64_t, 3> shapes[] = {{1, 1, 1}, {3, 14, 14}, {2, 7, 2}, {3, 42, 14}};
    for (const auto& [channels, side, patch] : shapes) {
        const std::vector<float> pixels = Numbers(1).floats(channels * side * side);
        const int64_t rows = (side / patch) * (side / patch);
        std::vector<float> expected(static_cast<size_t>(rows * channels * patch * patch));
        reference::unfold_patches(pixels.data(), channels, side, patch, expected.data());
        const Placed in(pixels, 0), out(std::vector<float>(expected.size(), 7.0f), 0);
        cuda::unfold_patches(in.floats(), channels, side, patch, out.floats());
        CHECK(compare_bits(out.values(), expected) == "");
    }
}

TEST_CASE("cuda_interleave_matches_reference_and_writes_only_its_elements") {
    if (!has_device()) return;
    const int64_t rows = 3;
    for (const int64_t count : {0, 1, 5, 16}) {
        for (const int64_t width : {0, 1, 33, 300}) {
            const int64_t stride = width * count + 4;
            const std::vector<float> all = Numbers(1).floats(count * rows * width);
            const Placed in(all, 0);
            std::vector<const float*> states, device_states;
            for (int64_t k = 0; k < count; ++k) {
                states.push_back(all.data() + k * rows * width);
                device_states.push_back(in.floats() + k * rows * width);
            }
            const std::vector<float> before(static_cast<size_t>(rows * stride), 7.0f);
            std::vector<float> expected = before;
            reference::interleave(states.data(), count, rows, width, expected.data(), stride);
            const Placed out(before, 0);
            cuda::interleave(device_states.data(), count, rows, width, out.floats(), stride);
            CHECK(compare_bits(out.values(), expected) == "");
        }
    }
    const std::vector<const float*> too_many(17);
    CHECK_THROWS_AS(cuda::interleave(too_many.data(), 17, 1, 1, nullptr, 17), Error);
}

namespace {

std::vector<int64_t> argmax_of(const std::vector<float>& x, int64_t rows, int64_t shift = 0) {
    const Placed in(x, shift);
    const DeviceArray<int64_t> out(std::vector<int64_t>(static_cast<size_t>(rows), -7));
    cuda::argmax(in.floats(), rows, static_cast<int64_t>(x.size()) / rows, out.data());
    return out.values();
}

int64_t expected_argmax(std::span<const float> row) {
    int64_t index = 0;
    reference::argmax(row.data(), 1, static_cast<int64_t>(row.size()), &index);
    return index;
}

}  // namespace

TEST_CASE("cuda_argmax_of_every_width_is_the_first_of_the_largest") {
    if (!has_device()) return;
    Numbers numbers(1);
    // around a thread's, a block's and several blocks' elements
    for (const int64_t width : {1, 3, 4, 5, 1000, 4095, 4096, 4097, 8192, 128256}) {
        CAPTURE(width);
        const int64_t rows = 3;
        std::vector<float> x;
        std::vector<int64_t> expected;
        // Few different numbers, all of either sign: each is there many times.
        for (int64_t i = 0; i < rows * width; ++i)
            x.push_back(static_cast<float>(numbers.below(50) - (i < width ? 60 : 20)));
        for (int64_t r = 0; r < rows; ++r)
            expected.push_back(expected_argmax({x.data() + r * width, static_cast<size_t>(width)}));
        in_both_orders([&] {
            CHECK(argmax_of(x, rows) == expected);
            CHECK(argmax_of(x, rows, 1) == expected);
            return std::vector<float>{};
        });
    }
}

TEST_CASE("cuda_argmax_finds_one_largest_wherever_it_stands") {
    if (!has_device()) return;
    for (const int64_t at : {0, 1, 127, 1024, 4095, 4096, 8191, 9998}) {
        std::vector<float> x(9999, -1.5f);
        x[static_cast<size_t>(at)] = -1.25f;
        CHECK(argmax_of(x, 1) == std::vector<int64_t>{at});
        x[static_cast<size_t>(at)] = nan;
        CHECK(argmax_of(x, 1) == std::vector<int64_t>{-1});
        x[static_cast<size_t>(at)] = infinity;
        CHECK(argmax_of(x, 1) == std::vector<int64_t>{at});
        x.assign(x.size(), -infinity);
        x[static_cast<size_t>(at)] = -3.4e38f;
        CHECK(argmax_of(x, 1) == std::vector<int64_t>{at});
    }
}

TEST_CASE("cuda_argmax_of_what_is_not_finite_is_as_documented") {
    if (!has_device()) return;
    const std::vector<std::vector<float>> rows = {{-infinity, -infinity, -infinity},
                                                  {infinity, -infinity, infinity},
                                                  {-nan, infinity, 1.0f},
                                                  {1.0f, infinity, infinity},
                                                  {-0.0f, 0.0f, -1.0f},
                                                  {-1e-45f, -0.0f, 0.0f},
                                                  {-infinity, -3.0f, -infinity}};
    for (const std::vector<float>& row : rows)
        CHECK(argmax_of(row, 1) == std::vector<int64_t>{expected_argmax(row)});
    CHECK(argmax_of({}, 1) == std::vector<int64_t>{-1});
}

namespace {

/// Values and indices of the k largest, each followed by the next.
std::vector<float> top_k_of(const std::vector<float>& x, int64_t rows, int64_t k,
                            int64_t shift = 0) {
    const Placed in(x, shift);
    const auto n = static_cast<size_t>(rows * k);
    const DeviceArray<float> values(std::vector<float>(n, -7.0f));
    const DeviceArray<int64_t> index(std::vector<int64_t>(n, -7));
    cuda::top_k(in.floats(), rows, static_cast<int64_t>(x.size()) / rows, k, values.data(),
                index.data());
    std::vector<float> result = values.values();
    for (const int64_t i : index.values()) result.push_back(static_cast<float>(i));
    return result;
}

std::vector<float> expected_top_k(const std::vector<float>& x, int64_t rows, int64_t k) {
    const auto n = static_cast<size_t>(rows * k);
    std::vector<float> values(n);
    std::vector<int64_t> index(n);
    reference::top_k(x.data(), rows, static_cast<int64_t>(x.size()) / rows, k, values.data(),
                     index.data());
    for (const int64_t i : index) values.push_back(static_cast<float>(i));
    return values;
}

}  // namespace

TEST_CASE("cuda_top_k_of_every_width_is_in_order_and_the_first_of_equal_ones_first") {
    if (!has_device()) return;
    // Around what a block sorts, and as many parts as take a second and a third round.
    for (const int64_t width : {1, 2, 5, 1000, 4095, 4096, 4097, 9000, 128256}) {
        for (const int64_t k : {1, 2, 51, 1024}) {
            if (k > width) continue;
            CAPTURE(width);
            CAPTURE(k);
            const int64_t rows = width > 10000 ? 1 : 3;
            Numbers numbers(1);
            std::vector<float> x;  // few different numbers: each is there many times
            for (int64_t i = 0; i < rows * width; ++i)
                x.push_back(static_cast<float>(numbers.below(500) - 250) / 8);
            const std::vector<float> expected = expected_top_k(x, rows, k);
            in_both_orders([&] {
                const std::vector<float> found = top_k_of(x, rows, k);
                CHECK(compare_bits(found, expected) == "");
                return found;
            });
            if (width < 10000) CHECK(compare_bits(top_k_of(x, rows, k, 1), expected) == "");
        }
    }
}

TEST_CASE("cuda_top_k_of_what_is_not_finite_is_as_documented") {
    if (!has_device()) return;
    const std::vector<std::vector<float>> rows = {{-infinity, -infinity, -infinity},
                                                  {infinity, -infinity, infinity, 3.0f},
                                                  {1.0f, nan, infinity, -nan, 2.0f},
                                                  {-0.0f, 0.0f, -1.0f, 1e-45f, -1e-45f},
                                                  {-infinity, -3.4e38f, 3.4e38f}};
    for (const std::vector<float>& row : rows) {
        for (int64_t k = 0; k <= static_cast<int64_t>(row.size()); ++k)
            CHECK(compare_bits(top_k_of(row, 1, k), expected_top_k(row, 1, k)) == "");
    }
}

}  // namespace mllama::test
