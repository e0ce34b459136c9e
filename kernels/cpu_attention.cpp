// Attention, blockwise and with online softmax (Milakov & Gimelshein 2018, Dao et al. 2022): the
// (queries, keys) scores are never whole in memory.
//
// Keys are taken in chunks that begin at multiples of chunk_keys. A chunk gives each row (a query
// and a head) a part of its softmax: the largest logit, the sum of exponentials and their products
// with v; parts are merged in the order of the chunks:
//
//     for each block of queries of a key head          (an item)
//       for each chunk that any of them sees
//         pack its keys and values                     (copied, shared by the rows of the block)
//         for each tile of rows: scores = q k^T; p = softmax(scores); part = p v; merge
//
// Few rows, a token's, are not worth packing: keys and values lie as multiply-adds take them
// (kv_layout.h), and are read once, in the order of memory: all heads of a block, then the next. There
// an item is a chunk, so that many threads can share a long text (or a chunk of some key heads, where
// there are few chunks); the parts of some chunks are kept, and merged in the same order. Memory is
// taken for as many at once, however few the keys are: a text that grows allocates nothing.
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
static_assert(chunk_keys % KvLayout::block == 0);
/// Chunks whose parts are kept before they are merged, where rows are few.
constexpr int64_t chunks_at_once = 64;
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
          layout(of.layout()),
          leaves(table),
          product(product_of(table, compute)),
          group(of.heads / of.kv_heads),
          width(layout.value_parts() * layout.part_width()),
          q_stride(round_up(of.head_dim, product.step())),
          p_stride(chunk_keys + 64 / product.element_size) {}

    const Attention& args;
    KvLayout layout;
    const Table& leaves;
    const Product& product;
    int64_t group;     ///< query heads of one key head
    int64_t width;     ///< columns of all parts of the values: head_dim and padding
    int64_t q_stride;  ///< elements of a packed row of q
    int64_t p_stride;  ///< elements from one packed row of probabilities to the next

    /// Row r of a block is query first_query + r / group, head kv_head * group + r % group.
    /// Keys from this one on to the end of their block, as columns.
    [[nodiscard]] UnitMatrix keys(int64_t kv_head, int64_t at) const {
        const int64_t offset =
            layout.key_block(kv_head, at) + at % KvLayout::block * KvLayout::unit_bytes;
        return {static_cast<const std::byte*>(args.k) + offset, args.kv_dtype, KvLayout::block};
    }
    /// A block of values that begins with this one: the columns from d on, to the end of their part.
    [[nodiscard]] UnitMatrix values(int64_t kv_head, int64_t at, int64_t d) const {
        const int64_t width_of_part = layout.part_width();
        const int64_t column = d / width_of_part * layout.part_units() + d % width_of_part;
        const int64_t offset = layout.value_block(kv_head, at) + column * KvLayout::unit_bytes;
        return {static_cast<const std::byte*>(args.v) + offset, args.kv_dtype, width_of_part};
    }
    /// Columns from d on that one panel takes: none behind their part.
    [[nodiscard]] int64_t value_columns(int64_t d) const {
        const int64_t width_of_part = layout.part_width();
        return std::min(
            {product.panel_width, width_of_part - d % width_of_part, args.head_dim - d});
    }
    /// Bytes from one panel of keys to the next.
    [[nodiscard]] int64_t key_panel_bytes() const {
        return product.panel_width * q_stride * product.element_size;
    }
    /// Bytes of a column of packed values.
    [[nodiscard]] int64_t value_column_bytes() const { return chunk_keys * product.element_size; }
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

/// Scales of the keys and values of a chunk and one head, (count) each; none if they have none.
struct ChunkScales {
    const float* keys;
    const float* values;
};

/// Brings together what lies in blocks.
ChunkScales scales_of(const Call& call, int64_t kv_head, int64_t first, int64_t count,
                      const TeamScratch& scratch) {
    if (!call.layout.scaled()) return {nullptr, nullptr};
    auto* keys = scratch.here<float>();
    auto* values = keys + chunk_keys;
    for (int64_t j = 0; j < count; j += KvLayout::block) {
        const int64_t from = call.layout.scale_index(kv_head, first + j);
        const int64_t n = std::min(KvLayout::block, count - j);
        std::copy_n(call.args.k_scales + from, n, keys + j);
        std::copy_n(call.args.v_scales + from, n, values + j);
    }
    return {keys, values};
}

