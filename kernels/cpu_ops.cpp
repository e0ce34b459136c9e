// The operations of cpu_ops.h: blocking and threads over the leaves of a table, written once. The
// only file with OpenMP.
//
// A product: the rows of x are packed once per block of rows; the work items of the threads are
// panels of w. Per item and block of k, a panel is packed (it stays in the second-level cache) and
// the register tile goes over all rows:
//
//     for each block of rows of x                  (packed: shared by the threads)
//       for each panel of w                        (an item)
//         for each block of k: pack the panel; for each tile of rows: c += x panel
//         for each row: out = epilogue(c)          (while c is in the cache)
//
// Attention: an item is a block of queries of one key head; see attend_block.
#include "kernels/cpu_ops.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "kernels/cpu.h"
#include "kernels/error.h"
#include "kernels/reference.h"

namespace mllama::cpu {
namespace {

// ---- threads ----

/// The limit that a control group (version 2) sets on processor time, as a number of processors; or
/// `otherwise`.
int quota_of_control_group(int otherwise) {
    std::ifstream file("/sys/fs/cgroup/cpu.max");
    std::string quota;
    double period = 0.0;
    if (!(file >> quota >> period) || quota == "max" || !(period > 0.0)) return otherwise;
    const double processors = std::strtod(quota.c_str(), nullptr) / period;
    if (!(processors > 0.0) || processors >= otherwise) return otherwise;
    return std::max(1, static_cast<int>(std::ceil(processors)));
}

int usable_processors() {
    int count = omp_get_num_procs();
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
#endif
    return std::max(1, quota_of_control_group(count));
}

std::atomic<int> thread_count{0};  // 0: not yet asked for

/// Runs body(i) for i in [0, n), in parallel unless `serial`, or inside of another parallel loop.
/// The first exception of a body is thrown again here. The team is always the same size: for a
/// smaller one, OpenMP would end threads, and start them again for the next loop.
template <class Body>
void for_each_item(int64_t n, bool serial, const Body& body) {
    const int team = threads();
    if (serial || n <= 1 || team <= 1 || omp_in_parallel() != 0) {
        for (int64_t i = 0; i < n; ++i) body(i);
        return;
    }
    std::exception_ptr error;
    std::mutex error_mutex;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (int64_t i = 0; i < n; ++i) {
        try {
            body(i);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(error_mutex);
            if (error == nullptr) error = std::current_exception();
        }
    }
    if (error != nullptr) std::rethrow_exception(error);
}

/// Below this many elements (or multiply-adds / 16) waking the threads costs more than it saves.
constexpr int64_t worth_threads = 1 << 15;

/// Cuts [0, n) into pieces of `piece` and runs body(begin, end) for each.
template <class Body>
void for_each_piece(int64_t n, int64_t piece, bool serial, const Body& body) {
    for_each_item((n + piece - 1) / piece, serial,
                  [&](int64_t i) { body(i * piece, std::min(n, (i + 1) * piece)); });
}

/// For rows of a row operation: pieces of about 16,384 elements.
template <class Body>
void for_each_row(int64_t rows, int64_t width, const Body& body) {
    const int64_t piece = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
    for_each_piece(rows, piece, rows * width < worth_threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) body(r);
    });
}

// ---- scratch memory ----

/// Memory of one thread that grows to the largest size ever asked for and is kept, so that a second
/// call of the same size allocates nothing. Aligned to cache lines.
class Scratch {
  public:
    template <class T>
    T* get(int64_t count) {
        const auto bytes = static_cast<size_t>(count) * sizeof(T);
        if (bytes > capacity_) {
            memory_.reset();
            capacity_ = 0;
            memory_.reset(::operator new(bytes, alignment));
            capacity_ = bytes;
        }
        return static_cast<T*>(memory_.get());
    }

  private:
    static constexpr std::align_val_t alignment{64};
    struct Release {
        void operator()(void* memory) const { ::operator delete(memory, alignment); }
    };
    std::unique_ptr<void, Release> memory_;
    size_t capacity_ = 0;
};

constexpr int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}
constexpr int64_t pieces(int64_t n, int64_t piece) {
    return (n + piece - 1) / piece;
}

