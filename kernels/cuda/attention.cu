// Attention: which kernel computes a call and which calls share a launch, the plain kernel that takes
// any, and what brings partial results together.
#include <algorithm>
#include <span>

#include "kernels/cuda.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/workspace.h"
#include "kernels/rounding.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 128;
constexpr int64_t block_keys = KvLayout::block;
constexpr unsigned halves = threads / block_keys;

/// A factor of products.
__device__ float rounded(float x, Compute compute) {
    return compute == Compute::f32 ? x : bf16_to_f32(f32_to_bf16(x));
}

/// Element i of keys or values as attention multiplies it, without its scale.
template <DType dtype>
__device__ float kv_element(const void* data, int64_t i, Compute compute) {
    if constexpr (dtype == DType::i8) {
        return static_cast<const int8_t*>(data)[i];
    } else {
        return rounded(float_element(data, dtype, i), compute);
    }
}

/// What a block computes: one query and head, over some keys.
struct Row {
    int64_t query, head, kv_head;
    const float* q;  ///< (head_dim) shared, rounded
};

__device__ Row row_of(const Attention& args, int64_t i, float* q, Compute compute) {
    const int64_t query = i / args.heads;
    const int64_t head = i % args.heads;
    const float* from = args.q + query * args.q_stride + head * args.head_dim;
    for (int64_t d = threadIdx.x; d < args.head_dim; d += threads) q[d] = rounded(from[d], compute);
    __syncthreads();
    return {query, head, head / (args.heads / args.kv_heads), q};
}

/// The sum of products of q and one key, over every `step`th unit.
template <DType dtype>
__device__ float key_product(const Attention& args, const Row& row, int64_t key, Compute compute,
                             int64_t first_unit, int64_t step) {
    const KvLayout layout{args.kv_heads, args.head_dim, dtype};
    const int64_t unit = layout.unit();
    float sum = 0.0f;
    for (int64_t u = first_unit; u < layout.key_rows(); u += step) {
        const int64_t at = layout.key_index(row.kv_head, key, u * unit);
        const int64_t elements = std::min(unit, args.head_dim - u * unit);
        for (int64_t e = 0; e < elements; ++e)
            sum += row.q[u * unit + e] * kv_element<dtype>(args.k, at + e, compute);
    }
    return sum;
}

/// The logit of a seen key, in units of ln 2.
__device__ float logit_of(const Attention& args, const Row& row, int64_t key, float product) {
    if (args.k_scales != nullptr)
        product *= args.k_scales[args.layout().scale_index(row.kv_head, key)];
    float logit = args.scale * log2_e * product;
    if (args.key_bias != nullptr) logit += args.key_bias[key] * log2_e;
    return logit;
}

/// logits (64) of the keys of a block, -inf where they are not seen.
template <DType dtype>
__device__ void block_logits(const Attention& args, const Sequence& sequence, const Row& row,
                             int64_t range, int64_t begin, Compute compute, float* logits) {
    __shared__ float products[halves][block_keys];
    const unsigned j = threadIdx.x % block_keys;
    const unsigned half = threadIdx.x / static_cast<unsigned>(block_keys);
    const int64_t key = begin + j;
    const bool seen = (seen_bits(args, sequence, row.query, range, begin) >> j & 1) != 0;
    if (seen) products[half][j] = key_product<dtype>(args, row, key, compute, half, halves);
    __syncthreads();
    if (half == 0) {
        float sum = 0.0f;
        for (unsigned i = 0; seen && i < halves; ++i) sum += products[i][j];
        logits[j] = seen ? logit_of(args, row, key, sum) : minus_infinity;
    }
    __syncthreads();
}

/// out (head_dim) = correction * out + the sum over `keys` keys of p times their values.
template <DType dtype>
__device__ void add_values(const Attention& args, const Row& row, int64_t begin, int64_t keys,
                           const float* p, float correction, Compute compute, float* out) {
    const KvLayout layout{args.kv_heads, args.head_dim, dtype};
    for (int64_t d = threadIdx.x; d < args.head_dim; d += threads) {
        float sum = 0.0f;
        for (int64_t j = 0; j < keys; ++j) {
            const int64_t at = layout.value_index(row.kv_head, begin + j, d);
            sum += p[j] * kv_element<dtype>(args.v, at, compute);
        }
        out[d] = out[d] * correction + sum;
    }
}

/// The state of the online softmax (Milakov & Gimelshein 2018), the same in every thread.
struct Softmax {
    float max = minus_infinity;
    float sum = 0.0f;
};