/// The softmax of one row over the `count` keys of a chunk from `first` on, packed.
SoftmaxPart softmax_of(const Call& call, const Rows& rows, int64_t row, int64_t first,
                       int64_t count, const ChunkScales& scales, float* scores,
                       std::byte* probabilities) {
    const Attention& args = call.args;
    KeyRange one;
    const SeenRanges seen =
        within(ranges_of(args, query_of(call, rows, row), one), first, first + count);
    const float* bias = args.key_bias != nullptr ? args.key_bias + first : nullptr;
    return call.product.softmax({scores, count, first, args.scale, bias, seen.ranges, seen.count,
                                 scales.keys, scales.values},
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
    float* out = args.out.f32();
    for (int64_t r = 0; r < rows.count; ++r) {
        float* row = rows.out + r * call.width;
        call.leaves.scale(row, rows.sum[r] == 0.0f ? 0.0f : 1.0f / rows.sum[r], args.head_dim);
        const int64_t head = rows.kv_head * call.group + r % call.group;
        float* to = out + query_of(call, rows, r) * args.out_stride + head * args.head_dim;
        std::memcpy(to, row, static_cast<size_t>(args.head_dim) * sizeof(float));
    }
}

/// The memory of an item.
struct ItemScratch {
    TeamScratch q, key_panels, value_panels, scores, probabilities, part, out, max_and_sum, scales;

    /// For items of `rows` packed rows, whose softmax takes `scored` of them at a time.
    void take(const Call& call, int64_t rows, int64_t scored) {
        const int64_t element = call.product.element_size;
        q.take<std::byte>(rows * call.q_stride * element);
        scores.take<float>(scored * chunk_keys);
        probabilities.take<std::byte>(scored * call.p_stride * element);
        if (call.layout.scaled()) scales.take<float>(2 * chunk_keys);
    }

    /// For items of attend_block besides.
    void take_for_blocks(const Call& call, int64_t rows) {
        key_panels.take<std::byte>(pieces(chunk_keys, call.product.panel_width) *
                                   call.key_panel_bytes());
        value_panels.take<std::byte>(call.width * call.value_column_bytes());
        part.take<float>(call.product.tile_rows * call.width);
        out.take<float>(rows * call.width);
        max_and_sum.take<float>(2 * rows);
    }
};

// ---- many rows ----

/// Packed keys and values of one chunk.
struct Chunk {
    int64_t first, count;
    const std::byte* keys;    ///< panels of keys
    const std::byte* values;  ///< panels of columns of v
    ChunkScales scales;
};

Chunk pack_chunk(const Call& call, int64_t kv_head, int64_t first, int64_t count,
                 const ItemScratch& scratch) {
    const Attention& args = call.args;
    const Product& product = call.product;
    auto* keys = scratch.key_panels.here<std::byte>();
    auto* values = scratch.value_panels.here<std::byte>();
    for (int64_t j = 0; j < count; j += product.panel_width) {
        product.pack_columns(call.keys(kv_head, first + j), args.head_dim,
                             std::min(product.panel_width, count - j),
                             keys + j / product.panel_width * call.key_panel_bytes());
    }
    for (int64_t d = 0; d < args.head_dim; d += call.value_columns(d)) {
        const int64_t columns = call.value_columns(d);
        const int64_t row_bytes = round_up(columns, product.lanes) * product.element_size;
        for (int64_t j = 0; j < count; j += KvLayout::block) {
            product.pack_columns(call.values(kv_head, first + j, d),
                                 std::min(KvLayout::block, count - j), columns,
                                 values + d * call.value_column_bytes() + j * row_bytes);
        }
    }
    return {first, count, keys, values, scales_of(call, kv_head, first, count, scratch.scales)};
}

/// A tile of rows against the first `count` keys of a chunk: scores, softmax, values, merge.
void attend_tile(const Call& call, const Rows& rows, const Chunk& chunk, int64_t row,
                 int64_t tile_rows, int64_t count, const ItemScratch& scratch) {
    const Product& product = call.product;
    auto* scores = scratch.scores.here<float>();
    auto* probabilities = scratch.probabilities.here<std::byte>();
    auto* part = scratch.part.here<float>();

    // A panel's columns are stored as wide as it was packed: the last one of the chunk as it is.
    for (int64_t j = 0; j < count; j += product.panel_width) {
        product.tile(tile_rows, std::min(product.panel_width, chunk.count - j), 1,
                     call.args.head_dim, rows.q + row * call.q_stride * product.element_size,
                     call.q_stride, chunk.keys + j / product.panel_width * call.key_panel_bytes(),
                     scores + j, chunk_keys, false);
    }
    SoftmaxPart softmax[most_tile_rows];
    for (int64_t r = 0; r < tile_rows; ++r) {
        softmax[r] = softmax_of(call, rows, row + r, chunk.first, count, chunk.scales,
                                scores + r * chunk_keys,
                                probabilities + r * call.p_stride * product.element_size);
    }
    for (int64_t d = 0; d < call.args.head_dim; d += call.value_columns(d)) {
        product.tile(tile_rows, call.value_columns(d), 1, count, probabilities, call.p_stride,
                     chunk.values + d * call.value_column_bytes(), part + d, call.width, false);
    }
    for (int64_t r = 0; r < tile_rows; ++r) {
        merge(call, rows, row + r, softmax[r], part + r * call.width);
    }
}

/// One item: all keys, chunk by chunk, for a block of queries and the heads of one key head.
void attend_block(const Call& call, int64_t kv_head, int64_t first_query, int64_t queries,
                  const ItemScratch& scratch) {
    const int64_t row_count = queries * call.group;
    auto* max = scratch.max_and_sum.here<float>();
    const Rows rows{
        kv_head, first_query,    row_count, scratch.q.here<std::byte>(), scratch.out.here<float>(),
        max,     max + row_count};
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
    thread_local ItemScratch of_thread;
    ItemScratch& scratch = of_thread;  // the items are to use this thread's
    scratch.take(call, block * call.group, call.product.tile_rows);
    scratch.take_for_blocks(call, block * call.group);
    for_each_item(args.kv_heads * blocks, serial, [&](int64_t item) {
        // Late queries see most: they come first, so that no thread is left with a long one.
        const int64_t first = (blocks - 1 - item / args.kv_heads) * block;
        attend_block(call, item % args.kv_heads, first, std::min(block, args.queries - first),
                     scratch);
    });
}

// ---- few rows ----

/// An item: a chunk of keys, for all rows of some key heads.
struct FewRows {
    int64_t first_head, heads;
    int64_t count;             ///< rows of one head
    int64_t first, end;        ///< keys
    const std::byte* q;        ///< (heads, count, q_stride) packed
    float* scores;             ///< (heads, count, chunk_keys)
    std::byte* probabilities;  ///< (heads, count, p_stride) packed
};

/// Scores of all heads, block by block.
void scores_of(const Call& call, const FewRows& item) {
    for (int64_t key = item.first; key < item.end; key += KvLayout::block) {
        for (int64_t h = 0; h < item.heads; ++h) {
            const int64_t row = h * item.count;
            call.product.few_columns(
                item.count, call.args.head_dim, std::min(KvLayout::block, item.end - key),
                item.q + row * call.q_stride * call.product.element_size, call.q_stride,
                call.keys(item.first_head + h, key),
                item.scores + row * chunk_keys + key - item.first, chunk_keys, false);
        }
    }
}

/// o (heads, count, width) = probabilities times values, block by block: sums go on.
void values_of(const Call& call, const FewRows& item, float* o) {
    const int64_t part_width = call.layout.part_width();
    for (int64_t key = item.first; key < item.end; key += KvLayout::block) {
        for (int64_t h = 0; h < item.heads; ++h) {
            const int64_t row = h * item.count;
            const std::byte* probabilities =
                item.probabilities +
                (row * call.p_stride + key - item.first) * call.product.element_size;
            for (int64_t d = 0; d < call.args.head_dim; d += part_width) {
                call.product.few_columns(item.count, std::min(KvLayout::block, item.end - key),
                                         std::min(part_width, call.args.head_dim - d),
                                         probabilities, call.p_stride,
                                         call.values(item.first_head + h, key, d),
                                         o + row * call.width + d, call.width, key > item.first);
            }
        }
    }
}

/// parts (heads, count), o (heads, count, width) of a chunk of `keys`.
void attend_chunk(const Call& call, int64_t first_head, int64_t heads, KeyRange keys,
                  const ItemScratch& scratch, SoftmaxPart* parts, float* o) {
    const int64_t count = call.args.queries * call.group, element = call.product.element_size;
    Rows rows{first_head, 0, count, scratch.q.here<std::byte>(), nullptr, nullptr, nullptr};
    const int64_t end = seen_end(call, rows, 0, count, keys);
    if (end == keys.begin) {
        std::fill_n(parts, heads * count, SoftmaxPart{minus_infinity, 0.0f});
        return;
    }
    const FewRows item{first_head,
                       heads,
                       count,
                       keys.begin,
                       end,
                       rows.q,
                       scratch.scores.here<float>(),
                       scratch.probabilities.here<std::byte>()};
    for (int64_t h = 0; h < heads; ++h) {
        pack_queries(call, rows);
        rows.q += count * call.q_stride * element;
        ++rows.kv_head;
    }
    scores_of(call, item);
    ChunkScales scales{};
    for (int64_t r = 0; r < heads * count; ++r) {
        if (r % count == 0) {
            scales = scales_of(call, first_head + r / count, keys.begin, end - keys.begin,
                               scratch.scales);
        }
        parts[r] = softmax_of(call, rows, r % count, keys.begin, end - keys.begin, scales,
                              item.scores + r * chunk_keys,
                              item.probabilities + r * call.p_stride * element);
    }
    values_of(call, item, o);
}

/// What a call keeps between its loops: parts (chunks_at_once, kv_heads, count), their products o
/// (chunks_at_once, kv_heads, count, width), and the rows that they are merged into.
struct FewScratch {
    Scratch parts, o, out, max_and_sum;
    ItemScratch items;
};

/// The rows of all key heads; each head's are `count` of them.
Rows rows_of(const Call& call, FewScratch& scratch, int64_t count) {
    const int64_t rows = call.args.kv_heads * count;
    auto* max = scratch.max_and_sum.get<float>(2 * rows);
    return {0, 0, count, nullptr, scratch.out.get<float>(rows * call.width), max, max + rows};
}

/// The rows of one key head of those.
Rows rows_of_head(const Call& call, const Rows& all, int64_t kv_head) {
    const int64_t first = kv_head * all.count;
    return {kv_head,        0, all.count, nullptr, all.out + first * call.width, all.max + first,
            all.sum + first};
}

/// Parts of chunks [first, end) of all key heads, from the beginning of parts and o on.
void attend_chunks(const Call& call, int64_t first, int64_t end, bool serial,
                   const ItemScratch& scratch, SoftmaxPart* parts, float* o) {
    const Attention& args = call.args;
    const int64_t count = args.queries * call.group;
    const int64_t wanted = 8 * int64_t{threads()};  // items
    const int64_t cuts =
        std::clamp<int64_t>(pieces(wanted, std::max<int64_t>(1, end - first)), 1, args.kv_heads);
    const int64_t heads = pieces(args.kv_heads, cuts);  // of an item
    const int64_t groups = pieces(args.kv_heads, heads);
    for_each_item((end - first) * groups, serial, [&](int64_t item) {
        const int64_t chunk = item / groups, first_head = item % groups * heads;
        const int64_t at = (chunk * args.kv_heads + first_head) * count;
        const int64_t key = (first + chunk) * chunk_keys;
        attend_chunk(call, first_head, std::min(heads, args.kv_heads - first_head),
                     {key, std::min(key + chunk_keys, args.keys)}, scratch, parts + at,
                     o + at * call.width);
    });
}

/// Adds the parts of `chunks` chunks to the rows of a key head, in order.
void merge_chunks(const Call& call, const Rows& rows, int64_t chunks, const SoftmaxPart* parts,
                  const float* o) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int64_t r = 0; r < rows.count; ++r) {
            const int64_t at = (chunk * call.args.kv_heads + rows.kv_head) * rows.count + r;
            merge(call, rows, r, parts[at], o + at * call.width);
        }
    }
}

