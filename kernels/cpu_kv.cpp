// Storing keys and values as attention reads them (kv_layout.h): block by block and head by head.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

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

/// row (head_dim) = scale * whole numbers (head_dim): the scale. What is not finite makes it a NaN.
float quantise(const float* row, int64_t head_dim, float* whole) {
    float largest = 0.0f;
    for (int64_t d = 0; d < head_dim; ++d) {
        const float magnitude = std::fabs(row[d]);
        if (!(magnitude <= largest)) largest = magnitude;
        if (std::isnan(largest)) break;
    }
    const float scale = largest / 127.0f;
    if (!std::isfinite(scale) || scale == 0.0f) {
        std::fill_n(whole, head_dim, 0.0f);
        return scale == 0.0f ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    }
    for (int64_t d = 0; d < head_dim; ++d) {
        whole[d] = std::clamp(std::nearbyint(row[d] / scale), -127.0f, 127.0f);
    }
    return scale;
}

/// Room for the whole numbers of a block of one head.
TeamScratch& scratch_for(const KvLayout& layout) {
    thread_local TeamScratch scratch;
    if (layout.scaled()) scratch.take<float>(KvLayout::block * layout.head_dim);
    return scratch;
}

/// Rows of one head as they are stored: as they are, or quantised in memory of their own.
struct HeadRows {
    const float* data;
    int64_t stride;
};

HeadRows rows_to_store(const float* x, int64_t x_stride, const KvLayout& layout, const Piece& piece,
                       int64_t head, float* scales, const TeamScratch& scratch) {
    const float* from = x + piece.row * x_stride + head * layout.head_dim;
    if (!layout.scaled()) return {from, x_stride};
    auto* whole = scratch.here<float>();
    for (int64_t r = 0; r < piece.count; ++r) {
        scales[layout.scale_index(head, piece.key + r)] =
            quantise(from + r * x_stride, layout.head_dim, whole + r * layout.head_dim);
    }
    return {whole, layout.head_dim};
}

}  // namespace

void store_keys(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                int64_t begin, void* keys, float* scales) {
    TeamScratch& scratch = scratch_for(layout);
    for_each_piece_of(layout, begin, rows, [&](const Piece& piece, int64_t head) {
        auto* to = static_cast<std::byte*>(keys) + layout.key_block(head, piece.key) +
                   piece.key % KvLayout::block * KvLayout::unit_bytes;
        const HeadRows from = rows_to_store(x, x_stride, layout, piece, head, scales, scratch);
        table().store_keys(from.data, from.stride, piece.count, layout, to);
    });
}

void store_values(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                  int64_t begin, void* values, float* scales) {
    TeamScratch& scratch = scratch_for(layout);
    for_each_piece_of(layout, begin, rows, [&](const Piece& piece, int64_t head) {
        const int64_t within = piece.key % KvLayout::block;
        auto* to = static_cast<std::byte*>(values) + layout.value_block(head, piece.key) +
                   within / layout.unit() * layout.part_width() * KvLayout::unit_bytes;
        const HeadRows from = rows_to_store(x, x_stride, layout, piece, head, scales, scratch);
        table().store_values(from.data, from.stride, within % layout.unit(), piece.count, layout,
                             to);
    });
}

void store_keys_values(std::span<const NewKeysValues> sequences) {
    for (const NewKeysValues& s : sequences) {
        store_keys(s.k, s.rows, s.k_stride, s.layout, s.begin, s.keys, s.key_scales);
        store_values(s.v, s.rows, s.v_stride, s.layout, s.begin, s.values, s.value_scales);
    }
}

}  // namespace mllama::cpu