/// Takes in the logits of a block: p (64) = 2^(x - max); returns what the sums so far are to be
/// multiplied by.
__device__ float take_in(Softmax& softmax, const float* logits, float* p) {
    const unsigned lane = threadIdx.x % warp_size;
    const float low = logits[lane];
    const float high = logits[lane + warp_size];
    const float max = fmaxf(softmax.max, warp_max(fmaxf(low, high)));
    const float shift = shift_of(max);
    const float correction = exp2f(softmax.max - shift);
    const float p_low = exp2f(low - shift);
    const float p_high = exp2f(high - shift);
    softmax = {max, softmax.sum * correction + warp_sum(p_low + p_high)};
    if (threadIdx.x < warp_size) {
        p[lane] = p_low;
        p[lane + warp_size] = p_high;
    }
    return correction;
}

/// p times the scales of the values, if they have any.
__device__ void scale_by_values(const Attention& args, const Row& row, int64_t begin, int64_t keys,
                                float* p) {
    if (args.v_scales == nullptr) return;
    const unsigned j = threadIdx.x;
    if (j < keys) p[j] *= args.v_scales[args.layout().scale_index(row.kv_head, begin + j)];
    __syncthreads();
}

/// Where a row's result goes: `out`, or if there are pieces the partial results.
__device__ void store_row(const Attention& args, const Row& row, const Softmax& softmax,
                          const float* out, const Partials& partials) {
    Floats to = args.out.from(row.query * args.out_stride + row.head * args.head_dim);
    float factor = softmax.sum == 0.0f ? 0.0f : 1.0f / softmax.sum;
    if (partials.pieces > 0) {
        const int64_t at = (row.query * args.heads + row.head) * partials.pieces + blockIdx.y;
        to = partials.out + at * args.head_dim;
        factor = 1.0f;
        if (threadIdx.x == 0) {
            partials.max[at] = softmax.max;
            partials.sum[at] = softmax.sum;
        }
    }
    for (int64_t d = threadIdx.x; d < args.head_dim; d += threads)
        store_float(to, d, out[d] * factor);
}

/// What a row takes in shared memory.
__host__ __device__ constexpr int64_t row_floats(int64_t head_dim) {
    return round_up(head_dim, 4);
}

/// A block for each query and head, and each piece of the keys if there are any.
/// Shared: q (head_dim), out (head_dim), each in whole vectors: q is read by vectors while out is written.
template <DType dtype>
__global__ void plain_kernel(Attention args, Compute compute, Partials partials) {
    after_previous();
    __shared__ float logits[block_keys];
    __shared__ float p[block_keys];
    const Sequence sequence = sequence_of(args);
    const bool whole = partials.pieces == 0;
    const int64_t piece = blockIdx.y * Partials::piece_keys;
    if (!whole && piece >= sequence.keys) return;
    const int64_t end =
        whole ? sequence.keys : std::min(piece + Partials::piece_keys, sequence.keys);
    auto* q = reinterpret_cast<float*>(dynamic_shared());
    float* out = q + row_floats(args.head_dim);
    const Row row = row_of(args, blockIdx.x, q, compute);
    for (int64_t d = threadIdx.x; d < args.head_dim; d += threads) out[d] = 0.0f;

    Softmax softmax;
    int64_t range = 0;
    for (int64_t begin = piece; begin < end; begin += block_keys) {
        range = skip_ranges(args, sequence, row.query, range, begin);
        if (range == seen_ranges(args, sequence, row.query)) break;
        const int64_t first = seen_range(args, sequence, row.query, range).begin;
        begin = std::max(begin, first / block_keys * block_keys);
        if (begin >= end) break;
        const int64_t keys = std::min(int64_t{block_keys}, sequence.keys - begin);
        block_logits<dtype>(args, sequence, row, range, begin, compute, logits);
        const float correction = take_in(softmax, logits, p);
        __syncthreads();
        scale_by_values(args, row, begin, keys, p);
        add_values<dtype>(args, row, begin, keys, p, correction, compute, out);
    }
    store_row(args, row, softmax, out, partials);
}

// ---- bringing partial results together ----

constexpr unsigned merge_threads = 256;
constexpr unsigned merge_warps = merge_threads / warp_size;
constexpr unsigned merge_columns = 4;  ///< of a lane

/// Sums over every eighth piece of the columns of this lane, and of the sums of the softmax.
struct Merged {
    float out[merge_columns];
    float sum;
};

