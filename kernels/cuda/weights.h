// The elements of a weight matrix as kernels read them: some neighbouring columns of a row at a
// time, by one load of 16 bytes where it can be, and decoded eight at a time.
//
// A source is what reads one kind of matrix. It has
//
//     pieces           how many times eight columns one load brings
//     Raw              what it brings: words, and the scale that they have; all 0 stands for zeros
//     load(row, col)   the columns [col, col + 8 pieces) of a row
//     eight(raw, i)    the numbers of piece i of a load
//
// Loads are apart from decoding so that several can be on their way. All sources but AnySource read
// matrices whose rows are whole loads, each of one group: has_fast_source.
#pragma once

#include <bit>

#include "kernels/arguments.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/warp.h"
#include "kernels/rounding.h"

namespace mllama::cuda {

/// Eight neighbouring columns of a row.
struct Eight {
    float of[8];
};

/// As bfloat16, rounded to nearest, in order.
__device__ inline uint4 to_bf16(const Eight& x) {
    return {pack_bf16(x.of[0], x.of[1]), pack_bf16(x.of[2], x.of[3]), pack_bf16(x.of[4], x.of[5]),
            pack_bf16(x.of[6], x.of[7])};
}

/// Word i of four.
__device__ inline uint32_t word_of(const uint4& words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// Scales and zeros: see Groups.

__device__ inline float scale_of(const Groups& groups, int64_t row, int64_t group) {
    return load_float(groups.scale, groups.scale_dtype,
                      row * groups.scale_row + group * groups.scale_group);
}

__device__ inline int32_t zero_number(const Groups& groups, int64_t row, int64_t group) {
    if (groups.zero == nullptr) return groups.zero_add;
    const auto word =
        static_cast<uint32_t>(groups.zero[row / 8 * groups.zero_row + group * groups.zero_group]);
    const uint32_t sum = word + static_cast<uint32_t>(groups.zero_add) * 0x11111111u;
    return static_cast<int32_t>(sum >> (4 * (row % 8)) & 15u);
}

__device__ inline float zero_of(const Groups& groups, int64_t row, int64_t group) {
    return static_cast<float>(zero_number(groups, row, group));
}

/// nf4: the scale of a block of the flattened matrix; nested: block / nested_size.
__device__ inline float block_scale(const Groups& groups, int64_t block, int64_t nested) {
    if (groups.scale_dtype != DType::u8) return load_float(groups.scale, groups.scale_dtype, block);
    const uint8_t code = static_cast<const uint8_t*>(groups.scale)[block];
    return groups.nested_code[code] * groups.nested_scale[nested] + groups.nested_offset;
}

/// F8_E4M3 as f8_e4m3_to_f32 has it, without branches: the bits of its exponent and fraction, as a
/// float32, are 2^-120 times the number, subnormals too.
__device__ inline float f8_to_float(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7Fu;
    const uint32_t number =
        std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f);
    return std::bit_cast<float>((bits & 0x80u) << 24 | (magnitude == 0x7Fu ? 0x7FC00000u : number));
}

/// Two neighbours, the first in the low byte; by the instruction for it where there is one. float16 has
/// every number of F8_E4M3.
__device__ inline float2 f8_pair_to_floats(uint32_t pair) {
#if __CUDA_ARCH__ >= 890
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
    return {half_to_float(static_cast<uint16_t>(halves)),
            half_to_float(static_cast<uint16_t>(halves >> 16))};
#else
    return {f8_to_float(pair & 0xFFu), f8_to_float(pair >> 8 & 0xFFu)};
#endif
}

/// reference::weight of any matrix, one element.
__device__ inline float weight(const Matrix& w, int64_t row, int64_t col) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    const auto* words = static_cast<const uint32_t*>(w.data);
    if (w.coding == Coding::plain) return load_float(w.data, w.dtype, row * w.stride + col);
    if (w.coding == Coding::nf4) {
        const int64_t i = row * w.cols + col;
        const int64_t block = i / w.groups.size;
        const int64_t nested = w.groups.nested_size > 0 ? block / w.groups.nested_size : 0;
        return w.groups.code[bytes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15] *
               block_scale(w.groups, block, nested);
    }
    const int64_t group =
        w.groups.of_column != nullptr ? w.groups.of_column[col] : col / w.groups.size;
    float number = 0;
    if (w.coding == Coding::int8) {
        number = static_cast<float>(static_cast<const int8_t*>(w.data)[row * w.cols + col]);
    } else if (w.coding == Coding::fp8) {
        number = f8_to_float(bytes[row * w.cols + col]);
    } else {
        const uint32_t word = w.coding == Coding::int4 ? words[row * int4_words(w.cols) + col / 8]
                                                       : words[col / 8 * w.rows + row];
        number = static_cast<float>(word >> (4 * (col % 8)) & 15u);
    }
    return (number - zero_of(w.groups, row, group)) * scale_of(w.groups, row, group);
}

/// Reads any matrix, element by element; columns that the matrix does not have are 0.
struct AnySource {
    static constexpr int pieces = 1;
    using Raw = Eight;
    Matrix w;

