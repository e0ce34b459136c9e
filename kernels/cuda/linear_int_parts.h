// What linear layers of integers are made of: linear_int.cu puts these together.
#pragma once

#include <bit>

#include "kernels/arguments.h"
#include "kernels/cuda/quantise_rows.h"
#include "kernels/cuda/weights.h"

namespace mllama::cuda {

/// Which group a column is in, by a shift where the size is a power of two.
struct ColumnGroups {
    Groups groups;
    int shift;  ///< -1: the size is no power of two

    explicit ColumnGroups(const Matrix& w) : groups(w.groups), shift(-1) {
        const auto size = static_cast<uint64_t>(groups.size);
        if (groups.size >= w.cols) {
            shift = 62;  // every column is in group 0
        } else if (std::has_single_bit(size)) {
            shift = std::countr_zero(size);
        }
    }
    __device__ int64_t group(int64_t col) const {
        return shift >= 0 ? col >> shift : col / groups.size;
    }
};

/// A matrix in int8 or int4 as these kernels read it.
struct IntWeights {
    const uint8_t* data;
    int64_t rows, cols;
    int64_t row_bytes;
    ColumnGroups groups;
    bool aligned;  ///< pieces of 16 bytes can be read where they lie

    explicit IntWeights(const Matrix& w)
        : data(static_cast<const uint8_t*>(w.data)),
          rows(w.rows),
          cols(w.cols),
          row_bytes(w.coding == Coding::int4 ? int4_words(w.cols) * 4 : w.cols),
          groups(w),
          aligned(aligned_rows(data, row_bytes)) {}
};

/// A scale as it lies in memory: to be loaded some time before it is needed.
__device__ inline uint32_t scale_bits(const Groups& groups, int64_t row, int64_t group) {
    const int64_t i = row * groups.scale_row + group * groups.scale_group;
    if (groups.scale_dtype == DType::f32) return static_cast<const uint32_t*>(groups.scale)[i];
    return static_cast<const uint16_t*>(groups.scale)[i];
}
__device__ inline float scale_of_bits(uint32_t bits, DType dtype) {
    if (dtype == DType::f32) return std::bit_cast<float>(bits);
    const auto half = static_cast<uint16_t>(bits);
    return dtype == DType::bf16 ? bf16_to_f32(half) : half_to_float(half);
}

/// The bytes [at, at + 16) of a row whose bytes begin at a multiple of `alignment` only, zeros where
/// the row has none.
template <int alignment>
__device__ uint4 load_crooked(const uint8_t* row, int64_t at, int64_t row_bytes) {
    uint32_t words[4] = {};
    for (int i = 0; i < 4; ++i) {
        const int64_t place = at + 4 * i;
        if constexpr (alignment == 4) {
            if (place < row_bytes) words[i] = *reinterpret_cast<const uint32_t*>(row + place);
        } else {
            for (int j = 0; j < 4; ++j) {
                if (place + j < row_bytes) words[i] |= uint32_t{row[place + j]} << (8 * j);
            }
        }
    }
    return {words[0], words[1], words[2], words[3]};
}

/// The low nibbles of a word, and its high ones.
__device__ inline uint32_t low_nibbles(uint32_t word) {
    return word & 0x0F0F0F0Fu;
}
__device__ inline uint32_t high_nibbles(uint32_t word) {
    return word >> 4 & 0x0F0F0F0Fu;
}

// Sums of the products of a segment of int4 start from `sum_start`: their bits are then those of the
// float 1.5 * 2^23 + sum, which makes a float of them in one subtraction (the instruction that
// converts is slow). Products of a segment are below 128 * 15 * 127, and zeros, which must be below
// `zero_limit`, change that by less than 128 * 127 * 127: together less than 2^22.
inline constexpr int32_t sum_start = 0x4B400000;
inline constexpr int32_t zero_limit = 128;

__device__ inline float sum_to_float(int32_t sum) {
    return std::bit_cast<float>(sum) - 0x1.8p23f;
}

/// What x rounded to int8, `sum` of products, stands for. One expression for few rows and for many:
/// their results are the same.
__device__ inline float scaled_sum(int32_t sum, float x_scale, float w_scale) {
    return static_cast<float>(sum) * (x_scale * w_scale);
}

/// Of the device; what is to be cut into enough blocks asks for it.
inline int processors() {
    static const int count = device_info().processors;
    return count;
}

/// cuda::linear_int of at most few_rows rows, rounded with padded_rows = few_rows.
void linear_int_few(const IntRows& x, const IntWeights& w, const Epilogue& epilogue, float* out,
                    int64_t out_stride);

/// Of any number of rows, rounded with padded_rows a multiple of tile_rows.
inline constexpr int64_t tile_rows = 128;
void linear_int_tile(const IntRows& x, const IntWeights& w, const Epilogue& epilogue, float* out,
                     int64_t out_stride);

}  // namespace mllama::cuda
