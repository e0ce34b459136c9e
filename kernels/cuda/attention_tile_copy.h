// Copies of keys and values to the shared memory of attention_tile.cu, and int8 to bfloat16 there.
#pragma once

#include "kernels/cuda/attention_tile.h"

namespace mllama::cuda::tile {

/// Keys of a step.
template <class Shape>
__device__ int keys_in(const Attention& args, int begin) {
    return static_cast<int>(std::min<int64_t>(Shape::keys, sequence_of(args).keys - begin));
}

/// Where the block of one head that begins with key `begin` lies, in blocks of so many bytes.
__device__ inline const uint32_t* block_of(const TileCall& call, const void* blocks, int64_t bytes,
                                           int begin) {
    const int64_t i = int64_t{begin / block_keys} * call.args.kv_heads + blockIdx.y;
    return reinterpret_cast<const uint32_t*>(static_cast<const char*>(blocks) + i * bytes);
}

/// Starts to copy a step's keys: rows of units to `all_rows` rows `stride` units apart; zeros for
/// rows that are not there.
template <class Shape, int all_rows, int stride>
__device__ void copy_keys(const TileCall& call, int begin, uint32_t* to) {
    constexpr int row_threads = Shape::keys / 4;
    constexpr int pass_rows = Shape::threads / row_threads;
    const uint32_t* from = block_of(call, call.args.k, call.key_bytes, begin);
    const int first_row = static_cast<int>(threadIdx.x) / row_threads;
    const int column = static_cast<int>(threadIdx.x) % row_threads * 4;
    for (int row = first_row; row < all_rows; row += pass_rows) {
        const bool there = row < call.key_rows;
        copy_async_16(to + row * stride + column, there ? from + row * block_keys + column : from,
                      there);
    }
}

/// The same for values: rows of `columns` units, zeros behind head_dim and in rows of units that hold
/// no key. Row r goes to row value_slot(r), or r if they are not `slotted` yet.
template <class Shape, int unit, int stride, bool slotted>
__device__ void copy_values(const TileCall& call, int begin, uint32_t* to) {
    constexpr int rows = Shape::keys / unit;
    constexpr int row_threads = 4;  // the parts of a row begin at multiples of 16 units
    constexpr int pass_columns = 4 * Shape::threads / rows;
    const int width = call.part_width;
    const uint32_t* from = block_of(call, call.args.v, call.value_bytes, begin);
    const int thread = static_cast<int>(threadIdx.x);
    const int row = thread / row_threads % rows;
    const int first_column = thread / (row_threads * rows) * 16 + thread % row_threads * 4;
    const bool row_there = row * unit < keys_in<Shape>(call.args, begin);
    to += (slotted ? value_slot(row) : row) * stride;
    for (int column = first_column; column < Shape::columns; column += pass_columns) {
        const bool there = row_there && column < call.args.head_dim;
        const int part = column >= width ? 1 : 0;  // there are at most two
        const uint32_t* place =
            from + row * width + column + part * (block_keys / unit - 1) * width;
        copy_async_16(to + column, there ? place : from, there);
    }
}

/// The numbers that a step's keys have beside them, 0 behind the last.
template <class Shape>
__device__ void copy_numbers(const TileCall& call, const Step& step, Memory<Shape>& memory) {
    const Attention& args = call.args;
    const int j = static_cast<int>(threadIdx.x);
    if (j >= Shape::keys) return;
    const bool there = j < keys_in<Shape>(args, step.begin);
    const int from = there ? step.begin + j : 0;
    if (args.key_bias != nullptr)
        copy_async_4(&memory.key_bias[step.buffer][j], args.key_bias + from, there);
    if constexpr (Shape::coded) {
        const int64_t i = args.layout().scale_index(blockIdx.y, from);
        copy_async_4(&memory.key_scales[step.buffer][j], args.k_scales + i, there);
        copy_async_4(&memory.value_scales[step.buffer][j], args.v_scales + i, there);
    }
}

/// Starts to copy what a step takes, one group of copies.
template <class Shape>
__device__ void start_copies(const TileCall& call, const Step& step, Memory<Shape>& memory) {
    if constexpr (Shape::coded) {
        auto& raw = memory.raw;
        copy_keys<Shape, Shape::columns / 4, Shape::keys>(call, step.begin, raw.keys[0]);
        copy_values<Shape, 4, Shape::columns, false>(call, step.begin, raw.values[0]);
    } else {
        auto& to = memory.factors[step.buffer];
        copy_keys<Shape, Shape::columns / 2, Shape::key_stride>(call, step.begin, to.keys[0]);
        copy_values<Shape, 2, Shape::value_stride, true>(call, step.begin, to.values[0]);
    }
    copy_numbers(call, step, memory);
    copy_async_commit();
}

/// If the last row of units is half a key, the other half, which is no number, becomes 0. All
/// threads call.
template <class Shape>
__device__ void clear_behind(const Attention& args, int begin, Factors<Shape>& factors) {
    const int keys = keys_in<Shape>(args, begin);
    if (keys % 2 == 0) return;
    uint32_t* row = factors.values[value_slot(keys / 2)];
    for (int i = static_cast<int>(threadIdx.x); i < Shape::columns; i += Shape::threads)
        row[i] &= 0xFFFFu;
    __syncthreads();
}

/// Four units of int8 to two rows of bfloat16.
__device__ inline void convert_units(const uint32_t* from, uint32_t* low, uint32_t* high) {
    const Units units = load_units(from);
    Units lows, highs;
    for (int i = 0; i < 4; ++i) {
        const Pair pair = int8_to_bf16(units.at[i]);
        lows.at[i] = pair.low;
        highs.at[i] = pair.high;
    }
    store_units(low, lows);
    store_units(high, highs);
}

/// Row r of units of int8 to the rows slot(2 r) and slot(2 r + 1).
template <int threads, int rows, int width, int stride, class Slot>
__device__ void convert_rows(const uint32_t (&from)[rows][width], uint32_t (*to)[stride],
                             const Slot& slot) {
    constexpr int row_copies = width / 4;
    for (int i = static_cast<int>(threadIdx.x); i < rows * row_copies; i += threads) {
        const int row = i / row_copies;
        const int column = i % row_copies * 4;
        convert_units(&from[row][column], &to[slot(2 * row)][column],
                      &to[slot(2 * row + 1)][column]);
    }
}

/// What was copied becomes what is multiplied; then all threads may read it.
template <class Shape>
__device__ void prepare(const Attention& args, const Step& step, Memory<Shape>& memory) {
    if constexpr (Shape::coded) {
        Factors<Shape>& factors = memory.factors[0];
        convert_rows<Shape::threads>(memory.raw.keys, factors.keys, [](int row) { return row; });
        convert_rows<Shape::threads>(memory.raw.values, factors.values, value_slot);
        __syncthreads();
    } else {
        clear_behind(args, step.begin, memory.factors[step.buffer]);
    }
}

}  // namespace mllama::cuda::tile
