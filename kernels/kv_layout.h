// How the keys and values that attention reads lie in memory.
//
// A multiply-add instruction takes neighbours of the dimension that is summed (two bfloat16, four
// int8) from each lane of a vector. So both matrices lie in units of 4 bytes, each holding
// neighbours of that dimension, 1 of float32, 2 of the two-byte types, 4 of int8; and a row of units
// is what vectors are loaded from. Nothing has to be turned round when a token is decoded.
//
// Keys come in blocks of 64 for each head. The blocks of a sequence follow each other, all heads of
// the first 64 keys, then all of the next: memory is touched only as it is needed, and what a token
// reads is one stream. In a block
//
//     keys    [d / unit][key][d % unit]         scores sum over d: head_dim / unit rows of 64 units
//     values  [part][key / unit][d][key % unit] outputs sum over keys: 64 / unit rows of units; d in
//                                               parts of at most 64
//
// so that both are matrices of which a product takes up to 64 columns at a time.
//
// int8 has a float32 scale for each key (or value) and head: element = scale * int8, with scale =
// (largest magnitude) / 127. Scales lie in blocks as well, (blocks, kv_heads, 64).
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/rounding.h"

namespace mllama {

/// The arithmetic of that layout, for one sequence and layer.
struct KvLayout {
    static constexpr int64_t block = 64;          ///< keys of a block
    static constexpr int64_t unit_bytes = 4;      ///< of a unit
    static constexpr int64_t widest_vector = 16;  ///< units; rows are a multiple of it

    int64_t kv_heads = 0;
    int64_t head_dim = 0;
    DType dtype = DType::f32;  ///< f32, bf16, f16 or i8

    /// Elements of a unit.
    [[nodiscard]] constexpr int64_t unit() const { return unit_bytes / dtype_size(dtype); }
    /// Rows of units in a block of one head. A key's elements behind head_dim, up to whole units,
    /// are 0.
    [[nodiscard]] constexpr int64_t key_rows() const { return pieces(head_dim, unit()); }
    [[nodiscard]] constexpr int64_t value_rows() const { return block / unit(); }
    /// Parts that head_dim is cut into for values, equal but for the last, and the columns of one:
    /// whole vectors. Columns behind head_dim are undefined.
    [[nodiscard]] constexpr int64_t value_parts() const { return pieces(head_dim, block); }
    [[nodiscard]] constexpr int64_t part_width() const {
        return round_up(pieces(head_dim, value_parts()), widest_vector);
    }

    /// Blocks that hold so many keys.
    [[nodiscard]] static constexpr int64_t blocks(int64_t keys) { return pieces(keys, block); }
    /// Units of one head's keys or values in a block.
    [[nodiscard]] constexpr int64_t key_units() const { return key_rows() * block; }
    [[nodiscard]] constexpr int64_t value_units() const { return value_parts() * part_units(); }
    [[nodiscard]] constexpr int64_t part_units() const { return value_rows() * part_width(); }

    /// Bytes from the first block on to the one of this head that holds this key.
    [[nodiscard]] constexpr int64_t key_block(int64_t head, int64_t key) const {
        return (key / block * kv_heads + head) * key_units() * unit_bytes;
    }
    [[nodiscard]] constexpr int64_t value_block(int64_t head, int64_t key) const {
        return (key / block * kv_heads + head) * value_units() * unit_bytes;
    }

    /// Whether there are scales, and where that of a key or value lies.
    [[nodiscard]] constexpr bool scaled() const { return dtype == DType::i8; }
    [[nodiscard]] constexpr int64_t scale_index(int64_t head, int64_t key) const {
        return (key / block * kv_heads + head) * block + key % block;
    }
    /// Bytes of one key and its value, all heads, with what they are padded by: a block is as many
    /// times them as it holds keys.
    [[nodiscard]] constexpr int64_t bytes_of_key() const {
        constexpr int64_t scale_bytes = 2 * 4;  // of a key and a value
        const int64_t units = key_units() + value_units();
        return kv_heads * (units * unit_bytes / block + (scaled() ? scale_bytes : 0));
    }

    /// Where element d of a key or value lies, in elements: the layout in one line.
    [[nodiscard]] constexpr int64_t key_index(int64_t head, int64_t key, int64_t d) const {
        return key_block(head, key) / dtype_size(dtype) +
               (d / unit() * block + key % block) * unit() + d % unit();
    }
    [[nodiscard]] constexpr int64_t value_index(int64_t head, int64_t key, int64_t d) const {
        const int64_t row = d / part_width() * value_rows() + key % block / unit();
        return value_block(head, key) / dtype_size(dtype) +
               (row * part_width() + d % part_width()) * unit() + key % unit();
    }
};

}  // namespace mllama