    __device__ Raw load(int64_t row, int64_t col) const {
        Eight result;
        for (int i = 0; i < 8; ++i)
            result.of[i] = col + i < w.cols ? weight(w, row, col + i) : 0.0f;
        return result;
    }
    __device__ Eight eight(const Raw& raw, int) const { return raw; }
};

struct F32Source {
    static constexpr int pieces = 1;
    struct Raw {
        uint4 low, high;
    };
    const float* data;
    int64_t stride;

    F32Source() = default;
    explicit F32Source(const Matrix& w)
        : data(static_cast<const float*>(w.data)), stride(w.stride) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        const float* at = data + row * stride + col;
        return {load_once(at), load_once(at + 4)};
    }
    __device__ Eight eight(const Raw& raw, int) const {
        Eight result;
        for (int i = 0; i < 4; ++i) {
            result.of[i] = std::bit_cast<float>(word_of(raw.low, i));
            result.of[4 + i] = std::bit_cast<float>(word_of(raw.high, i));
        }
        return result;
    }
};

/// bf16 or f16.
template <DType dtype>
struct HalfSource {
    static constexpr int pieces = 1;
    using Raw = uint4;
    const uint16_t* data;
    int64_t stride;

    HalfSource() = default;
    explicit HalfSource(const Matrix& w)
        : data(static_cast<const uint16_t*>(w.data)), stride(w.stride) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return load_once(data + row * stride + col);
    }
    __device__ Eight eight(const Raw& raw, int) const {
        Eight result;
        for (int i = 0; i < 4; ++i) {
            const uint32_t word = word_of(raw, i);
            result.of[2 * i] = to_float(static_cast<uint16_t>(word));
            result.of[2 * i + 1] = to_float(static_cast<uint16_t>(word >> 16));
        }
        return result;
    }
    static __device__ float to_float(uint16_t bits) {
        return dtype == DType::bf16 ? bf16_to_f32(bits) : half_to_float(bits);
    }
};

/// Groups of neighbouring columns whose sizes are powers of two, which takes a shift to tell.
struct GroupShifts {
    Groups groups;
    int shift = 0, nested_shift = 0;

    GroupShifts() = default;
    explicit GroupShifts(const Matrix& w)
        : groups(w.groups),
          shift(shift_of(groups.size)),
          nested_shift(shift_of(groups.nested_size)) {
        constexpr int all = 62;  // every column is in group 0
        if (w.coding != Coding::nf4 && groups.size >= w.cols) shift = all;
    }
    static int shift_of(int64_t size) {
        return size > 0 ? std::countr_zero(static_cast<uint64_t>(size)) : 0;
    }
};

/// A load of integers, and the scale and zero of its group. A whole number n below 2^22 becomes a
/// float by way of its bits, as those of 2^23 + n: the conversion instruction is slow. What is taken
/// off again is 2^23 + zero.
struct Scaled {
    uint4 words;
    float base, scale;

    /// (n - zero) * scale.
    __device__ float integer(uint32_t n) const {
        return (std::bit_cast<float>(0x4B000000u | n) - base) * scale;
    }
};

/// offset: what is added to the numbers to make them whole numbers.
__device__ inline Scaled scaled(const uint4& words, const GroupShifts& shifts, int64_t row,
                                int64_t col, float offset) {
    const int64_t group = col >> shifts.shift;
    return {words, 0x1p23f + offset + zero_of(shifts.groups, row, group),
            scale_of(shifts.groups, row, group)};
}

/// 16 columns at a time, as whole numbers 128 higher.
struct Int8Source {
    static constexpr int pieces = 2;
    using Raw = Scaled;
    const uint8_t* data;
    int64_t cols;
    GroupShifts shifts;

    Int8Source() = default;
    explicit Int8Source(const Matrix& w)
        : data(static_cast<const uint8_t*>(w.data)), cols(w.cols), shifts(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return scaled(load_once(data + row * cols + col), shifts, row, col, 128.0f);
    }
    __device__ Eight eight(const Raw& raw, int piece) const {
        Eight result;
        for (int i = 0; i < 8; ++i) {
            const uint32_t word = word_of(raw.words, 2 * piece + i / 4) ^ 0x80808080u;
            result.of[i] = raw.integer(word >> (8 * (i % 4)) & 0xFFu);
        }
        return result;
    }
};

/// 16 columns at a time, without zeros.
struct Fp8Source {
    static constexpr int pieces = 2;
    struct Raw {
        uint4 words;
        float scale;
    };
    const uint8_t* data;
    int64_t cols;
    GroupShifts shifts;

    Fp8Source() = default;
    explicit Fp8Source(const Matrix& w)
        : data(static_cast<const uint8_t*>(w.data)), cols(w.cols), shifts(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return {load_once(data + row * cols + col),
                scale_of(shifts.groups, row, col >> shifts.shift)};
    }
    __device__ Eight eight(const Raw& raw, int piece) const {
        Eight result;
        for (int i = 0; i < 8; i += 2) {
            const uint32_t word = word_of(raw.words, 2 * piece + i / 4);
            const float2 numbers = f8_pair_to_floats(word >> (8 * (i % 4)) & 0xFFFFu);
            result.of[i] = numbers.x * raw.scale;
            result.of[i + 1] = numbers.y * raw.scale;
        }
        return result;
    }
};