__device__ Merged merge_pieces(const Partials& partials, int64_t row, int64_t pieces, float max,
                               int64_t column, int64_t head_dim) {
    Merged merged{};
    const float shift = shift_of(max);
    for (int64_t i = threadIdx.x / warp_size; i < pieces; i += merge_warps) {
        const int64_t at = row * partials.pieces + i;
        const float sum = partials.sum[at];
        if (sum == 0.0f) continue;  // no key of it is seen, nothing is written
        const float factor = exp2f(partials.max[at] - shift);
        merged.sum += factor * sum;
        const float* out = partials.out + at * head_dim;
        float of_piece[merge_columns];
        for (unsigned c = 0; c < merge_columns; ++c) {
            const int64_t d = column + c * warp_size;
            of_piece[c] = d < head_dim ? out[d] : 0.0f;
        }
        for (unsigned c = 0; c < merge_columns; ++c) merged.out[c] += factor * of_piece[c];
    }
    return merged;
}

/// The largest of n logits, in every thread.
__device__ float largest_of(const float* logits, int64_t n) {
    float largest = minus_infinity;
    for (int64_t i = threadIdx.x; i < n; i += merge_threads) largest = fmaxf(largest, logits[i]);
    return block_max(largest);
}

/// Grid: queries and heads, calls.
__global__ void merge_kernel(const __grid_constant__ DecodeCalls calls) {
    after_previous();
    const Attention args = args_of(calls, blockIdx.y);
    const Partials partials = calls.of[blockIdx.y].partials;
    __shared__ float out_of_warp[merge_warps][merge_columns * warp_size];
    __shared__ float sum_of_warp[merge_warps];
    const int64_t row = blockIdx.x;
    const int64_t count = pieces(sequence_of(args).keys, Partials::piece_keys);
    const float max = largest_of(partials.max + row * partials.pieces, count);
    const unsigned warp = threadIdx.x / warp_size;
    const unsigned lane = threadIdx.x % warp_size;
    const Floats to =
        args.out.from(row / args.heads * args.out_stride + row % args.heads * args.head_dim);
    for (int64_t first = 0; first < args.head_dim; first += merge_columns * warp_size) {
        const Merged mine = merge_pieces(partials, row, count, max, first + lane, args.head_dim);
        __syncthreads();  // the last columns have been read
        for (unsigned c = 0; c < merge_columns; ++c)
            out_of_warp[warp][c * warp_size + lane] = mine.out[c];
        if (lane == 0) sum_of_warp[warp] = mine.sum;
        __syncthreads();
        const int64_t d = first + threadIdx.x;
        if (threadIdx.x >= merge_columns * warp_size || d >= args.head_dim) continue;
        float out = 0.0f;
        float sum = 0.0f;
        for (unsigned w = 0; w < merge_warps; ++w) {
            out += out_of_warp[w][threadIdx.x];
            sum += sum_of_warp[w];
        }
        store_float(to, d, sum == 0.0f ? 0.0f : out / sum);
    }
}

// ---- probabilities ----

/// A block for each query and head. weights (heads, queries, keys): first the logits.
template <DType dtype>
__global__ void weights_kernel(Attention args, float* weights) {
    after_previous();
    const Sequence sequence = sequence_of(args);
    auto* q = reinterpret_cast<float*>(dynamic_shared());
    const Row row = row_of(args, blockIdx.x, q, Compute::f32);
    float* to = weights + (row.head * args.queries + row.query) * args.keys;
    float max = minus_infinity;
    for (int64_t key = threadIdx.x; key < args.keys; key += threads) {
        const int64_t begin = key / block_keys * block_keys;
        const uint64_t seen = seen_bits(args, sequence, row.query, 0, begin) >> (key - begin);
        to[key] = minus_infinity;
        if ((seen & 1) == 0) continue;
        const float product = key_product<dtype>(args, row, key, Compute::f32, 0, 1);
        to[key] = logit_of(args, row, key, product);
        max = fmaxf(max, to[key]);
    }
    const float shift = shift_of(block_max(max));
    float sum = 0.0f;
    for (int64_t key = threadIdx.x; key < args.keys; key += threads) {
        to[key] = exp2f(to[key] - shift);
        sum += to[key];
    }
    sum = block_sum(sum);
    for (int64_t key = threadIdx.x; key < args.keys && sum != 0.0f; key += threads) to[key] /= sum;
}

// ---- which kernel ----

using PlainKernel = void (*)(Attention, Compute, Partials);

