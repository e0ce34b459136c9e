#include "tensor/quantise.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <vector>

#include "kernels/decode.h"
#include "kernels/error.h"
#include "kernels/quantise.h"
#include "tensor/ops.h"

namespace mllama {
namespace {

constexpr int64_t smallest_group = 32;
constexpr int64_t nibbles = 8;  // of a word

/// q (cols) in [-8, 7] to ceil(cols / 8) words, the first column in the lowest bits, as q + 8; what
/// is left of the last word is 0.
void pack_nibbles(const int8_t* q, int64_t cols, int32_t* words) {
    for (int64_t begin = 0; begin < cols; begin += nibbles) {
        uint32_t word = 0;
        for (int64_t i = 0; i < std::min(nibbles, cols - begin); ++i) {
            word |= static_cast<uint32_t>(q[begin + i] + 8) << (4 * i);
        }
        words[begin / nibbles] = static_cast<int32_t>(word);
    }
}

/// Throws about the first element of a row that is not finite.
[[noreturn]] void fail_not_finite(const Matrix& plain, int64_t row, int64_t first_row) {
    std::vector<float> numbers(static_cast<size_t>(plain.cols));
    cpu::decode_row(plain, row, 0, plain.cols, DType::f32, numbers.data());
    const auto bad =
        std::find_if(numbers.begin(), numbers.end(), [](float x) { return !std::isfinite(x); });
    fail("expected finite numbers to quantise, found ", *bad, " in row ", first_row + row,
         ", column ", bad - numbers.begin());
}

/// Memory that every token reads from end to end.
Tensor in_huge_pages(const Shape& shape, DType dtype) {
    const int64_t bytes = shape.numel() * dtype_size(dtype);
    return {Storage::allocate(bytes, Storage::Pages::huge), 0, shape, dtype};
}

/// A Weight of this format, its tensors as `make` makes them.
template <class Make>
Weight weight_of(int64_t rows, int64_t cols, const QuantisedFormat& format, const Make& make) {
    Weight weight;
    weight.rows = rows;
    weight.cols = cols;
    weight.coding = format.coding;
    weight.group_size = format.group_size == 0 ? cols : format.group_size;
    weight.scale = make(Shape{rows, format.groups(cols)}, DType::bf16);
    if (format.coding == Coding::int8) {
        weight.data = make(Shape{rows, cols}, DType::i8);
    } else {
        weight.data = make(Shape{rows, int4_words(cols)}, DType::i32);
        weight.zero_add = 8;
    }
    return weight;
}

/// The least of all that were offered.
class Least {
  public:
    void offer(int64_t value) {
        int64_t least = least_.load();
        while (value < least && !least_.compare_exchange_weak(least, value)) {
        }
    }
    [[nodiscard]] int64_t get() const { return least_.load(); }

  private:
    std::atomic<int64_t> least_{INT64_MAX};
};

}  // namespace

Weight quantised(const Tensor& plain, const QuantisedFormat& format,
                 std::span<const float> importance, int64_t first_row) {
    const bool int8 = format.coding == Coding::int8;
    const int64_t rows = plain.rows(), cols = plain.cols();
    assert(int8 || format.coding == Coding::int4);
    assert(format.group_size == 0 || cols % format.group_size == 0);
    assert(importance.empty() || static_cast<int64_t>(importance.size()) == cols);
    Weight weight = weight_of(rows, cols, format, in_huge_pages);
    if (rows == 0 || cols == 0) return weight;

    const Matrix from = Weight(plain).matrix();
    const float* columns = importance.empty() ? nullptr : importance.data();
    const int64_t groups = weight.scale.cols(), words = weight.data.cols();
    auto* scales = weight.scale.data<uint16_t>();
    int8_t* const numbers = int8 ? weight.data.data<int8_t>() : nullptr;
    int32_t* const packed = int8 ? nullptr : weight.data.data<int32_t>();
    Least bad_row;
    ops::parallel_for(rows, [&](int64_t row) {
        std::vector<float> w(static_cast<size_t>(cols));
        std::vector<int8_t> unpacked(int8 ? 0 : static_cast<size_t>(cols));
        cpu::decode_row(from, row, 0, cols, DType::f32, w.data());
        int8_t* q = int8 ? numbers + row * cols : unpacked.data();
        const int64_t bad =
            cpu::quantise_row(w.data(), columns, cols, weight.group_size,
                              int8 ? cpu::int8_levels : cpu::int4_levels, q, scales + row * groups);
        if (bad >= 0) return bad_row.offer(row);
        if (!int8) pack_nibbles(q, cols, packed + row * words);
    });
    if (bad_row.get() < rows) fail_not_finite(from, bad_row.get(), first_row);
    return weight;
}

Weight quantised_outline(int64_t rows, int64_t cols, const QuantisedFormat& format) {
    return weight_of(rows, cols, format, Tensor::outline);
}

std::string_view format_name(const QuantisedFormat& format) {
    return format.coding == Coding::int4 ? "int4" : "int8";
}

int64_t fitting_group_size(int64_t cols, int64_t wanted) {
    for (int64_t size = wanted; size >= smallest_group; size /= 2) {
        if (cols % size == 0) return size;
    }
    return 0;
}

}  // namespace mllama
