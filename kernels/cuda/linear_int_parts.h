// What linear layers of integers are made of: linear_int.cu puts these together.
#pragma once

#include <span>

#include "kernels/arguments.h"
#include "kernels/cuda.h"
#include "kernels/cuda/quantise_rows.h"
#include "kernels/cuda/weights.h"

namespace mllama::cuda {

/// Columns that a matrix may have: sums of so many products of int8 stay below 2^31, and places in a
/// row fit into 32 bits. No published model comes near.
inline constexpr int64_t most_int_columns = int64_t{1} << 17;

/// A matrix in int8 or int4 as these kernels read it.
struct IntWeights {
    const uint8_t* data;
    int64_t rows;
    int cols;
    int row_bytes;
    Groups groups;
    int segments_per_group;  ///< of int4
    int group_shift;         ///< their logarithm, or -1
    bool aligned;            ///< pieces of 16 bytes can be read where they lie

    IntWeights() = default;
    IntWeights(const Matrix& w, const IntLayout& layout)
        : data(static_cast<const uint8_t*>(w.data)),
          rows(w.rows),
          cols(static_cast<int>(w.cols)),
          row_bytes(static_cast<int>(layout.nibbles ? int4_words(w.cols) * 4 : w.cols)),
          groups(w.groups),
          aligned(aligned_rows(data, row_bytes)) {
        const bool whole_row = groups.size >= w.cols;
        segments_per_group = static_cast<int>(whole_row ? most_int_columns  // any segment is in 0
                                                        : groups.size / layout.segment);
        const auto count = static_cast<unsigned>(segments_per_group);
        group_shift = std::has_single_bit(count) ? std::countr_zero(count) : -1;
    }
    __device__ const uint8_t* row(int64_t row) const { return data + row * row_bytes; }
    __device__ int group(int segment) const {
        return group_shift >= 0 ? segment >> group_shift : segment / segments_per_group;
    }
};

/// Scales and zeros of a row of int4; where there are several groups, their scales are neighbours.
struct RowScales {
    const void* scale;
    const int32_t* zero;
    int zero_shift;

    __device__ RowScales(const Groups& groups, int64_t row)
        : scale(groups.scale_dtype == DType::f32
                    ? static_cast<const void*>(static_cast<const uint32_t*>(groups.scale) +
                                               row * groups.scale_row)
                    : static_cast<const uint16_t*>(groups.scale) + row * groups.scale_row),
          zero(groups.zero + (groups.zero != nullptr ? row / 8 * groups.zero_row : 0)),
          zero_shift(static_cast<int>(row % 8 * 4)) {}

    /// A scale as it lies in memory: to be loaded some time before it is needed.
    __device__ uint32_t bits(const Groups& groups, int group) const {
        if (groups.scale_dtype == DType::f32) return static_cast<const uint32_t*>(scale)[group];
        return static_cast<const uint16_t*>(scale)[group];
    }
    __device__ int32_t zero_number(const Groups& groups, int group) const {
        if (groups.zero == nullptr) return groups.zero_add;
        const auto word = static_cast<uint32_t>(zero[group * groups.zero_group]);
        const uint32_t sum = word + static_cast<uint32_t>(groups.zero_add) * 0x11111111u;
        return static_cast<int32_t>(sum >> zero_shift & 15u);
    }
};
__device__ inline float scale_of_bits(uint32_t bits, DType dtype) {
    if (dtype == DType::f32) return std::bit_cast<float>(bits);
    const auto half = static_cast<uint16_t>(bits);
    return dtype == DType::bf16 ? bf16_to_f32(half) : half_to_float(half);
}

/// The bytes [at, at + 16) of a row whose bytes begin at a multiple of `alignment` only, zeros where
/// the row has none.
template <int alignment>
__device__ uint4 load_crooked(const uint8_t* row, int at, int row_bytes) {
    uint32_t words[4] = {};
    for (int i = 0; i < 4; ++i) {
        const int place = at + 4 * i;
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

/// cuda::linear_int of at most few_rows rows, rounded with padded_rows = few_rows.
void linear_int_few(const IntRows& x, std::span<const Projection> layers);

/// One layer, of any number of rows, rounded with padded_rows a multiple of tile_rows.
inline constexpr int64_t tile_rows = 128;
void linear_int_tile(const IntRows& x, const IntWeights& w, const Epilogue& epilogue, float* out,
                     int64_t out_stride);

}  // namespace mllama::cuda
