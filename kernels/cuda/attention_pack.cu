// Keys and values as the products of a warpgroup take them from shared memory (warpgroup.h), in pieces
// of 8 bfloat16 that are neighbours along the summed dimension, for each head of a block of 64 keys
//
//     keys    parts of 64 dimensions, and one of 16: rows (64 keys, pieces of the part)
//     values  rows (head_dim, 8 pieces of keys)
//
// so that a step of attention_warpgroup.cu is copied as it lies. A piece is joined of 4 rows of units
// of kv_layout.h, or of 2 of int8.
#include "kernels/cuda/attention_warpgroup.h"

namespace mllama::cuda::warpgroup {
namespace {

constexpr unsigned threads = 256;

/// Eight neighbours of a column of `units`, from row `row` of units on, which are `width` apart.
template <bool coded>
__device__ uint4 piece_of(const uint32_t* units, int row, int width, int column) {
    const uint32_t* from = units + row * width + column;
    if constexpr (coded) {
        const Pair low = int8_to_bf16(from[0]);
        const Pair high = int8_to_bf16(from[width]);
        return {low.low, low.high, high.low, high.high};
    } else {
        return {from[0], from[width], from[2 * width], from[3 * width]};
    }
}

/// 0 behind the first `count` of two, and of eight: what lies behind the last key is no number.
__device__ uint32_t first_of(uint32_t unit, int count) {
    return count >= 2 ? unit : count == 1 ? unit & 0xFFFFu : 0u;
}
__device__ uint4 first_of(const uint4& piece, int count) {
    return {first_of(piece.x, count), first_of(piece.y, count - 2), first_of(piece.z, count - 4),
            first_of(piece.w, count - 6)};
}

/// Where a piece of a key stands among those of its block and head.
__device__ int key_place(int head_dim, int key, int piece) {
    const int part = piece / 8;
    const int pieces = std::min(8, head_dim / 8 - 8 * part);
    return part * 8 * block_keys + place_of(pieces, key, piece % 8);
}

/// Shared memory to memory, all threads.
__device__ void copy_out(const uint4* from, int pieces, uint4* to) {
    for (int i = static_cast<int>(threadIdx.x); i < pieces; i += threads) to[i] = from[i];
}

/// Grid: blocks of keys, key heads that are packed. Shared: their keys and values, packed.
template <bool coded>
__global__ void __launch_bounds__(threads)
    pack_kernel(Attention args, int part_width, int64_t value_units, Packed packed) {
    after_previous();
    constexpr int units_of_piece = coded ? 2 : 4;
    auto* const keys = reinterpret_cast<uint4*>(dynamic_shared());
    const int head_dim = static_cast<int>(args.head_dim);
    const int pieces = head_dim / 8 * block_keys;
    uint4* const values = keys + pieces;
    const int64_t block = int64_t{blockIdx.x} * args.kv_heads + packed.first_head + blockIdx.y;
    const int64_t place = int64_t{blockIdx.x} * packed.heads + blockIdx.y;
    const auto* key_units = static_cast<const uint32_t*>(args.k) + block * pieces * units_of_piece;
    const auto* units = static_cast<const uint32_t*>(args.v) + block * value_units;
    const int value_rows = block_keys / 8 * units_of_piece;
    const int there = static_cast<int>(
        std::min<int64_t>(block_keys, args.keys - int64_t{blockIdx.x} * block_keys));
    for (int i = static_cast<int>(threadIdx.x); i < pieces; i += threads) {
        const int key = i % block_keys;
        const int piece = i / block_keys;
        keys[key_place(head_dim, key, piece)] =
            key < there ? piece_of<coded>(key_units, piece * units_of_piece, block_keys, key)
                        : uint4{};
    }
    for (int i = static_cast<int>(threadIdx.x); i < pieces; i += threads) {
        const int d = i % head_dim;
        const int piece = i / head_dim;
        const uint32_t* part = units + d / part_width * value_rows * part_width;
        values[place_of(8, d, piece)] =
            first_of(piece_of<coded>(part, piece * units_of_piece, part_width, d % part_width),
                     there - 8 * piece);
    }
    __syncthreads();
    copy_out(keys, pieces, packed.keys + place * pieces);
    copy_out(values, pieces, packed.values + place * pieces);
}

}  // namespace

void pack(const Attention& args, const Packed& packed) {
    const dim3 grid(static_cast<unsigned>(KvLayout::blocks(args.keys)),
                    static_cast<unsigned>(packed.heads));
    const auto kernel = args.kv_dtype == DType::i8 ? pack_kernel<true> : pack_kernel<false>;
    const int64_t shared_bytes = 2 * args.head_dim / 8 * block_keys * int64_t{sizeof(uint4)};
    launch("attention_pack", kernel, grid, threads, shared_bytes, args,
           static_cast<int>(args.layout().part_width()), args.layout().value_units(), packed);
}

}  // namespace mllama::cuda::warpgroup