const std::byte* element_at(const void* data, DType dtype, int64_t index) {
    return static_cast<const std::byte*>(data) + index * dtype_size(dtype);
}

const Product& product_of(const Table& leaves, Compute compute) {
    return compute == Compute::bf16 ? leaves.bf16 : leaves.f32;
}

// ---- products ----

constexpr int64_t k_block =
    1024;  // depth of a packed panel: 64 columns of it stay in the second-level cache
constexpr int64_t most_rows = 1024;              // rows of x that are packed at once, and
constexpr int64_t most_packed_bytes = 16 << 20;  // their size
constexpr int64_t row_padding =
    64;  // bytes between packed rows, lest all rows fall into the same cache set

/// Packed rows of x. Few rows lie whole, one after the other; many are cut into blocks of k, so
/// that the rows of a tile are neighbours.
struct PackedRows {
    std::byte* data;
    int64_t row_stride;    ///< elements
    int64_t block_stride;  ///< elements from one block of k to the next
};

/// One call of `linear`, while it works on `rows` rows from `x` on.
struct LinearBlock {
    const Product& product;
    const Matrix& w;
    const Epilogue& epilogue;
    const Table& leaves;
    PackedRows packed;
    int64_t rows;
    const float* residual;
    float* out;
    int64_t out_stride;
};

PackedRows pack_x(const Product& product, const float* x, int64_t rows, int64_t x_stride, int64_t k,
                  bool whole, Scratch& scratch) {
    const int64_t depth = round_up(std::min(k, whole ? k : k_block), product.k_group);
    const int64_t padded = depth + row_padding / product.element_size;
    PackedRows packed{};
    packed.row_stride = padded;
    packed.block_stride = whole ? k_block : rows * padded;
    const int64_t blocks = whole ? 1 : pieces(k, k_block);
    packed.data = scratch.get<std::byte>(blocks * rows * padded * product.element_size);
    for_each_row(rows, k, [&](int64_t r) {
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t start = b * k_block;
            std::byte* to =
                packed.data + (b * packed.block_stride + r * padded) * product.element_size;
            product.pack_row(x + r * x_stride + start, whole ? k : std::min(k - start, k_block),
                             to);
        }
    });
    return packed;
}

/// c (row_count, columns) = rows [row, row + row_count) of x times rows [column, column + columns)
/// of w.
void multiply_panel(const LinearBlock& block, int64_t row, int64_t row_count, int64_t column,
                    int64_t columns, float* c) {
    const Product& product = block.product;
    const int64_t k = block.w.cols;
    const int64_t c_stride = product.panel_width;
    const std::byte* x = block.packed.data + row * block.packed.row_stride * product.element_size;
    if (row_count <= product.few_rows_max && columns == product.panel_width) {
        product.few_rows(row_count, k, x, block.packed.row_stride,
                         element_at(block.w.data, block.w.dtype, column * block.w.stride),
                         block.w.dtype, block.w.stride, c, c_stride);
        return;
    }
    thread_local Scratch panel_scratch;
    const int64_t panel_size =
        round_up(columns, product.lanes) * round_up(std::min(k, k_block), product.k_group);
    auto* panel = panel_scratch.get<std::byte>(panel_size * product.element_size);
    for (int64_t start = 0; start == 0 || start < k; start += k_block) {
        const int64_t depth = std::min(k - start, k_block);
        product.pack_rows(element_at(block.w.data, block.w.dtype, column * block.w.stride + start),
                          block.w.dtype, block.w.stride, columns, depth, panel);
        const std::byte* x_block =
            x + start / k_block * block.packed.block_stride * product.element_size;
        for (int64_t r = 0; r < row_count; r += product.tile_rows) {
            product.tile(std::min(row_count - r, product.tile_rows), columns, depth,
                         x_block + r * block.packed.row_stride * product.element_size,
                         block.packed.row_stride, panel, c + r * c_stride, c_stride, start > 0);
        }
    }
}

