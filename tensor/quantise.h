// Making a quantised weight out of a plain one.
#pragma once

#include <span>
#include <string_view>

#include "tensor/weight.h"

namespace mllama {

/// What a weight is rounded to: symmetric (no zero points), scales of bf16.
struct QuantisedFormat {
    Coding coding = Coding::int8;  ///< int8 or int4
    int64_t group_size = 0;        ///< columns that share a scale; 0: all of a row

    /// Scales of a row of `cols`.
    [[nodiscard]] int64_t groups(int64_t cols) const {
        if (cols == 0) return 0;
        return group_size == 0 ? 1 : cols / group_size;
    }

    /// Bytes of a matrix (rows, cols) with its scales.
    [[nodiscard]] int64_t bytes(int64_t rows, int64_t cols) const {
        const int64_t row = coding == Coding::int4 ? int4_words(cols) * 4 : cols;
        return rows * (row + groups(cols) * dtype_size(DType::bf16));
    }

    bool operator==(const QuantisedFormat&) const = default;
};

/// "int8", "int4"
std::string_view format_name(const QuantisedFormat& format);

/// int8 with a scale a row: compressed-tensors' W8A8.
constexpr QuantisedFormat int8_rows{Coding::int8, 0};

/// A plain matrix (rows, cols) rounded, as new memory, by all threads: each scale is chosen for a
/// small squared error (kernels/quantise.h), in which importance (cols) weighs the columns; empty:
/// all the same. The format's group size must divide cols or be 0. The same to the bit for any
/// number of threads and on every instruction set. Throws Error naming the first element that is
/// not finite, without a file or tensor; `first_row`: the row 0 of `plain` in the matrix that it is
/// a part of, for this message.
Weight quantised(const Tensor& plain, const QuantisedFormat& format,
                 std::span<const float> importance = {}, int64_t first_row = 0);

/// What `quantised` makes of a matrix (rows, cols), without memory: see Tensor::outline.
Weight quantised_outline(int64_t rows, int64_t cols, const QuantisedFormat& format);

/// The group size for rows of `cols`: `wanted`, or the half, quarter, ... of it, from 32 up, that
/// divides them; else 0, the whole row. Readers of the format do not know a last group that is
/// shorter than the others.
int64_t fitting_group_size(int64_t cols, int64_t wanted);

}  // namespace mllama
