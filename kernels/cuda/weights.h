// The elements of a weight matrix as kernels read them: some neighbouring columns of a row at a
// time, by one load of 16 bytes where it can be, and decoded eight at a time.
//
// A source is what reads one kind of matrix. It has
//
//     pieces               the groups of eight columns that one load brings
//     Raw                  what a load brings
//     load(row, col)       the columns [col, col + 8 pieces) of a row
//     eight(raw, i, row, col)   the numbers of piece i of a load; col is the first of that piece
//
// Loads are apart from decoding so that several can be on their way. All sources but AnySource read
// matrices whose rows are whole loads; with_source chooses.
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

/// nf4: the scale of a block of the flattened matrix.
__device__ inline float block_scale(const Groups& groups, int64_t block) {
    if (groups.scale_dtype != DType::u8) return load_float(groups.scale, groups.scale_dtype, block);
    const uint8_t code = static_cast<const uint8_t*>(groups.scale)[block];
    return groups.nested_code[code] * groups.nested_scale[block / groups.nested_size] +
           groups.nested_offset;
}

/// F8_E4M3 as f8_e4m3_to_f32 has it, without branches: the bits of its exponent and fraction, as a
/// float32, are 2^-120 times the number, subnormals too.
__device__ inline float f8_to_float(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7Fu;
    const uint32_t number =
        std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f);
    return std::bit_cast<float>((bits & 0x80u) << 24 | (magnitude == 0x7Fu ? 0x7FC00000u : number));
}

/// A whole number below 2^23 as a float, by way of its bits: the conversion instruction is slow.
__device__ inline float small_to_float(uint32_t number) {
    return std::bit_cast<float>(0x4B000000u | number) - 0x1p23f;
}

/// reference::weight of any matrix, one element.
__device__ inline float weight(const Matrix& w, int64_t row, int64_t col) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    const auto* words = static_cast<const uint32_t*>(w.data);
    if (w.coding == Coding::plain) return load_float(w.data, w.dtype, row * w.stride + col);
    if (w.coding == Coding::nf4) {
        const int64_t i = row * w.cols + col;
        return w.groups.code[bytes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15] *
               block_scale(w.groups, i / w.groups.size);
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
    __device__ Eight eight(const Raw& raw, int, int64_t, int64_t) const { return raw; }
};

struct F32Source {
    static constexpr int pieces = 1;
    struct Raw {
        uint4 low, high;
    };
    const float* data;
    int64_t stride;