void finish_rows(const LinearBlock& block, int64_t row, int64_t row_count, int64_t column,
                 int64_t columns, const float* c) {
    const float* bias = block.epilogue.bias != nullptr ? block.epilogue.bias + column : nullptr;
    for (int64_t r = 0; r < row_count; ++r) {
        const int64_t at = (row + r) * block.out_stride + column;
        const float* residual = block.residual != nullptr ? block.residual + at : nullptr;
        block.leaves.epilogue(c + r * block.product.panel_width, bias, block.epilogue.activation,
                              block.epilogue.scale, residual, block.out + at, columns);
    }
}

void multiply_block(const LinearBlock& block) {
    const int64_t width = block.product.panel_width;
    const int64_t panels = pieces(block.w.rows, width);
    // Few panels and many threads: the rows are cut as well.
    const int64_t wanted = std::max<int64_t>(1, 4 * threads() / panels);
    const int64_t piece = std::max(pieces(block.rows, wanted), 8 * block.product.tile_rows);
    const int64_t row_pieces = pieces(block.rows, piece);
    const bool serial = block.rows * block.w.rows * block.w.cols / 16 < worth_threads;
    for_each_item(panels * row_pieces, serial, [&](int64_t item) {
        const int64_t column = item / row_pieces * width;
        const int64_t columns = std::min(width, block.w.rows - column);
        const int64_t row = item % row_pieces * piece;
        const int64_t row_count = std::min(piece, block.rows - row);
        thread_local Scratch c_scratch;
        auto* c = c_scratch.get<float>(row_count * width);
        multiply_panel(block, row, row_count, column, columns, c);
        finish_rows(block, row, row_count, column, columns, c);
    });
}

// ---- attention ----

/// Keys are taken in chunks that begin at multiples of this, whatever the queries: a constant of
/// the algorithm, since the result is a merge of one softmax per chunk.
constexpr int64_t chunk_keys = 256;
constexpr int64_t block_rows =
    192;  // about as many rows (queries x heads of the group) share the packing of a chunk

/// The ranges that one query sees, of which those in [begin, end) matter.
struct SeenRanges {
    const KeyRange* ranges;
    int64_t count;
};

