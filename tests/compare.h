// What tests compare numbers with: one helper that finds the worst element, the test data, and a
// loop over the instruction-set tables.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu.h"
#include "kernels/dtype.h"

namespace mllama::test {

/// An element may differ from the expected one by absolute + relative * |expected|.
struct Tolerance {
    double absolute = 0.0;
    double relative = 0.0;
};

/// The unit roundoff of float32: the largest relative error of one rounding.
inline constexpr double unit_roundoff = 0x1p-24;

/// For a sum of k products of factors in [-1, 1] made in float32, one after the other.
Tolerance sum_tolerance(int64_t k);

/// "" if every element is within the tolerance, else one line: how many are not, and the index,
/// value, expected value and allowed difference of the worst. A NaN or an infinity is right exactly
/// where the same is expected. Sizes must be equal.
std::string compare(std::span<const float> found, std::span<const float> expected,
                    const Tolerance& tolerance);

/// "" if all bits are equal (a NaN equals any NaN), else one line with the first difference.
std::string compare_bits(std::span<const float> found, std::span<const float> expected);

/// Numbers that are the same on every machine: uniform in [low, high).
class Numbers {
  public:
    explicit Numbers(uint32_t seed) : generator_(seed) {}
    float next(float low = -1.0f, float high = 1.0f);
    int64_t below(int64_t n);
    std::vector<float> floats(int64_t n, float low = -1.0f, float high = 1.0f);

  private:
    std::mt19937 generator_;
};

/// Floats as an array of f32, bf16 or f16, that begins one element after an aligned address.
class Typed {
  public:
    Typed(std::span<const float> values, DType dtype);
    const void* data() const { return bytes_.data() + dtype_size(dtype_); }
    void* data() { return bytes_.data() + dtype_size(dtype_); }
    DType dtype() const { return dtype_; }

  private:
    DType dtype_;
    std::vector<std::byte> bytes_;
};

/// The sizes from 0 to 2 lanes + 1 of the table in use, where every remainder of a vector occurs.
std::vector<int64_t> sizes_around_lanes();

/// A product, bit for bit, of all rows at once by one thread against 1 to 13 rows at a time, and
/// against 2, 3 and 16 threads. multiply(first, count, out) writes the rows [first, first + count)
/// of the result (rows, n) to out. "" if all are equal, else which is not and compare_bits of it.
std::string compare_splits(
    int64_t rows, int64_t n,
    const std::function<void(int64_t first, int64_t count, float* out)>& multiply);

/// Runs `test` with every instruction-set table that this machine can run; names the others as
/// skipped.
void for_each_table(const std::function<void()>& test);

}  // namespace mllama::test
