// Attention of a few queries, as a decoder computes it for each token: every key and value is read
// once, and that takes the time ("Flash-Decoding", Dao et al. 2023). A block of threads takes a piece
// of the keys of one key head, for all the query heads that use it; a warp takes 32 keys. Tensor
// cores do the sums because they need no more than the units as they are loaded. Several sequences
// that are decoded together are one launch: their pieces stand in a row.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma.h"
#include "kernels/rounding.h"

namespace mllama::cuda {
namespace {

constexpr int warps = 4;
constexpr unsigned threads = warps * warp_size;
constexpr int warp_keys = 32;
constexpr int tile_rows = 16;
constexpr int piece_blocks = Partials::piece_keys / KvLayout::block;
static_assert(Partials::piece_keys == warps * warp_keys);
static_assert(piece_blocks * tile_rows == warp_size);

/// What a block of threads computes: row r is query (first_row + r) / group, and of the heads
/// that use kv_head the one (first_row + r) % group.
struct Work {
    Sequence sequence;
    int64_t piece;  ///< its first key
    int64_t kv_head;
    unsigned group;  ///< query heads of a key head
    unsigned first_row;
    int rows;
};

__device__ Work work_of(const Attention& args, unsigned piece) {
    Work work{};
    work.sequence = sequence_of(args);
    work.piece = piece * Partials::piece_keys;
    work.kv_head = blockIdx.y;
    work.group = static_cast<unsigned>(args.heads) / static_cast<unsigned>(args.kv_heads);
    work.first_row = blockIdx.z * tile_rows;
    work.rows =
        static_cast<int>(std::min<int64_t>(tile_rows, args.queries * work.group - work.first_row));
    return work;
}

__device__ int64_t query_of(const Work& work, int row) {
    return (work.first_row + static_cast<unsigned>(row)) / work.group;
}
__device__ int64_t head_of(const Work& work, int row) {
    return work.kv_head * work.group + (work.first_row + static_cast<unsigned>(row)) % work.group;
}
/// Where the partial results of a row stand.
__device__ int64_t place_of(const Attention& args, const Work& work, const Partials& partials,
                            int row) {
    return (query_of(work, row) * args.heads + head_of(work, row)) * partials.pieces +
           work.piece / Partials::piece_keys;
}

/// Which keys of the piece each row sees, in shared memory. False: none.
__device__ bool find_seen(const Attention& args, const Work& work,
                          uint64_t (&seen)[tile_rows][piece_blocks]) {
    __shared__ bool any;
    if (threadIdx.x < warp_size) {
        const int row = static_cast<int>(threadIdx.x) / piece_blocks;
        const int block = static_cast<int>(threadIdx.x) % piece_blocks;
        const int64_t begin = work.piece + block * KvLayout::block;
        const uint64_t bits =
            row < work.rows ? seen_bits(args, work.sequence, query_of(work, row), 0, begin) : 0;
        seen[row][block] = bits;
        const float found = warp_max(bits != 0 ? 1.0f : 0.0f);
        if (threadIdx.x == 0) any = found > 0.0f;
    }
    __syncthreads();
    return any;
}

/// A row of q; none where there is no such row.
__device__ const float* query_row(const Attention& args, const Work& work, int row) {
    if (row >= work.rows) return nullptr;
    return args.q + query_of(work, row) * args.q_stride + head_of(work, row) * args.head_dim;
}

/// Four numbers of a row of q from d on, or zeros.
__device__ void load_query(const float* row, int64_t d, int64_t head_dim, float (&to)[4]) {
    const bool there = row != nullptr && d < head_dim;
    for (int i = 0; i < 4; ++i) to[i] = there ? row[d + i] : 0.0f;
}

/// The warp's keys, of which a lane has a patch for every 16 dimensions.
template <DType dtype, int columns>
struct Keys {
    Patch<dtype> patches[columns / 16];
};

/// The keys from `begin` on.
template <DType dtype, int columns>
__device__ void load_keys(const Attention& args, const Work& work, int64_t begin,
                          Keys<dtype, columns>& keys) {
    const Lane lane = this_lane();
    const KvLayout layout{args.kv_heads, args.head_dim, dtype};
    constexpr int unit = static_cast<int>(KvLayout::unit_bytes / dtype_size(dtype));
    const auto* from = reinterpret_cast<const uint32_t*>(static_cast<const char*>(args.k) +
                                                         layout.key_block(work.kv_head, begin)) +
                       begin % KvLayout::block + 4 * lane.group;
    for (int step = 0; step < columns / 16; ++step) {
        const int d = 16 * step + 4 * lane.quad;
        if (d < args.head_dim) {
            keys.patches[step] =
                load_patch<dtype>(from + d / unit * KvLayout::block, KvLayout::block);
        }
    }
}

/// Scores of 16 rows and the warp's 32 keys.
template <DType dtype, int columns>
__device__ void multiply_keys(const Attention& args, const Work& work,
                              const Keys<dtype, columns>& keys, float (&scores)[4][4]) {
    const Lane lane = this_lane();
    const float* low = query_row(args, work, lane.group);
    const float* high = query_row(args, work, lane.group + 8);
    for (int step = 0; step < columns / 16; ++step) {
        const int d = 16 * step + 4 * lane.quad;
        float low_row[4], high_row[4];
        load_query(low, d, args.head_dim, low_row);
        load_query(high, d, args.head_dim, high_row);
        const QueryPart q = query_part(low_row, high_row);
        for (int n = 0; n < 4; ++n) {
            const Pair pair = bf16_of(keys.patches[step], n);
            mma_bf16(scores[n], q.at, {pair.low, pair.high});
        }
    }
}

/// Values of the warp's keys: of one half of a lane's 8 keys the patches of all columns.
template <DType dtype, int columns>
struct Values {
    Patch<dtype> patches[columns / 32];
};

template <DType dtype, int columns>
__device__ void load_values(const Attention& args, const Work& work, int64_t begin, int half,
                            Values<dtype, columns>& values) {
    const Lane lane = this_lane();
    const KvLayout layout{args.kv_heads, args.head_dim, dtype};
    constexpr int unit = static_cast<int>(KvLayout::unit_bytes / dtype_size(dtype));
    const int width = static_cast<int>(layout.part_width());
    const auto* block = reinterpret_cast<const uint32_t*>(static_cast<const char*>(args.v) +
                                                          layout.value_block(work.kv_head, begin));
    const int key = static_cast<int>(begin % KvLayout::block) + 8 * lane.quad + 4 * half;
    for (int part = 0; part < columns / 32; ++part) {
        const int d = 32 * part + 4 * lane.group;
        if (d >= args.head_dim) continue;
        const int row = d / width * static_cast<int>(layout.value_rows()) + key / unit;
        values.patches[part] = load_patch<dtype>(block + row * width + d % width, width);
    }
}

/// Of a unit of two bfloat16 the first `n`: what lies behind the last key is no number.
__device__ uint32_t mask_of(int64_t n) {
    return n >= 2 ? 0xFFFFFFFFu : n == 1 ? 0xFFFFu : 0u;
}

/// out (16 rows, columns) += p times the values.
template <DType dtype, int columns>
__device__ void multiply_values(const Work& work, int64_t begin, int half, const float (&p)[4][4],
                                const Values<dtype, columns>& values,
                                float (&out)[columns / 8][4]) {
    const Lane lane = this_lane();
    const int64_t there = work.sequence.keys - (begin + 8 * lane.quad + 4 * half);
    const uint32_t low_mask = mask_of(there);
    const uint32_t high_mask = mask_of(there - 2);
    const QueryPart a = probability_part(p, half);
    for (int part = 0; part < columns / 32; ++part) {
        for (int n = 0; n < 4; ++n) {
            const Pair pair = bf16_of(values.patches[part], n);
            mma_bf16(out[4 * part + n], a.at, {pair.low & low_mask, pair.high & high_mask});
        }
    }
}

/// Scores to logits in units of ln 2, -inf where a key is not seen.
template <DType dtype>
__device__ void make_logits(const Attention& args, const Work& work, int64_t begin,
                            const uint64_t (&seen)[tile_rows][piece_blocks],
                            float (&scores)[4][4]) {
    const Lane lane = this_lane();
    const float factor = args.scale * log2_e;
    const int64_t block = (begin - work.piece) / KvLayout::block;
    for (int n = 0; n < 4; ++n) {
        for (int i = 0; i < 4; ++i) {
            const int64_t key = begin + key_of(n, i);
            const uint64_t bits = seen[lane.group + i / 2 * 8][block];
            if ((bits >> (key % KvLayout::block) & 1) == 0) {
                scores[n][i] = minus_infinity;
                continue;
            }
            float scale = factor;
            if constexpr (dtype == DType::i8)
                scale *= args.k_scales[args.layout().scale_index(work.kv_head, key)];
            const float bias = args.key_bias != nullptr ? args.key_bias[key] * log2_e : 0.0f;
            scores[n][i] = scores[n][i] * scale + bias;
        }
    }
}

/// Logits to probabilities over all keys of the piece, but for the factor 1 / sum. max, sum: of each
/// warp and row, shared.
__device__ void make_probabilities(float (&p)[4][4], float (&max)[warps][tile_rows],
                                   float (&sum)[warps][tile_rows]) {
    const Lane lane = this_lane();
    for (int half = 0; half < 2; ++half) {
        float largest = minus_infinity;
        for (int n = 0; n < 4; ++n)
            largest = fmaxf(largest, fmaxf(p[n][2 * half], p[n][2 * half + 1]));
        largest = row_max(largest);
        if (lane.quad == 0) max[lane.warp][lane.group + 8 * half] = largest;
    }
    __syncthreads();
    for (int half = 0; half < 2; ++half) {
        const int row = lane.group + 8 * half;
        float largest = max[0][row];
        for (int w = 1; w < warps; ++w) largest = fmaxf(largest, max[w][row]);
        const float shift = shift_of(largest);
        float total = 0.0f;
        for (int n = 0; n < 4; ++n) {
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                p[n][i] = exp2_fast(p[n][i] - shift);
                total += p[n][i];
            }
        }
        total = row_sum(total);
        if (lane.quad == 0) sum[lane.warp][row] = total;
    }
}

/// int8: p times the scales of the values.
__device__ void scale_by_values(const Attention& args, const Work& work, int64_t begin,
                                float (&p)[4][4]) {
    for (int n = 0; n < 4; ++n) {
        for (int i = 0; i < 4; ++i) {
            const int64_t key = begin + key_of(n, i);
            p[n][i] *= key < work.sequence.keys
                           ? args.v_scales[args.layout().scale_index(work.kv_head, key)]
                           : 0.0f;
        }
    }
}

/// A row of the partial results of one warp in shared memory.
template <int columns>
using OutOfWarps = float (*)[tile_rows][columns];

template <int columns>
__device__ void keep_out(const float (&out)[columns / 8][4], OutOfWarps<columns> out_of_warps) {
    const Lane lane = this_lane();
    for (int tile = 0; tile < columns / 8; ++tile) {
        for (int i = 0; i < 4; ++i) {
            const int d = tile / 4 * 32 + key_of(tile % 4, i);
            out_of_warps[lane.warp][lane.group + i / 2 * 8][d] = out[tile][i];
        }
    }
}

/// The sums over the warps, to memory.
template <int columns>
__device__ void store_partials(const Attention& args, const Work& work, const Partials& partials,
                               const float (&max)[warps][tile_rows],
                               const float (&sum)[warps][tile_rows],
                               OutOfWarps<columns> out_of_warps) {
    for (int row = static_cast<int>(threadIdx.x); row < work.rows; row += threads) {
        float largest = max[0][row];
        float total = 0.0f;
        for (int w = 0; w < warps; ++w) {
            largest = fmaxf(largest, max[w][row]);
            total += sum[w][row];
        }
        const int64_t at = place_of(args, work, partials, row);
        partials.max[at] = largest;
        partials.sum[at] = total;
    }
    for (int row = static_cast<int>(threadIdx.x / warp_size); row < work.rows; row += warps) {
        float* to = partials.out + place_of(args, work, partials, row) * args.head_dim;
        for (int64_t d = threadIdx.x % warp_size; d < args.head_dim; d += warp_size) {
            float total = 0.0f;
            for (int w = 0; w < warps; ++w) total += out_of_warps[w][row][d];
            to[d] = total;
        }
    }
}

/// The partial results of a piece that no row sees.
__device__ void store_nothing(const Attention& args, const Work& work, const Partials& partials) {
    if (static_cast<int>(threadIdx.x) >= work.rows) return;
    const int64_t at = place_of(args, work, partials, static_cast<int>(threadIdx.x));
    partials.max[at] = minus_infinity;
    partials.sum[at] = 0.0f;
}

/// Blocks of a multiprocessor for which registers are given out: as many as need none elsewhere.
template <DType dtype, int columns>
constexpr int blocks() {
    if (dtype == DType::f32) return columns == 64 ? 4 : columns == 96 ? 3 : 2;
    if (dtype == DType::i8) return columns == 64 ? 6 : 4;
    return columns == 128 ? 3 : 4;
}

/// Grid: pieces of all calls, key heads, tiles of rows. `columns`: head_dim rounded up to a multiple of 32.
/// Shared: the sums of the warps (warps, tile_rows, columns).
template <DType dtype, int columns>
__global__ void __launch_bounds__(threads, blocks<dtype, columns>())
    decode_kernel(const __grid_constant__ DecodeCalls calls) {
    after_previous();
    const unsigned call = calls.mine();
    const Attention args = args_of(calls, call);
    const Partials& partials = calls.of[call].partials;
    __shared__ uint64_t seen[tile_rows][piece_blocks];
    __shared__ float max[warps][tile_rows];
    __shared__ float sum[warps][tile_rows];
    auto out_of_warps = reinterpret_cast<OutOfWarps<columns>>(dynamic_shared());
    const Work work = work_of(args, calls.block_of(call));
    if (work.piece >= work.sequence.keys) return;
    // Keys are on their way before it is known which are seen; values, which would take the registers of
    // a third block of threads (32,768 keys: a fifth slower on an H100), when keys have been used.
    const int64_t begin = work.piece + this_lane().warp * warp_keys;
    const bool there = begin < work.sequence.keys;
    Keys<dtype, columns> keys{};
    if (there) load_keys(args, work, begin, keys);
    if (!find_seen(args, work, seen)) {
        store_nothing(args, work, partials);
        return;
    }
    // Values of four-byte elements do not fit into registers beside the keys, nor all at a time.
    constexpr bool early = dtype != DType::f32;
    Values<dtype, columns> values[2] = {};
    float p[4][4] = {};
    if (there) multiply_keys(args, work, keys, p);
    for (int half = 0; early && there && half < 2; ++half)
        load_values(args, work, begin, half, values[half]);
    make_logits<dtype>(args, work, begin, seen, p);
    make_probabilities(p, max, sum);
    if constexpr (dtype == DType::i8) scale_by_values(args, work, begin, p);
    float out[columns / 8][4] = {};
    for (int half = 0; there && half < 2; ++half) {
        if (!early) load_values(args, work, begin, half, values[half]);
        multiply_values(work, begin, half, p, values[half], out);
    }
    keep_out<columns>(out, out_of_warps);
    __syncthreads();
    store_partials<columns>(args, work, partials, max, sum, out_of_warps);
}

using DecodeKernel = void (*)(DecodeCalls);

template <int columns>
DecodeKernel kernel_of(DType dtype) {
    switch (dtype) {
        case DType::bf16:
            return decode_kernel<DType::bf16, columns>;
        case DType::f16:
            return decode_kernel<DType::f16, columns>;
        case DType::i8:
            return decode_kernel<DType::i8, columns>;
        default:
            return decode_kernel<DType::f32, columns>;
    }
}

template <int columns>
void decode(const DecodeCalls& calls) {
    const Attention& args = calls.of[0].args;
    const int64_t rows = args.queries * (args.heads / args.kv_heads);
    const dim3 grid(calls.blocks, static_cast<unsigned>(args.kv_heads),
                    static_cast<unsigned>(pieces(rows, tile_rows)));
    launch("attention_decode", kernel_of<columns>(args.kv_dtype), grid, threads,
           int64_t{warps} * tile_rows * columns * static_cast<int64_t>(sizeof(float)), calls);
}

}  // namespace

bool decode_takes(const Attention& args) {
    return args.head_dim % 8 == 0 && args.head_dim <= 128 && aligned_blocks(args);
}

void attention_decode(const DecodeCalls& calls) {
    const int64_t head_dim = calls.of[0].args.head_dim;
    if (head_dim <= 64) {
        decode<64>(calls);
    } else if (head_dim <= 96) {
        decode<96>(calls);
    } else {
        decode<128>(calls);
    }
}

}  // namespace mllama::cuda