SeenRanges ranges_of(const Attention& args, const KeyRange& all, int64_t query) {
    if (args.visible.first == nullptr) return {&all, 1};
    const int64_t first = args.visible.first[query];
    return {args.visible.ranges + first, args.visible.first[query + 1] - first};
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

/// The memory of one item. `width` is head_dim rounded up to whole vectors.
struct AttentionScratch {
    Scratch q, key_panels, value_panels, scores, probabilities, part, sum, max_and_sum;
};

/// A block of queries of one key head, and its state of the online softmax. Row r is query
/// first_query + r / group, head kv_head * group + r % group.
struct QueryBlock {
    const Attention& args;
    const Table& leaves;
    const Product& product;
    int64_t kv_head, first_query, rows;
    int64_t group;  ///< query heads of one key head
    int64_t width;  ///< head_dim rounded up to whole vectors
    std::byte* q;   ///< (rows, head_dim) packed, rows q_stride elements apart
    int64_t q_stride;
    float* out;  ///< (rows, width): sum over the keys so far of exp(logit - max) v
    float* max;  ///< (rows)
    float* sum;  ///< (rows): sum over the keys so far of exp(logit - max)
};

/// Packed keys and values of one chunk.
struct Chunk {
    int64_t first, count;
    const std::byte* keys;    ///< panels of keys
    const std::byte* values;  ///< panels of columns of v
};

int64_t query_of(const QueryBlock& block, int64_t row) {
    return block.first_query + row / block.group;
}

bool any_row_sees(const QueryBlock& block, int64_t row, int64_t rows, const KeyRange& keys) {
    const KeyRange all{0, block.args.keys};
    for (int64_t query = query_of(block, row); query <= query_of(block, row + rows - 1); ++query) {
        if (within(ranges_of(block.args, all, query), keys.begin, keys.end).count > 0) return true;
    }
    return false;
}

/// Panels of `columns` columns and depth k lie this many elements apart, but for the last.
int64_t panel_elements(const Product& product, int64_t k) {
    return product.panel_width * round_up(k, product.k_group);
}

Chunk pack_chunk(const QueryBlock& block, int64_t first, int64_t count, AttentionScratch& scratch) {
    const Attention& args = block.args;
    const Product& product = block.product;
    const int64_t key_panel = panel_elements(product, args.head_dim);
    const int64_t value_panel = panel_elements(product, chunk_keys);
    auto* keys = scratch.key_panels.get<std::byte>(pieces(chunk_keys, product.panel_width) *
                                                   key_panel * product.element_size);
    auto* values = scratch.value_panels.get<std::byte>(pieces(args.head_dim, product.panel_width) *
                                                       value_panel * product.element_size);
    const int64_t start = first * args.kv_stride + block.kv_head * args.head_dim;
    for (int64_t j = 0; j < count; j += product.panel_width) {
        product.pack_rows(element_at(args.k, args.kv_dtype, start + j * args.kv_stride),
                          args.kv_dtype, args.kv_stride, std::min(product.panel_width, count - j),
                          args.head_dim,
                          keys + j / product.panel_width * key_panel * product.element_size);
    }
    for (int64_t d = 0; d < args.head_dim; d += product.panel_width) {
        product.pack_columns(element_at(args.v, args.kv_dtype, start + d), args.kv_dtype,
                             args.kv_stride, count,
                             std::min(product.panel_width, args.head_dim - d),
                             values + d / product.panel_width * value_panel * product.element_size);
    }
    return {first, count, keys, values};
}

/// Adds one chunk to the state of one row: o, the row's part of exp(logit - part.max) v, is brought
/// to the common maximum. A chunk that the row does not see leaves it as it is, to the bit.
void merge_part(const QueryBlock& block, int64_t row, SoftmaxPart part, const float* o) {
    if (part.max == -std::numeric_limits<float>::infinity() && part.sum == 0.0f) return;
    const float max = std::max(block.max[row], part.max);
    const float old_factor = std::exp(block.max[row] - max);
    const float part_factor = std::exp(part.max - max);
    block.sum[row] = block.sum[row] * old_factor + part.sum * part_factor;
    block.max[row] = max;
    block.leaves.blend(block.out + row * block.width, old_factor, o, part_factor, block.width);
}

/// A tile of rows against a chunk: logits, softmax, values, merge.
void attend_tile(const QueryBlock& block, const Chunk& chunk, int64_t row, int64_t rows,
                 AttentionScratch& scratch) {
    const Attention& args = block.args;
    const Product& product = block.product;
    const int64_t p_stride = chunk_keys + row_padding / product.element_size;
    auto* scores = scratch.scores.get<float>(product.tile_rows * chunk_keys);
    auto* probabilities =
        scratch.probabilities.get<std::byte>(product.tile_rows * p_stride * product.element_size);
    auto* part = scratch.part.get<float>(product.tile_rows * block.width);

    for (int64_t j = 0; j < chunk.count; j += product.panel_width) {
        const int64_t at = j / product.panel_width * panel_elements(product, args.head_dim);
        product.tile(rows, std::min(product.panel_width, chunk.count - j), args.head_dim,
                     block.q + row * block.q_stride * product.element_size, block.q_stride,
                     chunk.keys + at * product.element_size, scores + j, chunk_keys, false);
    }
    SoftmaxPart softmax[most_tile_rows];
    const KeyRange all{0, args.keys};
    for (int64_t r = 0; r < rows; ++r) {
        const SeenRanges seen = within(ranges_of(args, all, query_of(block, row + r)), chunk.first,
                                       chunk.first + chunk.count);
        const float* bias = args.key_bias != nullptr ? args.key_bias + chunk.first : nullptr;
        float* row_scores = scores + r * chunk_keys;
        softmax[r] = block.leaves.softmax_part(
            {row_scores, chunk.count, chunk.first, args.scale, bias, seen.ranges, seen.count});
        product.pack_row(row_scores, chunk.count,
                         probabilities + r * p_stride * product.element_size);
    }
    for (int64_t d = 0; d < args.head_dim; d += product.panel_width) {
        const int64_t at = d / product.panel_width * panel_elements(product, chunk_keys);
        product.tile(rows, std::min(product.panel_width, args.head_dim - d), chunk.count,
                     probabilities, p_stride, chunk.values + at * product.element_size, part + d,
                     block.width, false);
    }
    for (int64_t r = 0; r < rows; ++r)
        merge_part(block, row + r, softmax[r], part + r * block.width);
}

/// out = sum / weight of the whole softmax, or 0 for a query that saw nothing.
void finish_block(const QueryBlock& block) {
    const Attention& args = block.args;
    for (int64_t r = 0; r < block.rows; ++r) {
        float* row = block.out + r * block.width;
        block.leaves.scale(row, block.sum[r] == 0.0f ? 0.0f : 1.0f / block.sum[r], args.head_dim);
        const int64_t head = block.kv_head * block.group + r % block.group;
        std::memcpy(args.out + query_of(block, r) * args.out_stride + head * args.head_dim, row,
                    static_cast<size_t>(args.head_dim) * sizeof(float));
    }
}

/// One item: all keys, chunk by chunk, for a block of queries and the heads of one key head.
void attend_block(const Attention& args, const Table& leaves, const Product& product,
                  int64_t kv_head, int64_t first_query, int64_t queries) {
    thread_local AttentionScratch scratch;
    const int64_t group = args.heads / args.kv_heads;
    const int64_t rows = queries * group;
    const int64_t width = round_up(args.head_dim, product.lanes);
    const int64_t q_stride = round_up(args.head_dim, product.k_group);
    auto* max = scratch.max_and_sum.get<float>(2 * rows);
    QueryBlock block{args,
                     leaves,
                     product,
                     kv_head,
                     first_query,
                     rows,
                     group,
                     width,
                     scratch.q.get<std::byte>(rows * q_stride * product.element_size),
                     q_stride,
                     scratch.sum.get<float>(rows * width),
                     max,
                     max + rows};
    std::fill_n(block.out, rows * width, 0.0f);
    std::fill_n(block.max, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(block.sum, rows, 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t head = kv_head * group + r % group;
        product.pack_row(args.q + query_of(block, r) * args.q_stride + head * args.head_dim,
                         args.head_dim, block.q + r * q_stride * product.element_size);
    }
    for (int64_t first = 0; first < args.keys; first += chunk_keys) {
        const KeyRange keys{first, std::min(first + chunk_keys, args.keys)};
        if (!any_row_sees(block, 0, rows, keys)) continue;
        const Chunk chunk = pack_chunk(block, first, keys.end - first, scratch);
        for (int64_t r = 0; r < rows; r += product.tile_rows) {
            const int64_t count = std::min(product.tile_rows, rows - r);
            if (any_row_sees(block, r, count, keys)) attend_tile(block, chunk, r, count, scratch);
        }
    }
    finish_block(block);
}

}  // namespace

void linear(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
            const Epilogue& epilogue, Compute compute, float* out, int64_t out_stride) {
    if (rows <= 0 || w.rows <= 0) return;
    const Table& leaves = table();
    const Product& product = product_of(leaves, compute);
    const int64_t row_bytes = std::max<int64_t>(1, w.cols * product.element_size);
    const int64_t block = std::clamp<int64_t>(most_packed_bytes / row_bytes, 96, most_rows);
    thread_local Scratch scratch;
    for (int64_t r = 0; r < rows; r += block) {
        const int64_t count = std::min(block, rows - r);
        const bool whole = count <= product.few_rows_max;
        const PackedRows packed =
            pack_x(product, x + r * x_stride, count, x_stride, w.cols, whole, scratch);
        const float* residual =
            epilogue.residual != nullptr ? epilogue.residual + r * out_stride : nullptr;
        multiply_block({product, w, epilogue, leaves, packed, count, residual, out + r * out_stride,
                        out_stride});
    }
}

void attention(const Attention& args, Compute compute) {
    if (args.queries <= 0 || args.heads <= 0 || args.head_dim <= 0) return;
    const Table& leaves = table();
    const Product& product = product_of(leaves, compute);
    const int64_t group = args.heads / args.kv_heads;
    // Blocks of about block_rows rows, smaller where there are not enough of them for all threads.
    const int64_t share = pieces(args.queries * args.kv_heads, 2 * int64_t{threads()});
    const int64_t block = std::clamp<int64_t>(std::min(block_rows / group, share), 1, args.queries);
    const int64_t blocks = pieces(args.queries, block);
    const bool serial = args.queries * args.keys * args.heads * args.head_dim / 16 < worth_threads;
    for_each_item(args.kv_heads * blocks, serial, [&](int64_t item) {
        const int64_t first = item % blocks * block;
        attend_block(args, leaves, product, item / blocks, first,
                     std::min(block, args.queries - first));
    });
}

void attention_weights(const Attention& args, float* weights) {
    const int64_t group = args.kv_heads > 0 ? args.heads / args.kv_heads : 1;
    const bool serial = args.queries * args.keys * args.heads * args.head_dim < worth_threads;
    for_each_item(args.heads, serial, [&](int64_t head) {
        Attention one = args;
        one.heads = 1;
        one.kv_heads = 1;
        one.q = args.q + head * args.head_dim;
        one.k = element_at(args.k, args.kv_dtype, head / group * args.head_dim);
        reference::attention_weights(one, Compute::f32, weights + head * args.queries * args.keys);
    });
}

void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, float* out) {
    const Table& leaves = table();
    for_each_row(rows, width, [&](int64_t r) {
        leaves.rms_norm(x + r * width, width, weight, weight_dtype, eps, out + r * width);
    });
}

