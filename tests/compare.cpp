#include "tests/compare.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/reference.h"

namespace mllama::test {
namespace {

std::string sizes_differ(size_t found, size_t expected) {
    std::ostringstream line;
    line << "expected " << expected << " elements, found " << found;
    return line.str();
}

/// How far `found` is beyond what is allowed, in units of that: above 1 is wrong.
double excess(double found, double expected, const Tolerance& tolerance) {
    constexpr double wrong = std::numeric_limits<double>::infinity();
    if (std::isnan(expected)) return std::isnan(found) ? 0.0 : wrong;
    if (!std::isfinite(found) || !std::isfinite(expected)) return found == expected ? 0.0 : wrong;
    const double difference = std::abs(found - expected);
    const double allowed = tolerance.absolute + tolerance.relative * std::abs(expected);
    if (difference == 0.0) return 0.0;
    return allowed > 0.0 ? difference / allowed : wrong;
}

}  // namespace

Tolerance sum_tolerance(int64_t k) {
    return {(static_cast<double>(k) + 4.0) * unit_roundoff, 0.0};
}

std::string compare(std::span<const float> found, std::span<const float> expected,
                    const Tolerance& tolerance) {
    if (found.size() != expected.size()) return sizes_differ(found.size(), expected.size());
    size_t wrong = 0, worst = 0;
    double worst_excess = 1.0;
    for (size_t i = 0; i < found.size(); ++i) {
        const double at = excess(found[i], expected[i], tolerance);
        if (at <= 1.0) continue;
        ++wrong;
        if (at > worst_excess) {
            worst_excess = at;
            worst = i;
        }
    }
    if (wrong == 0) return "";
    std::ostringstream line;
    line.precision(9);
    line << wrong << " of " << found.size() << " elements differ, most at index " << worst
         << ": expected " << expected[worst] << ", found " << found[worst]
         << ", allowed difference "
         << tolerance.absolute + tolerance.relative * std::abs(double{expected[worst]});
    return line.str();
}

std::string compare_bits(std::span<const float> found, std::span<const float> expected) {
    if (found.size() != expected.size()) return sizes_differ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
        if (std::isnan(found[i]) && std::isnan(expected[i])) continue;
        const auto found_bits = std::bit_cast<uint32_t>(found[i]);
        const auto expected_bits = std::bit_cast<uint32_t>(expected[i]);
        if (found_bits == expected_bits) continue;
        std::ostringstream line;
        line.precision(9);
        line << "bits differ, first at index " << i << " of " << found.size() << ": expected "
             << expected[i] << " (" << std::hex << expected_bits << "), found " << found[i] << " ("
             << found_bits << ")";
        return line.str();
    }
    return "";
}

float Numbers::next(float low, float high) {
    // 24 bits: every value is exact in float32. (The library's distributions differ from one
    // library to another.)
    const float unit = static_cast<float>(generator_() >> 8) * 0x1p-24f;
    return low + (high - low) * unit;
}

int64_t Numbers::below(int64_t n) {
    return static_cast<int64_t>(generator_() % static_cast<uint64_t>(n));
}

std::vector<float> Numbers::floats(int64_t n, float low, float high) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = next(low, high);
    return values;
}

Typed::Typed(std::span<const float> values, DType dtype)
    : dtype_(dtype), bytes_((values.size() + 1) * static_cast<size_t>(dtype_size(dtype))) {
    reference::convert(values.data(), DType::f32, data(), dtype,
                       static_cast<int64_t>(values.size()));
}

std::vector<int64_t> sizes_around_lanes() {
    std::vector<int64_t> sizes;
    for (int64_t n = 0; n <= 2 * cpu::table().f32.lanes + 1; ++n) sizes.push_back(n);
    return sizes;
}

std::string compare_splits(
    int64_t rows, int64_t n,
    const std::function<void(int64_t first, int64_t count, float* out)>& multiply) {
    const int before = cpu::threads();
    const auto in_pieces_of = [&](int64_t size, float unwritten) {
        std::vector<float> out(static_cast<size_t>(rows * n), unwritten);
        for (int64_t r = 0; r < rows; r += size)
            multiply(r, std::min(size, rows - r), out.data() + r * n);
        return out;
    };
    cpu::set_threads(1);
    // What is never written differs.
    const std::vector<float> whole = in_pieces_of(rows, 0.0f);
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    std::string wrong;
    for (int64_t size = 1; size <= 13 && wrong.empty(); ++size) {
        const std::string difference = compare_bits(in_pieces_of(size, nan), whole);
        if (!difference.empty()) wrong = std::to_string(size) + " rows at a time: " + difference;
    }
    for (const int threads : {2, 3, 16}) {
        cpu::set_threads(threads);
        const std::string difference = compare_bits(in_pieces_of(rows, nan), whole);
        if (!difference.empty()) wrong = std::to_string(threads) + " threads: " + difference;
    }
    cpu::set_threads(before);
    return wrong;
}

void for_each_table(const std::function<void()>& test) {
    const std::vector<const cpu::Table*> supported = cpu::supported_tables();
    for (const std::string_view name : cpu::table_names()) {
        const auto found =
            std::find_if(supported.begin(), supported.end(),
                         [&](const cpu::Table* table) { return table->name == name; });
        if (found == supported.end()) {
            MESSAGE("skipped: ", std::string(name), " (this processor cannot run it)");
            continue;
        }
        CAPTURE(std::string(name));
        cpu::use_table(*found);
        test();
    }
    cpu::use_table(nullptr);
}

}  // namespace mllama::test
