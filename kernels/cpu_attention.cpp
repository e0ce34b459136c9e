// Attention, blockwise and with online softmax (Milakov & Gimelshein 2018, Dao et al. 2022): the
// (queries, keys) scores are never whole in memory.
//
// Keys are taken in chunks that begin at multiples of chunk_keys. A chunk gives each row (a query
// and a head) a part of its softmax: the largest logit, the sum of exponentials and their products
// with v; parts are merged in the order of the chunks:
//
//     for each block of queries of a key head          (an item)
//       for each chunk that any of them sees
//         pack its keys and values                     (shared by the rows of the block)
//         for each tile of rows: scores = q k^T; p = softmax(scores); part = p v; merge
//
// Few rows, a token's, are not worth packing: keys and values are multiplied on their way through
// the registers, as in a linear layer of few rows. There an item is a chunk of a key head, so that
// many threads can share a long text; the parts are kept, and merged at the end in the same order.
//
// Either way, and however the queries are split, a row goes through the same sums.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "kernels/blocking.h"
#include "kernels/cpu.h"
#include "kernels/cpu_ops.h"
#include "kernels/reference.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {
namespace {

constexpr int64_t chunk_keys = 512;
/// About as many rows share the packing of a chunk.
constexpr int64_t block_rows = 256;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// ---- who sees what ----

/// The ranges that one query sees.
struct SeenRanges {
    const KeyRange* ranges;
    int64_t count;
};

/// `one` is room for a range that stands in no list.
SeenRanges ranges_of(const Attention& args, int64_t query, KeyRange& one) {
    const Visibility& visible = args.visible;
    if (visible.first != nullptr) {
        const int64_t first = visible.first[query];
        return {visible.ranges + first, visible.first[query + 1] - first};
    }
    one = {0, args.keys};
    if (visible.causal_from >= 0) one.end = std::min(args.keys, visible.causal_from + query + 1);
    return {&one, one.end > 0 ? 1 : 0};
}

/// The part of sorted ranges that meets [begin, end).
SeenRanges within(SeenRanges seen, int64_t begin, int64_t end) {
    const KeyRange* last = seen.ranges + seen.count;
    const KeyRange* first = std::partition_point(
        seen.ranges, last, [&](const KeyRange& range) { return range.end <= begin; });
    const KeyRange* stop =
        std::partition_point(first, last, [&](const KeyRange& range) { return range.begin < end; });
    return {first, stop - first};
}

// ---- one call ----

/// What all items of a call share.
struct Call {
    Call(const Attention& of, const Table& table, Compute compute)
        : args(of),
          leaves(table),
          product(product_of(table, compute)),
          group(of.heads / of.kv_heads),
          width(round_up(of.head_dim, product.lanes)),
          q_stride(round_up(of.head_dim, product.step())),
          p_stride(chunk_keys + 64 / product.element_size),
          value_columns(round_up(pieces(of.head_dim, pieces(of.head_dim, product.panel_width)),
                                 product.lanes)) {}

    const Attention& args;
    const Table& leaves;
    const Product& product;
    int64_t group;          ///< query heads of one key head
    int64_t width;          ///< head_dim rounded up to whole vectors
    int64_t q_stride;       ///< elements of a packed row of q
    int64_t p_stride;       ///< elements from one packed row of probabilities to the next
    int64_t value_columns;  ///< columns of v in a panel: head_dim in equal parts

