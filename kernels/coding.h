// How the numbers of a quantised weight matrix lie in memory: the formats in which the ecosystem
// publishes them, used where they lie in the mapped file.
//
//     w[row, col] = (number[row, col] - zero[row, g]) * scale[row, g],   g = the group of col
//
// A group is `size` neighbouring columns of one row (or, with `of_column`, any columns).
// reference::weight reads one element by this rule; it is the specification of everything that
// reads many.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/rounding.h"  // what formats are cut into

namespace mllama {

enum class Coding : uint8_t {
    plain,  ///< f32, bf16 or f16 elements, (rows, cols): no groups
    int8,   ///< I8 (rows, cols)
    /// compressed-tensors' pack-quantized: I32 (rows, ceil(cols / 8)); nibble i, low first, of word
    /// w of a row is column 8 w + i. The number is the nibble as it stands, 0 ... 15.
    int4,
    /// GPTQ: I32 (cols / 8, rows); nibble i, low first, of word (w, row) is column 8 w + i.
    int4_by_column,
    fp8,  ///< F8_E4M3 (rows, cols)
    /// bitsandbytes: U8 (rows * cols / 2), two elements a byte, the high nibble first; an element
    /// is code[nibble] * the scale of its block of `size` elements of the flattened matrix.
    nf4,
};

/// Words of a row in `Coding::int4`.
constexpr int64_t int4_words(int64_t cols) {
    return pieces(cols, 8);
}

/// An element of 8 bits: 1 sign, 4 exponent (bias 7), 3 fraction bits; no infinities, 0x7F is NaN
/// ("FP8 formats for deep learning", Micikevicius et al. 2022).
constexpr float f8_e4m3_to_f32(uint8_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
    const uint32_t magnitude = bits & 0x7Fu;
    if (magnitude == 0x7F) return std::bit_cast<float>(sign | 0x7FC00000u);
    if (magnitude < 8) {  // zero or subnormal: units of 2^-9
        const float value = static_cast<float>(magnitude) * 0x1p-9f;
        return sign != 0 ? -value : value;
    }
    return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
}

/// Where scales and zeros stand, and which columns share them.
struct Groups {
    int64_t size = 0;                    ///< columns of a group; cols: one for the whole row
    const int32_t* of_column = nullptr;  ///< (cols) the group of each column, or none: col / size

    // scale[row, g] is element row * scale_row + g * scale_group.
    const void* scale = nullptr;
    DType scale_dtype = DType::f32;  ///< f32, bf16 or f16; of nf4 also u8, see below
    int64_t scale_row = 0, scale_group = 0;

    // zero[row, g] is nibble row % 8 (low first) of word row / 8 * zero_row + g * zero_group of
    // `zero`, after zero_add was added to each of its nibbles by one addition to the word: a carry
    // goes on to the next nibble, and undoes the borrow of the writer (GPTQ). Without `zero` it is
    // zero_add.
    const int32_t* zero = nullptr;
    int64_t zero_row = 0, zero_group = 0;
    int32_t zero_add = 0;

    // nf4 alone. Where scale_dtype is u8 the scales are quantised themselves: the scale of block b
    // is nested_code[scale[b]] * nested_scale[b / nested_size] + nested_offset.
    const float* code = nullptr;          ///< (16)
    const float* nested_code = nullptr;   ///< (256)
    const float* nested_scale = nullptr;  ///< (ceil(blocks / nested_size))
    int64_t nested_size = 0;
    float nested_offset = 0.0f;
};

}  // namespace mllama
