// Storing keys and values as attention reads them (kv_layout.h): block by block and head by head.
#include <algorithm>
#include <cstddef>

#include "kernels/blocking.h"
#include "kernels/cpu.h"
#include "kernels/cpu_ops.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {
namespace {

/// The new keys of one block.
struct Piece {
    int64_t key;  ///< the first, in numbers of all keys
    int64_t row;  ///< its row of x
    int64_t count;
};

/// body(piece, head) for all blocks that `rows` keys from `begin` on touch.
template <class Body>
void for_each_piece_of(const KvLayout& layout, int64_t begin, int64_t rows, const Body& body) {
    if (rows <= 0) return;
    const int64_t first_block = begin / KvLayout::block;
    const int64_t blocks = KvLayout::blocks(begin + rows) - first_block;
    const bool serial = rows * layout.kv_heads * layout.head_dim < worth_threads;
    for_each_item(blocks * layout.kv_heads, serial, [&](int64_t item) {
        const int64_t block = first_block + item / layout.kv_heads;
        const int64_t key = std::max(begin, block * KvLayout::block);
        const int64_t end = std::min(begin + rows, (block + 1) * KvLayout::block);
        body(Piece{key, key - begin, end - key}, item % layout.kv_heads);
    });
}

}  // namespace

void store_keys(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                int64_t begin, void* keys) {
    for_each_piece_of(layout, begin, rows, [&](const Piece& piece, int64_t head) {
        auto* to = static_cast<std::byte*>(keys) + layout.key_block(head, piece.key) +
                   piece.key % KvLayout::block * KvLayout::unit_bytes;
        table().store_keys(x + piece.row * x_stride + head * layout.head_dim, x_stride, piece.count,
                           layout, to);
    });
}

void store_values(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                  int64_t begin, void* values) {
    for_each_piece_of(layout, begin, rows, [&](const Piece& piece, int64_t head) {
        const int64_t within = piece.key % KvLayout::block;
        auto* to = static_cast<std::byte*>(values) + layout.value_block(head, piece.key) +
                   within / layout.unit() * layout.part_width() * KvLayout::unit_bytes;
        table().store_values(x + piece.row * x_stride + head * layout.head_dim, x_stride,
                             within % layout.unit(), piece.count, layout, to);
    });
}

}  // namespace mllama::cpu