void layer_norm(const float* x, int64_t rows, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, float* out) {
    const Table& leaves = table();
    for_each_row(rows, width, [&](int64_t r) {
        leaves.layer_norm(x + r * width, width, weight, bias, weight_dtype, eps, out + r * width);
    });
}

void rope(float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t x_stride,
          const float* cos, const float* sin) {
    const Table& leaves = table();
    const int64_t half = head_dim / 2;
    for_each_row(rows, heads * head_dim, [&](int64_t r) {
        leaves.rope(x + r * x_stride, heads, head_dim, cos + r * half, sin + r * half);
    });
}

void gated(const float* gate, const float* up, int64_t rows, int64_t width, int64_t in_stride,
           Activation activation, float* out, int64_t out_stride) {
    const Table& leaves = table();
    for_each_row(rows, width, [&](int64_t r) {
        leaves.gated(gate + r * in_stride, up + r * in_stride, activation, out + r * out_stride,
                     width);
    });
}

namespace {
constexpr int64_t element_piece =
    16384;  // elements a thread takes at a time in the operations without rows
}

void activate(float* x, int64_t n, Activation activation) {
    const Table& leaves = table();
    for_each_piece(n, element_piece, n < worth_threads, [&](int64_t begin, int64_t end) {
        leaves.activate(x + begin, end - begin, activation);
    });
}