void attend_few(const Call& call) {
    thread_local FewScratch scratch;
    const Attention& args = call.args;
    const int64_t count = args.queries * call.group;
    const int64_t chunks = pieces(args.keys, chunk_keys);
    const int64_t rows_at_once = chunks_at_once * args.kv_heads * count;
    auto* parts = scratch.parts.get<SoftmaxPart>(rows_at_once);
    auto* o = scratch.o.get<float>(rows_at_once * call.width);
    scratch.items.take(call, args.kv_heads * count, args.kv_heads * count);
    const Rows all = rows_of(call, scratch, count);
    const bool serial = args.queries * args.keys * args.heads * args.head_dim / 16 < worth_threads;
    for (int64_t first = 0; first == 0 || first < chunks; first += chunks_at_once) {
        const int64_t end = std::min(first + chunks_at_once, chunks);
        attend_chunks(call, first, end, serial, scratch.items, parts, o);
        for_each_item(args.kv_heads, serial || chunks == 1, [&](int64_t kv_head) {
            const Rows rows = rows_of_head(call, all, kv_head);
            if (first == 0) begin(call, rows);
            merge_chunks(call, rows, end - first, parts, o);
            if (end == chunks) finish(call, rows);
        });
    }
}

/// One sequence.
void attend(const Attention& args, Compute compute) {
    if (args.queries <= 0 || args.heads <= 0 || args.head_dim <= 0) return;
    const Call call(args, table(), compute);
    if (args.queries * call.group <= call.product.few_rows_max) {
        attend_few(call);
    } else {
        attend_blocks(call);
    }
}

}  // namespace

void attention(std::span<const Attention> calls, Compute compute) {
    for (const Attention& args : calls) attend(args, compute);
}

void attention_weights(const Attention& args, float* weights) {
    const bool serial = args.queries * args.keys * args.heads * args.head_dim < worth_threads;
    for_each_item(args.heads, serial, [&](int64_t head) {
        reference::attention_weights(args, Compute::f32, head,
                                     weights + head * args.queries * args.keys);
    });
}

}  // namespace mllama::cpu