    explicit F32Source(const Matrix& w)
        : data(static_cast<const float*>(w.data)), stride(w.stride) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        const float* at = data + row * stride + col;
        return {load_once(at), load_once(at + 4)};
    }
    __device__ Eight eight(const Raw& raw, int, int64_t, int64_t) const {
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

    explicit HalfSource(const Matrix& w)
        : data(static_cast<const uint16_t*>(w.data)), stride(w.stride) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return load_once(data + row * stride + col);
    }
    __device__ Eight eight(const Raw& raw, int, int64_t, int64_t) const {
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

/// Groups of neighbouring columns, the same for all eight columns of a piece: which one it is takes
/// a shift where sizes are powers of two, as they are.
struct GroupsOfPieces {
    Groups groups;
    int shift;  ///< -1: the size is no power of two

    explicit GroupsOfPieces(const Matrix& w) : groups(w.groups), shift(-1) {
        const auto size = static_cast<uint64_t>(groups.size);
        if (w.coding != Coding::nf4 && groups.size >= w.cols) {
            shift = 62;  // every column is in group 0
        } else if (std::has_single_bit(size)) {
            shift = std::countr_zero(size);
        }
    }
    /// Of a column, or of an element of the flattened matrix.
    __device__ int64_t group(int64_t at) const {
        return shift >= 0 ? at >> shift : at / groups.size;
    }
    /// (number - zero) * scale, of a piece.
    __device__ Eight scaled(const Eight& numbers, int64_t row, int64_t col) const {
        const int64_t of = group(col);
        const float scale = scale_of(groups, row, of), zero = zero_of(groups, row, of);
        Eight result;
        for (int i = 0; i < 8; ++i) result.of[i] = (numbers.of[i] - zero) * scale;
        return result;
    }
};

/// int8 or fp8: 16 columns at a time.
template <Coding coding>
struct ByteSource {
    static constexpr int pieces = 2;
    using Raw = uint4;
    const uint8_t* data;
    int64_t cols;
    GroupsOfPieces groups;

    explicit ByteSource(const Matrix& w)
        : data(static_cast<const uint8_t*>(w.data)), cols(w.cols), groups(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return load_once(data + row * cols + col);
    }
    __device__ Eight eight(const Raw& raw, int piece, int64_t row, int64_t col) const {
        Eight numbers;
        for (int i = 0; i < 8; ++i)
            numbers.of[i] = number(word_of(raw, 2 * piece + i / 4) >> (8 * (i % 4)) & 0xFFu);
        return groups.scaled(numbers, row, col);
    }
    static __device__ float number(uint32_t byte) {
        if (coding == Coding::fp8) return f8_to_float(byte);
        return small_to_float(byte ^ 0x80u) - 128.0f;
    }
};

__device__ inline Eight nibbles(uint32_t word) {
    Eight result;
    for (int i = 0; i < 8; ++i) result.of[i] = small_to_float(word >> (4 * i) & 15u);
    return result;
}

/// 32 columns at a time.
struct Int4Source {
    static constexpr int pieces = 4;
    using Raw = uint4;
    const uint32_t* data;
    int64_t row_words;
    GroupsOfPieces groups;

    explicit Int4Source(const Matrix& w)
        : data(static_cast<const uint32_t*>(w.data)), row_words(int4_words(w.cols)), groups(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return load_once(data + row * row_words + col / 8);
    }
    __device__ Eight eight(const Raw& raw, int piece, int64_t row, int64_t col) const {
        return groups.scaled(nibbles(word_of(raw, piece)), row, col);
    }
};

/// One word, of eight columns: what follows it in memory is of the next row.
struct Int4ByColumnSource {
    static constexpr int pieces = 1;
    using Raw = uint32_t;
    const uint32_t* data;
    int64_t rows;
    GroupsOfPieces groups;

    explicit Int4ByColumnSource(const Matrix& w)
        : data(static_cast<const uint32_t*>(w.data)), rows(w.rows), groups(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return __ldg(data + col / 8 * rows + row);
    }
    __device__ Eight eight(const Raw& raw, int, int64_t row, int64_t col) const {
        return groups.scaled(nibbles(raw), row, col);
    }
};

/// 32 columns at a time.
struct Nf4Source {
    static constexpr int pieces = 4;
    using Raw = uint4;
    const uint8_t* data;
    int64_t cols;
    GroupsOfPieces blocks;

    explicit Nf4Source(const Matrix& w)
        : data(static_cast<const uint8_t*>(w.data)), cols(w.cols), blocks(w) {}
    __device__ Raw load(int64_t row, int64_t col) const {
        return load_once(data + (row * cols + col) / 2);
    }
    __device__ Eight eight(const Raw& raw, int piece, int64_t row, int64_t col) const {
        const Groups& groups = blocks.groups;
        const float scale = block_scale(groups, blocks.group(row * cols + col));
        const uint32_t word = word_of(raw, piece);
        Eight result;
        for (int i = 0; i < 8; ++i) {
            const int shift = 8 * (i / 2) + (i % 2 == 0 ? 4 : 0);  // the high nibble first
            result.of[i] = __ldg(groups.code + (word >> shift & 15u)) * scale;
        }
        return result;
    }
};

/// Whether rows of `data`, `stride` bytes apart, may be read 16 bytes at a time.
inline bool aligned_rows(const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 16 == 0;
}

/// Whether the columns of a piece have one scale and one zero.
inline bool pieces_have_one_group(const Matrix& w) {
    if (w.groups.of_column != nullptr) return false;
    return w.groups.size % 8 == 0 || (w.coding != Coding::nf4 && w.groups.size >= w.cols);
}

/// Calls visit(source) with what reads w fastest.
template <class Visit>
void with_source(const Matrix& w, const Visit& visit) {
    const bool grouped = pieces_have_one_group(w);
    const int64_t row_bytes = w.coding == Coding::plain ? w.stride * dtype_size(w.dtype)
                              : w.coding == Coding::int8 || w.coding == Coding::fp8 ? w.cols
                                                                                    : w.cols / 2;
    const bool aligned = aligned_rows(w.data, row_bytes) && w.cols % 8 == 0;
    if (w.coding == Coding::plain && aligned) {
        if (w.dtype == DType::f32) return visit(F32Source(w));
        if (w.dtype == DType::bf16) return visit(HalfSource<DType::bf16>(w));
        return visit(HalfSource<DType::f16>(w));
    }
    if (w.coding == Coding::int4_by_column && grouped && w.cols % 8 == 0)
        return visit(Int4ByColumnSource(w));
    if (grouped && aligned) {
        if (w.coding == Coding::int8) return visit(ByteSource<Coding::int8>(w));
        if (w.coding == Coding::fp8) return visit(ByteSource<Coding::fp8>(w));
        if (w.coding == Coding::int4) return visit(Int4Source(w));
        if (w.coding == Coding::nf4) return visit(Nf4Source(w));
    }
    visit(AnySource{w});
}

}  // namespace mllama::cuda