    /// Row r of a block is query first_query + r / group, head kv_head * group + r % group.
    [[nodiscard]] const std::byte* key(int64_t kv_head, int64_t at) const {
        return element_at(args.k, args.kv_dtype,
                          kv_head * args.kv_head_stride + at * args.kv_stride);
    }
    [[nodiscard]] const std::byte* value(int64_t kv_head, int64_t at, int64_t column) const {
        return element_at(args.v, args.kv_dtype,
                          kv_head * args.kv_head_stride + at * args.kv_stride + column);
    }
    /// Bytes from one panel of keys, or of value columns, to the next.
    [[nodiscard]] int64_t key_panel_bytes() const {
        return product.panel_width * q_stride * product.element_size;
    }
    [[nodiscard]] int64_t value_panel_bytes() const {
        return value_columns * chunk_keys * product.element_size;
    }
};

/// Rows that one key head serves, packed, and their state of the online softmax.
struct Rows {
    int64_t kv_head, first_query, count;
    std::byte* q;  ///< (count, head_dim) packed
    float* out;    ///< (count, width): sum over the keys so far of 2^(x - max) v
    float* max;    ///< (count)
    float* sum;    ///< (count): sum over the keys so far of 2^(x - max)
};

int64_t query_of(const Call& call, const Rows& rows, int64_t row) {
    return rows.first_query + row / call.group;
}

/// Behind the last key of [keys.begin, keys.end) that one of the rows sees; keys.begin if none
/// does. What lies behind it need not be computed: its probabilities are 0.
int64_t seen_end(const Call& call, const Rows& rows, int64_t row, int64_t count, KeyRange keys) {
    int64_t end = keys.begin;
    const int64_t last = query_of(call, rows, row + count - 1);
    for (int64_t query = query_of(call, rows, row); query <= last; ++query) {
        KeyRange one;
        const SeenRanges seen = within(ranges_of(call.args, query, one), keys.begin, keys.end);
        if (seen.count > 0)
            end = std::max(end, std::min(keys.end, seen.ranges[seen.count - 1].end));
    }
    return end;
}

void pack_queries(const Call& call, const Rows& rows) {
    const Attention& args = call.args;
    for (int64_t r = 0; r < rows.count; ++r) {
        const int64_t head = rows.kv_head * call.group + r % call.group;
        call.product.pack_row(
            args.q + query_of(call, rows, r) * args.q_stride + head * args.head_dim, args.head_dim,
            rows.q + r * call.q_stride * call.product.element_size, false);
    }
}

void begin(const Call& call, const Rows& rows) {
    std::fill_n(rows.out, rows.count * call.width, 0.0f);
    std::fill_n(rows.max, rows.count, minus_infinity);
    std::fill_n(rows.sum, rows.count, 0.0f);
}

/// The softmax of one row over the `count` keys of a chunk from `first` on, packed.
SoftmaxPart softmax_of(const Call& call, const Rows& rows, int64_t row, int64_t first,
                       int64_t count, float* scores, std::byte* probabilities) {
    const Attention& args = call.args;
    KeyRange one;
    const SeenRanges seen =
        within(ranges_of(args, query_of(call, rows, row), one), first, first + count);
    const float* bias = args.key_bias != nullptr ? args.key_bias + first : nullptr;
    return call.product.softmax({scores, count, first, args.scale, bias, seen.ranges, seen.count},
                                probabilities);
}

/// Adds one part to the state of one row: o (width), the row's part of 2^(x - part.max) v, is
/// brought to the common maximum. A chunk that the row does not see leaves it as it is, to the bit.
void merge(const Call& call, const Rows& rows, int64_t row, SoftmaxPart part, const float* o) {
    if (part.max == minus_infinity && part.sum == 0.0f) return;
    float& max = rows.max[row];
    float old_factor = 1.0f, part_factor = 1.0f;  // 2 to the distance from the common maximum
    if (part.max > max) {
        old_factor = std::exp2(max - part.max);
        max = part.max;
    } else {
        part_factor = std::exp2(part.max - max);
    }
    rows.sum[row] = rows.sum[row] * old_factor + part.sum * part_factor;
    call.leaves.blend(rows.out + row * call.width, old_factor, o, part_factor, call.width);
}

/// out = sum / weight of the whole softmax, or 0 for a query that saw nothing.
void finish(const Call& call, const Rows& rows) {
    const Attention& args = call.args;
    for (int64_t r = 0; r < rows.count; ++r) {
        float* row = rows.out + r * call.width;
        call.leaves.scale(row, rows.sum[r] == 0.0f ? 0.0f : 1.0f / rows.sum[r], args.head_dim);
        const int64_t head = rows.kv_head * call.group + r % call.group;
        std::memcpy(args.out + query_of(call, rows, r) * args.out_stride + head * args.head_dim,
                    row, static_cast<size_t>(args.head_dim) * sizeof(float));
    }
}

/// The memory of one item.
struct ItemScratch {
    Scratch q, key_panels, value_panels, scores, probabilities, part, out, max_and_sum;