PlainKernel plain_kernel_of(DType dtype) {
    switch (dtype) {
        case DType::bf16:
            return plain_kernel<DType::bf16>;
        case DType::f16:
            return plain_kernel<DType::f16>;
        case DType::i8:
            return plain_kernel<DType::i8>;
        default:
            return plain_kernel<DType::f32>;
    }
}

using WeightsKernel = void (*)(Attention, float*);

WeightsKernel weights_kernel_of(DType dtype) {
    switch (dtype) {
        case DType::bf16:
            return weights_kernel<DType::bf16>;
        case DType::f16:
            return weights_kernel<DType::f16>;
        case DType::i8:
            return weights_kernel<DType::i8>;
        default:
            return weights_kernel<DType::f32>;
    }
}

void attention_plain(const Attention& args, Compute compute, const Partials& partials) {
    const dim3 grid(static_cast<unsigned>(args.queries * args.heads),
                    static_cast<unsigned>(std::max<int64_t>(1, partials.pieces)));
    launch("attention", plain_kernel_of(args.kv_dtype), grid, threads,
           2 * row_floats(args.head_dim) * static_cast<int64_t>(sizeof(float)), args, compute,
           partials);
}

/// Calls of so many queries are cut into pieces of keys.
constexpr int64_t few_queries = 4;

/// Room for the partial results of a call; none if there is too little.
Partials partials_for(const Attention& args, Workspace& memory) {
    constexpr int64_t most_pieces = 65535;  // of a grid
    const int64_t count = pieces(args.keys, Partials::piece_keys);
    const int64_t n = args.queries * args.heads * count;
    constexpr int64_t gaps = 4096;
    if (args.queries > few_queries || count > most_pieces ||
        n * (args.head_dim + 2) * static_cast<int64_t>(sizeof(float)) + gaps > memory.left())
        return {};
    Partials partials{count};
    partials.max = memory.take<float>(n);
    partials.sum = memory.take<float>(n);
    partials.out = memory.take<float>(n * args.head_dim);
    return partials;
}

void merge(const DecodeCalls& calls) {
    const Attention& args = calls.of[0].args;
    const dim3 grid(static_cast<unsigned>(args.queries * args.heads), calls.count);
    launch("attention_merge", merge_kernel, grid, merge_threads, 0, calls);
}

bool empty(const Attention& args) {
    return args.queries <= 0 || args.heads <= 0 || args.head_dim <= 0;
}

/// One launch takes calls that are alike in these.
bool alike(const Attention& a, const Attention& b) {
    return a.queries == b.queries && a.heads == b.heads && a.kv_heads == b.kv_heads &&
           a.head_dim == b.head_dim && a.kv_dtype == b.kv_dtype;
}

/// The first of `calls`, as many as can be decoded together; maybe none.
/// Their partial results stand in the workspace until the next operation takes it.
DecodeCalls decode_calls(std::span<const Attention> calls, Compute compute) {
    DecodeCalls together;
    Workspace memory;
    for (const Attention& args : calls.first(std::min<size_t>(calls.size(), DecodeCalls::most))) {
        if (compute != Compute::bf16 || empty(args) || !decode_takes(args)) break;
        if (!alike(args, calls.front())) break;
        const Partials partials = partials_for(args, memory);
        if (partials.pieces == 0) break;
        together.add({args, partials}, partials.pieces);
    }
    return together;
}

void attend_alone(const Attention& args, Compute compute) {
    if (empty(args)) return;
    Workspace memory;
    const Partials partials = partials_for(args, memory);
    if (partials.pieces > 0) {
        DecodeCalls call;
        call.add({args, partials}, partials.pieces);
        attention_plain(args, compute, partials);
        merge(call);
    } else if (compute == Compute::bf16 && warpgroup_takes(args, memory)) {
        attention_warpgroup(args, memory);
    } else if (compute == Compute::bf16 && tile_takes(args)) {
        attention_tile(args);
    } else {
        attention_plain(args, compute, {});
    }
}

}  // namespace

void attention(std::span<const Attention> calls, Compute compute) {
    while (!calls.empty()) {
        const DecodeCalls together = decode_calls(calls, compute);
        if (together.count > 0) {
            attention_decode(together);
            merge(together);
        } else {
            attend_alone(calls.front(), compute);
        }
        calls = calls.subspan(std::max(1u, together.count));
    }
}

void attention_weights(const Attention& args, float* weights) {
    launch("attention_weights", weights_kernel_of(args.kv_dtype),
           dim3(static_cast<unsigned>(args.queries * args.heads)), threads,
           args.head_dim * static_cast<int64_t>(sizeof(float)), args, weights);
}

}  // namespace mllama::cuda