/// Eight nibbles of a word, the low one first.
__device__ inline Eight nibbles(const Scaled& raw, uint32_t word) {
    Eight result;
    for (int i = 0; i < 8; ++i) result.of[i] = raw.integer(word >> (4 * i) & 15u);
    return result;
}

/// 32 columns at a time.
struct Int4Source {
    static constexpr int pieces = 4;
    using Raw = Scaled;
    const uint32_t* data;
    int64_t row_words;
    GroupShifts shifts;

    Int4Source() = default;
    explicit Int4Source(const Matrix& w)
        : data(static_cast<const uint32_t*>(w.data)), row_words(int4_words(w.cols)), shifts(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return scaled(load_once(data + row * row_words + col / 8), shifts, row, col, 0.0f);
    }
    __device__ Eight eight(const Raw& raw, int piece) const {
        return nibbles(raw, word_of(raw.words, piece));
    }
};

/// One word, of eight columns: what follows it in memory is of the next row.
struct Int4ByColumnSource {
    static constexpr int pieces = 1;
    using Raw = Scaled;
    const uint32_t* data;
    int64_t rows;
    GroupShifts shifts;

    Int4ByColumnSource() = default;
    explicit Int4ByColumnSource(const Matrix& w)
        : data(static_cast<const uint32_t*>(w.data)), rows(w.rows), shifts(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        const uint32_t word = __ldg(data + col / 8 * rows + row);
        return scaled({word, 0, 0, 0}, shifts, row, col, 0.0f);
    }
    __device__ Eight eight(const Raw& raw, int) const { return nibbles(raw, raw.words.x); }
};

/// 32 columns at a time.
struct Nf4Source {
    static constexpr int pieces = 4;
    struct Raw {
        uint4 words;
        float scale;
    };
    const uint8_t* data;
    int64_t cols;
    GroupShifts shifts;

    Nf4Source() = default;
    explicit Nf4Source(const Matrix& w)
        : data(static_cast<const uint8_t*>(w.data)), cols(w.cols), shifts(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        const int64_t at = row * cols + col;  // of the flattened matrix
        const int64_t block = at >> shifts.shift;
        return {load_once(data + at / 2),
                block_scale(shifts.groups, block, block >> shifts.nested_shift)};
    }
    __device__ Eight eight(const Raw& raw, int piece) const {
        const uint32_t word = word_of(raw.words, piece);
        Eight result;
        for (int i = 0; i < 8; ++i) {
            const int shift = 8 * (i / 2) + (i % 2 == 0 ? 4 : 0);  // the high nibble first
            result.of[i] = __ldg(shifts.groups.code + (word >> shift & 15u)) * raw.scale;
        }
        return result;
    }
};

/// Whether rows of `data`, `stride` bytes apart, may be read 16 bytes at a time.
inline bool aligned_rows(const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 16 == 0;
}

/// Whether rows of w are whole loads, each of them aligned.
inline bool loads_are_aligned(const Matrix& w) {
    if (w.cols % 8 != 0) return false;
    if (w.coding == Coding::int4_by_column) return true;  // loads of one word
    if (w.coding == Coding::plain) return aligned_rows(w.data, w.stride * dtype_size(w.dtype));
    const bool bytes = w.coding == Coding::int8 || w.coding == Coding::fp8;
    return aligned_rows(w.data, bytes ? w.cols : w.cols / 2);
}

/// Whether the columns of each load have one scale and one zero, which take shifts to find.
inline bool loads_have_one_group(const Matrix& w) {
    const Groups& groups = w.groups;
    if (groups.of_column != nullptr) return false;
    const auto power_of_two = [](int64_t n) {
        return std::has_single_bit(static_cast<uint64_t>(n));
    };
    if (w.coding == Coding::nf4) {
        if (groups.scale_dtype == DType::u8 && !power_of_two(groups.nested_size)) return false;
    } else if (groups.size >= w.cols) {
        return true;
    }
    constexpr int64_t largest_load = 32;
    return groups.size >= largest_load && power_of_two(groups.size);
}

/// Whether there is a source for w that loads whole pieces.
inline bool has_fast_source(const Matrix& w) {
    return loads_are_aligned(w) && (w.coding == Coding::plain || loads_have_one_group(w));
}

/// Calls visit(source) with that source.
template <class Visit>
void with_fast_source(const Matrix& w, const Visit& visit) {
    switch (w.coding) {
        case Coding::int8:
            return visit(Int8Source(w));
        case Coding::fp8:
            return visit(Fp8Source(w));
        case Coding::int4:
            return visit(Int4Source(w));
        case Coding::int4_by_column:
            return visit(Int4ByColumnSource(w));
        case Coding::nf4:
            return visit(Nf4Source(w));
        case Coding::plain:
            break;
    }
    if (w.dtype == DType::f32) return visit(F32Source(w));
    if (w.dtype == DType::bf16) return visit(HalfSource<DType::bf16>(w));
    visit(HalfSource<DType::f16>(w));
}

}  // namespace mllama::cuda