    Rows rows(const Call& call, int64_t kv_head, int64_t first_query, int64_t count) {
        auto* max = max_and_sum.get<float>(2 * count);
        return {kv_head,
                first_query,
                count,
                q.get<std::byte>(count * call.q_stride * call.product.element_size),
                out.get<float>(count * call.width),
                max,
                max + count};
    }
};

// ---- many rows ----

/// Packed keys and values of one chunk.
struct Chunk {
    int64_t first, count;
    const std::byte* keys;    ///< panels of keys
    const std::byte* values;  ///< panels of columns of v
};

Chunk pack_chunk(const Call& call, int64_t kv_head, int64_t first, int64_t count,
                 ItemScratch& scratch) {
    const Attention& args = call.args;
    const Product& product = call.product;
    auto* keys = scratch.key_panels.get<std::byte>(pieces(chunk_keys, product.panel_width) *
                                                   call.key_panel_bytes());
    auto* values = scratch.value_panels.get<std::byte>(pieces(args.head_dim, call.value_columns) *
                                                       call.value_panel_bytes());
    for (int64_t j = 0; j < count; j += product.panel_width) {
        product.pack_rows(call.key(kv_head, first + j), args.kv_dtype, args.kv_stride,
                          std::min(product.panel_width, count - j), args.head_dim,
                          keys + j / product.panel_width * call.key_panel_bytes(), false);
    }
    for (int64_t d = 0; d < args.head_dim; d += call.value_columns) {
        product.pack_columns(call.value(kv_head, first, d), args.kv_dtype, args.kv_stride, count,
                             std::min(call.value_columns, args.head_dim - d),
                             values + d / call.value_columns * call.value_panel_bytes());
    }
    return {first, count, keys, values};
}

/// A tile of rows against the first `count` keys of a chunk: scores, softmax, values, merge.
void attend_tile(const Call& call, const Rows& rows, const Chunk& chunk, int64_t row,
                 int64_t tile_rows, int64_t count, ItemScratch& scratch) {
    const Product& product = call.product;
    auto* scores = scratch.scores.get<float>(product.tile_rows * chunk_keys);
    auto* probabilities = scratch.probabilities.get<std::byte>(product.tile_rows * call.p_stride *
                                                               product.element_size);
    auto* part = scratch.part.get<float>(product.tile_rows * call.width);

    // A panel's columns are stored as wide as it was packed: the last one of the chunk as it is.
    for (int64_t j = 0; j < count; j += product.panel_width) {
        product.tile(tile_rows, std::min(product.panel_width, chunk.count - j), 1,
                     call.args.head_dim, rows.q + row * call.q_stride * product.element_size,
                     call.q_stride, chunk.keys + j / product.panel_width * call.key_panel_bytes(),
                     scores + j, chunk_keys, false);
    }
    SoftmaxPart softmax[most_tile_rows];
    for (int64_t r = 0; r < tile_rows; ++r) {
        softmax[r] = softmax_of(call, rows, row + r, chunk.first, count, scores + r * chunk_keys,
                                probabilities + r * call.p_stride * product.element_size);
    }
    for (int64_t d = 0; d < call.args.head_dim; d += call.value_columns) {
        product.tile(tile_rows, std::min(call.value_columns, call.args.head_dim - d), 1, count,
                     probabilities, call.p_stride,
                     chunk.values + d / call.value_columns * call.value_panel_bytes(), part + d,
                     call.width, false);
    }
    for (int64_t r = 0; r < tile_rows; ++r) {
        merge(call, rows, row + r, softmax[r], part + r * call.width);
    }
}

/// One item: all keys, chunk by chunk, for a block of queries and the heads of one key head.
void attend_block(const Call& call, int64_t kv_head, int64_t first_query, int64_t queries) {
    thread_local ItemScratch scratch;
    const Rows rows = scratch.rows(call, kv_head, first_query, queries * call.group);
    pack_queries(call, rows);
    begin(call, rows);
    for (int64_t first = 0; first < call.args.keys; first += chunk_keys) {
        const KeyRange keys{first, std::min(first + chunk_keys, call.args.keys)};
        const int64_t end = seen_end(call, rows, 0, rows.count, keys);
        if (end == first) continue;
        const Chunk chunk = pack_chunk(call, kv_head, first, end - first, scratch);
        for (int64_t r = 0; r < rows.count; r += call.product.tile_rows) {
            const int64_t count = std::min(call.product.tile_rows, rows.count - r);
            const int64_t tile_end = seen_end(call, rows, r, count, {first, end});
            if (tile_end > first) {
                attend_tile(call, rows, chunk, r, count, tile_end - first, scratch);
            }
        }
    }
    finish(call, rows);
}

void attend_blocks(const Call& call) {
    const Attention& args = call.args;
    // Smaller blocks where there are not enough of them for all threads.
    const int64_t share = pieces(args.queries * args.kv_heads, 2 * int64_t{threads()});
    const int64_t block =
        std::clamp<int64_t>(std::min(block_rows / call.group, share), 1, args.queries);
    const int64_t blocks = pieces(args.queries, block);
    const bool serial = args.queries * args.keys * args.heads * args.head_dim / 16 < worth_threads;
    for_each_item(args.kv_heads * blocks, serial, [&](int64_t item) {
        // Late queries see most: they come first, so that no thread is left with a long one.
        const int64_t first = (blocks - 1 - item / args.kv_heads) * block;
        attend_block(call, item % args.kv_heads, first, std::min(block, args.queries - first));
    });
}

// ---- few rows ----

/// The scores of rows against `count` keys, straight from k.
void scores_of(const Call& call, const Rows& rows, int64_t first, int64_t count, float* scores,
               Scratch& panel_scratch) {
    const Attention& args = call.args;
    const Product& product = call.product;
    for (int64_t j = 0; j < count; j += product.panel_width) {
        const int64_t columns = std::min(product.panel_width, count - j);
        const std::byte* keys = call.key(rows.kv_head, first + j);
        if (columns == product.panel_width) {
            product.few_rows(rows.count, args.head_dim, rows.q, call.q_stride, keys, args.kv_dtype,
                             args.kv_stride, scores + j, chunk_keys);
            continue;
        }
        auto* panel = panel_scratch.get<std::byte>(call.key_panel_bytes());
        product.pack_rows(keys, args.kv_dtype, args.kv_stride, columns, args.head_dim, panel,
                          false);
        for (int64_t r = 0; r < rows.count; r += product.tile_rows) {
            product.tile(std::min(product.tile_rows, rows.count - r), columns, 1, args.head_dim,
                         rows.q + r * call.q_stride * product.element_size, call.q_stride, panel,
                         scores + r * chunk_keys + j, chunk_keys, false);
        }
    }
}

/// One item: a chunk of keys for all rows of a key head. parts (rows), o (rows, width).
void attend_chunk(const Call& call, int64_t kv_head, int64_t first, SoftmaxPart* parts, float* o) {
    thread_local ItemScratch scratch;
    const Product& product = call.product;
    const Rows rows = scratch.rows(call, kv_head, 0, call.args.queries * call.group);
    const KeyRange keys{first, std::min(first + chunk_keys, call.args.keys)};
    const int64_t count = seen_end(call, rows, 0, rows.count, keys) - first;
    if (count == 0) {
        std::fill_n(parts, rows.count, SoftmaxPart{minus_infinity, 0.0f});
        return;
    }
    pack_queries(call, rows);
    auto* scores = scratch.scores.get<float>(rows.count * chunk_keys);
    auto* probabilities =
        scratch.probabilities.get<std::byte>(rows.count * call.p_stride * product.element_size);
    scores_of(call, rows, first, count, scores, scratch.key_panels);
    for (int64_t r = 0; r < rows.count; ++r) {
        parts[r] = softmax_of(call, rows, r, first, count, scores + r * chunk_keys,
                              probabilities + r * call.p_stride * product.element_size);
    }
    product.few_columns(rows.count, count, call.args.head_dim, probabilities, call.p_stride,
                        call.value(kv_head, first, 0), call.args.kv_dtype, call.args.kv_stride, o,
                        call.width);
}

void attend_few(const Call& call) {
    thread_local Scratch part_scratch, o_scratch;
    thread_local ItemScratch scratch;
    const Attention& args = call.args;
    const int64_t count = args.queries * call.group;
    const int64_t chunks = pieces(args.keys, chunk_keys);
    auto* parts = part_scratch.get<SoftmaxPart>(args.kv_heads * chunks * count);
    auto* o = o_scratch.get<float>(args.kv_heads * chunks * count * call.width);
    const bool serial = args.queries * args.keys * args.heads * args.head_dim / 16 < worth_threads;
    for_each_item(args.kv_heads * chunks, serial, [&](int64_t item) {
        attend_chunk(call, item / chunks, item % chunks * chunk_keys, parts + item * count,
                     o + item * count * call.width);
    });
    for (int64_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
        const Rows rows = scratch.rows(call, kv_head, 0, count);
        begin(call, rows);
        for (int64_t row = kv_head * chunks * count; row < (kv_head + 1) * chunks * count; ++row) {
            merge(call, rows, row % count, parts[row], o + row * call.width);
        }
        finish(call, rows);
    }
}

}  // namespace

void attention(const Attention& args, Compute compute) {
    if (args.queries <= 0 || args.heads <= 0 || args.head_dim <= 0) return;
    const Call call(args, table(), compute);
    if (args.queries * call.group <= call.product.few_rows_max) {
        attend_few(call);
    } else {
        attend_blocks(call);
    }
}

void attention_weights(const Attention& args, float* weights) {
    const int64_t group = args.kv_heads > 0 ? args.heads / args.kv_heads : 1;
    const bool serial = args.queries * args.keys * args.heads * args.head_dim < worth_threads;
    for_each_item(args.heads, serial, [&](int64_t head) {
        Attention one = args;
        one.heads = 1;
        one.kv_heads = 1;
        one.q = args.q + head * args.head_dim;
        one.k = element_at(args.k, args.kv_dtype, head / group * args.kv_head_stride);
        reference::attention_weights(one, Compute::f32, weights + head * args.queries * args.keys);
    });
}

}  // namespace mllama::cpu