void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n) {
    const Table& leaves = table();
    for_each_piece(n, element_piece, n < worth_threads, [&](int64_t begin, int64_t end) {
        leaves.add_scaled(y + begin, element_at(x, x_dtype, begin), x_dtype, scale, end - begin);
    });
}

void scale_rows(float* x, int64_t rows, int64_t width, const float* factor) {
    const Table& leaves = table();
    for_each_row(rows, width, [&](int64_t r) { leaves.scale(x + r * width, factor[r], width); });
}

void embedding(const int64_t* ids, int64_t n, const void* table_data, DType table_dtype,
               int64_t width, float* out) {
    for_each_row(n, width, [&](int64_t i) {
        convert(element_at(table_data, table_dtype, ids[i] * width), table_dtype, out + i * width,
                DType::f32, width);
    });
}

void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n) {
    const Table& leaves = table();
    for_each_piece(n, element_piece, n < worth_threads, [&](int64_t begin, int64_t end) {
        const std::byte* source = element_at(from, from_dtype, begin);
        std::byte* target = static_cast<std::byte*>(to) + begin * dtype_size(to_dtype);
        if (from_dtype == to_dtype) {
            std::memcpy(target, source, static_cast<size_t>((end - begin) * dtype_size(to_dtype)));
        } else {
            leaves.convert(source, from_dtype, target, to_dtype, end - begin);
        }
    });
}

void set_threads(int count) {
    thread_count.store(std::max(1, count));
}

int threads() {
    int count = thread_count.load(std::memory_order_relaxed);
    if (count == 0) {
        count = usable_processors();
        thread_count.store(count);
    }
    return count;
}

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
    for_each_item(n, false, body);
}

}  // namespace mllama::cpu
