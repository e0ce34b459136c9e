// The two products of attention on tensor cores, in fragments of mma.h. A warp takes 16 rows
// (queries and heads) and 32 keys at a time. With group = lane / 4 and quad = lane % 4, lane by lane:
//
//     scores  4 products n = 0 ... 3 whose column c is key 4 c + n: a lane loads 4 neighbouring keys
//             (4 group ...) of a row of units at once. Of k = 16 dimensions a lane brings the
//             neighbours 4 quad ... 4 quad + 3.
//     values  c of these products holds, in the lane, the probabilities of the 8 neighbouring keys
//             8 quad ... 8 quad + 7, so that half of them, packed, are a of the products with
//             values: of k = 16 keys a lane brings 4 neighbours. Again column c of product n is
//             column 4 c + n of 32 columns of the values.
//
// Which of the 16 numbers along k stands where is the same in a and b: their order is free. So a
// lane always takes a patch of 4 neighbours along the dimension that is summed by 4 neighbours
// across it, which is 16 bytes from each of one (int8), two (bfloat16) or four (float32) rows of
// units.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/warp.h"
#include "kernels/dtype.h"

namespace mllama::cuda {

/// Four units that are neighbours.
struct Units {
    uint32_t at[4];
};

__device__ inline Units load_units(const uint32_t* from) {
    const uint4 units = *reinterpret_cast<const uint4*>(from);
    return {{units.x, units.y, units.z, units.w}};
}
__device__ inline void store_units(uint32_t* to, const Units& units) {
    *reinterpret_cast<uint4*>(to) = {units.at[0], units.at[1], units.at[2], units.at[3]};
}

/// Byte i of four int8 whose sign bits are flipped, as a float: it stands in the low bits of 2^23.
__device__ inline float flipped_int8_to_f32(uint32_t flipped, int i) {
    return std::bit_cast<float>(0x4B000000u | (flipped >> (8 * i) & 0xFFu)) - (0x1p23f + 128.0f);
}

/// Four neighbours along the summed dimension as two units of bfloat16.
struct Pair {
    uint32_t low, high;
};

__device__ inline Pair int8_to_bf16(uint32_t unit) {
    const uint32_t flipped = unit ^ 0x80808080u;
    return {pack_bf16(flipped_int8_to_f32(flipped, 0), flipped_int8_to_f32(flipped, 1)),
            pack_bf16(flipped_int8_to_f32(flipped, 2), flipped_int8_to_f32(flipped, 3))};
}

/// Rows of units of a patch.
template <DType dtype>
inline constexpr int patch_rows = static_cast<int>(dtype_size(dtype));

/// A patch as it lies in memory.
template <DType dtype>
struct Patch {
    Units rows[patch_rows<dtype>];
};

/// Rows are `stride` units apart.
template <DType dtype>
__device__ Patch<dtype> load_patch(const uint32_t* from, int stride) {
    Patch<dtype> patch;
    for (int i = 0; i < patch_rows<dtype>; ++i) patch.rows[i] = load_units(from + i * stride);
    return patch;
}

/// Element i of the four of column n, for types that are rounded to bfloat16.
template <DType dtype>
__device__ float patch_element(const Patch<dtype>& patch, int n, int i) {
    if constexpr (dtype == DType::f16)
        return half_to_float(static_cast<uint16_t>(patch.rows[i / 2].at[n] >> (i % 2 * 16)));
    else
        return std::bit_cast<float>(patch.rows[i].at[n]);
}

/// Column n of a patch.
template <DType dtype>
__device__ Pair bf16_of(const Patch<dtype>& patch, int n) {
    if constexpr (dtype == DType::bf16) {
        return {patch.rows[0].at[n], patch.rows[1].at[n]};
    } else if constexpr (dtype == DType::i8) {
        return int8_to_bf16(patch.rows[0].at[n]);
    } else {
        return {pack_bf16(patch_element(patch, n, 0), patch_element(patch, n, 1)),
                pack_bf16(patch_element(patch, n, 2), patch_element(patch, n, 3))};
    }
}

/// The a fragment of 16 rows of q, of which a lane brings 4 numbers of the rows group and group + 8.
struct QueryPart {
    uint32_t at[4];
};

__device__ inline QueryPart query_part(const float (&low_row)[4], const float (&high_row)[4]) {
    return {{pack_bf16(low_row[0], low_row[1]), pack_bf16(high_row[0], high_row[1]),
             pack_bf16(low_row[2], low_row[3]), pack_bf16(high_row[2], high_row[3])}};
}

/// Probabilities of 16 of 32 keys, the first half of each lane's (half 0) or the second, as a: p are
/// (4, 4), the c fragments of the 4 products of scores.
__device__ inline QueryPart probability_part(const float (*p)[4], int half) {
    return {{pack_bf16(p[0][half], p[1][half]), pack_bf16(p[0][2 + half], p[1][2 + half]),
             pack_bf16(p[2][half], p[3][half]), pack_bf16(p[2][2 + half], p[3][2 + half])}};
}

/// The sum (largest) over the four lanes that hold a row of c.
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(whole_warp, x, 1);
    return x + __shfl_xor_sync(whole_warp, x, 2);
}
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(whole_warp, x, 1));
    return fmaxf(x, __shfl_xor_sync(whole_warp, x, 2));
}

/// What a lane is: its place in fragments.
struct Lane {
    int warp, group, quad;
};

__device__ inline Lane this_lane() {
    const unsigned lane = threadIdx.x % warp_size;
    return {static_cast<int>(threadIdx.x / warp_size), static_cast<int>(lane / 4),
            static_cast<int>(lane % 4)};
}

/// The key of 32 that element i of the c fragment of product n belongs to; the same for columns
/// of values.
__device__ inline int key_of(int n, int i) {
    return static_cast<int>(threadIdx.x % 4) * 8 + i % 2 * 4 + n;
}

}  // namespace mllama::cuda
