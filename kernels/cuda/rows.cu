// Operations element by element. Threads take four neighbours each; blocks are cut from rows, or
// from the array where there are no rows.
#include <algorithm>

#include "kernels/cuda.h"
#include "kernels/cuda/activation.h"
#include "kernels/cuda/four.h"
#include "kernels/cuda/launch.h"
#include "kernels/error.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;  // of a block over an array

/// Blocks that cover n elements; pieces of `piece` of them are a thread's.
unsigned blocks(int64_t n, int64_t piece = four) {
    return static_cast<unsigned>(pieces(n, piece * threads));
}

/// Blocks (rows, parts of a row) and their threads, fewer where rows are short.
struct Cover {
    Cover(int64_t rows, int64_t pieces_of_row)
        : threads(static_cast<unsigned>(std::clamp<int64_t>(round_up(pieces_of_row, warp_size),
                                                            warp_size, mllama::cuda::threads))),
          grid(static_cast<unsigned>(rows), static_cast<unsigned>(pieces(pieces_of_row, threads))) {
    }
    unsigned threads;
    dim3 grid;
};

/// The thread's number in the array, and in its row.
__device__ inline int64_t thread_of_array() {
    return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ inline int64_t thread_of_row() {
    return int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
}

__global__ void rope_angles_kernel(const int64_t* positions, const float* inverse_frequencies,
                                   int64_t pairs, float* cos, float* sin) {
    after_previous();
    const int64_t i = thread_of_row();
    if (i >= pairs) return;
    const float angle = inverse_frequencies[i] * static_cast<float>(positions[blockIdx.x]);
    cos[blockIdx.x * pairs + i] = cosf(angle);
    sin[blockIdx.x * pairs + i] = sinf(angle);
}

/// Four pairs a thread.
template <bool vectors>
__global__ void rope_kernel(float* x, int64_t heads, int64_t half, int64_t x_stride,
                            const float* cos, const float* sin) {
    after_previous();
    const auto pieces_of_head = static_cast<unsigned>(pieces(half, four));
    const auto thread = static_cast<unsigned>(thread_of_row());
    const int64_t head = thread / pieces_of_head;
    if (head >= heads) return;
    const int64_t i = four * (thread % pieces_of_head);
    float* low = x + blockIdx.x * x_stride + head * 2 * half;
    float* high = low + half;
    const Four a = load_four<vectors>(low, i, half);
    const Four b = load_four<vectors>(high, i, half);
    const Four c = load_four<vectors>(cos + blockIdx.x * half, i, half);
    const Four s = load_four<vectors>(sin + blockIdx.x * half, i, half);
    Four new_low, new_high;
    for (int j = 0; j < four; ++j) {
        new_low.at[j] = a.at[j] * c.at[j] - b.at[j] * s.at[j];
        new_high.at[j] = b.at[j] * c.at[j] + a.at[j] * s.at[j];
    }
    store_four<vectors>(new_low, low, i, half);
    store_four<vectors>(new_high, high, i, half);
}

template <bool vectors>
__global__ void gated_kernel(const float* gate, const float* up, int64_t width, int64_t in_stride,
                             Activation kind, Floats out, int64_t out_stride) {
    after_previous();
    const int64_t i = four * thread_of_row();
    Four values = load_four<vectors>(gate + blockIdx.x * in_stride, i, width);
    const Four factors = load_four<vectors>(up + blockIdx.x * in_stride, i, width);
    for (int j = 0; j < four; ++j) values.at[j] = activation(values.at[j], kind) * factors.at[j];
    store_four<vectors>(values, out.from(blockIdx.x * out_stride), i, width);
}

template <bool vectors>
__global__ void activate_kernel(float* x, int64_t n, Activation kind) {
    after_previous();
    const int64_t i = four * thread_of_array();
    Four values = load_four<vectors>(x, i, n);
    for (float& value : values.at) value = activation(value, kind);
    store_four<vectors>(values, x, i, n);
}

/// y[i ... i + 3] += scale * x[i ... i + 3].
template <bool vectors>
__device__ inline void add(float* y, const void* x, DType x_dtype, float scale, int64_t i,
                           int64_t end) {
    Four values = load_four<vectors>(y, i, end);
    const Four added = load_four<vectors>(x, x_dtype, i, end);
    for (int j = 0; j < four; ++j) values.at[j] += scale * added.at[j];
    store_four<vectors>(values, y, i, end);
}

template <bool vectors>
__global__ void add_scaled_kernel(float* y, const void* x, DType x_dtype, float scale, int64_t n) {
    after_previous();
    add<vectors>(y, x, x_dtype, scale, four * thread_of_array(), n);
}

template <bool vectors>
__global__ void add_to_rows_kernel(float* y, int64_t width, const void* x, DType x_dtype,
                                   float scale) {
    after_previous();
    add<vectors>(y + blockIdx.x * width, x, x_dtype, scale, four * thread_of_row(), width);
}

template <bool vectors>
__global__ void scale_rows_kernel(float* x, int64_t width, const float* factors) {
    after_previous();
    float* row = x + blockIdx.x * width;
    const float factor = factors[blockIdx.x];
    const int64_t i = four * thread_of_row();
    Four values{};
    if (factor != 0.0f) values = load_four<vectors>(row, i, width);
    for (float& value : values.at) value = factor == 0.0f ? 0.0f : value * factor;
    store_four<vectors>(values, row, i, width);
}

template <bool vectors>
__global__ void embedding_kernel(const int64_t* ids, const void* table, DType table_dtype,
                                 int64_t width, float* out) {
    after_previous();
    const int64_t i = four * thread_of_row();
    const int64_t entry = ids[blockIdx.x] * width;
    const Four values = load_four<vectors>(table, table_dtype, entry + i, entry + width);
    store_four<vectors>(values, out + blockIdx.x * width, i, width);
}

template <bool vectors>
__global__ void convert_kernel(const void* from, DType from_dtype, Floats to, int64_t n) {
    after_previous();
    const int64_t i = four * thread_of_array();
    store_four<vectors>(load_four<vectors>(from, from_dtype, i, n), to, i, n);
}

constexpr int64_t vector_bytes = sizeof(uint4);

/// 16 bytes a thread; one by one unless `vectors` (both are aligned), and at the end.
__global__ void copy_kernel(const unsigned char* from, unsigned char* to, int64_t bytes,
                            bool vectors) {
    after_previous();
    const int64_t begin = vector_bytes * thread_of_array();
    if (vectors && begin + vector_bytes <= bytes) {
        *reinterpret_cast<uint4*>(to + begin) = *reinterpret_cast<const uint4*>(from + begin);
        return;
    }
    for (int64_t i = begin; i < begin + vector_bytes && i < bytes; ++i) to[i] = from[i];
}

void copy(const void* from, void* to, int64_t bytes) {
    const auto addresses = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
    launch("copy", copy_kernel, blocks(bytes, vector_bytes), threads, 0,
           static_cast<const unsigned char*>(from), static_cast<unsigned char*>(to), bytes,
           addresses % static_cast<uintptr_t>(vector_bytes) == 0);
}

/// A block row for each patch, a thread for each of its pixels.
__global__ void unfold_patches_kernel(const float* pixels, int64_t channels, int64_t side,
                                      unsigned patch, float* out) {
    after_previous();
    const int64_t patch_pixels = channels * patch * patch;
    const int64_t i = thread_of_row();
    if (i >= patch_pixels) return;
    const auto patches = static_cast<unsigned>(side) / patch;
    const auto line_of_patch = static_cast<unsigned>(i) / patch;  // of all channels
    const int64_t channel = line_of_patch / patch;
    const int64_t y = blockIdx.x / patches * patch + line_of_patch % patch;
    const int64_t x = blockIdx.x % patches * patch + static_cast<unsigned>(i) % patch;
    out[blockIdx.x * patch_pixels + i] = pixels[(channel * side + y) * side + x];
}

/// Travels with the launch: pointers that lie in memory of the process. (Without __grid_constant__ each
/// thread would copy it, to be able to index it.)
struct States {
    static constexpr int64_t most = 16;
    const float* of[most];
};

__global__ void interleave_kernel(const __grid_constant__ States states, unsigned count,
                                  int64_t width, float* out, int64_t out_stride) {
    after_previous();
    const int64_t i = thread_of_row();
    if (i >= width * count) return;
    const auto at = static_cast<unsigned>(i);
    out[blockIdx.x * out_stride + i] = states.of[at % count][blockIdx.x * width + at / count];
}

}  // namespace

void rope_angles(const int64_t* positions, int64_t rows, const float* inverse_frequencies,
                 int64_t pairs, float* cos, float* sin) {
    const Cover cover(rows, pairs);
    launch("rope_angles", rope_angles_kernel, cover.grid, cover.threads, 0, positions,
           inverse_frequencies, pairs, cos, sin);
}

void rope(float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t x_stride,
          const float* cos, const float* sin) {
    const int64_t half = head_dim / 2;
    const Cover cover(rows, heads * pieces(half, four));
    const bool vectors =
        four_aligned(x, x_stride) && four_aligned(cos, half) && four_aligned(sin, half);
    launch("rope", vectors ? rope_kernel<true> : rope_kernel<false>, cover.grid, cover.threads, 0,
           x, heads, half, x_stride, cos, sin);
}

void gated(const float* gate, const float* up, int64_t rows, int64_t width, int64_t in_stride,
           Activation activation, Floats out, int64_t out_stride) {
    const Cover cover(rows, pieces(width, four));
    const bool vectors = width % four == 0 && four_aligned(gate, in_stride) &&
                         four_aligned(up, in_stride) && four_aligned(out, out_stride);
    launch("gated", vectors ? gated_kernel<true> : gated_kernel<false>, cover.grid, cover.threads,
           0, gate, up, width, in_stride, activation, out, out_stride);
}

void activate(float* x, int64_t n, Activation activation) {
    const bool vectors = four_aligned(x, n);
    launch("activate", vectors ? activate_kernel<true> : activate_kernel<false>, blocks(n), threads,
           0, x, n, activation);
}

void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n) {
    const bool vectors = four_aligned(y, n) && four_aligned(x, x_dtype, n);
    launch("add_scaled", vectors ? add_scaled_kernel<true> : add_scaled_kernel<false>, blocks(n),
           threads, 0, y, x, x_dtype, scale, n);
}

void add_to_rows(float* y, int64_t rows, int64_t width, const void* x, DType x_dtype, float scale) {
    const Cover cover(rows, pieces(width, four));
    const bool vectors = four_aligned(y, width) && four_aligned(x, x_dtype, width);
    launch("add_to_rows", vectors ? add_to_rows_kernel<true> : add_to_rows_kernel<false>,
           cover.grid, cover.threads, 0, y, width, x, x_dtype, scale);
}

void scale_rows(float* x, int64_t rows, int64_t width, const float* factor) {
    const Cover cover(rows, pieces(width, four));
    const bool vectors = four_aligned(x, width);
    launch("scale_rows", vectors ? scale_rows_kernel<true> : scale_rows_kernel<false>, cover.grid,
           cover.threads, 0, x, width, factor);
}

void embedding(const int64_t* ids, int64_t n, const void* table, DType table_dtype, int64_t width,
               float* out) {
    const Cover cover(n, pieces(width, four));
    const bool vectors = four_aligned(table, table_dtype, width) && four_aligned(out, width);
    launch("embedding", vectors ? embedding_kernel<true> : embedding_kernel<false>, cover.grid,
           cover.threads, 0, ids, table, table_dtype, width, out);
}

void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n) {
    if (from_dtype == to_dtype) return copy(from, to, n * dtype_size(from_dtype));
    const bool vectors = four_aligned(from, from_dtype, n) && four_aligned(to, to_dtype, n);
    launch("convert", vectors ? convert_kernel<true> : convert_kernel<false>, blocks(n), threads, 0,
           from, from_dtype, Floats(to, to_dtype), n);
}

void unfold_patches(const float* pixels, int64_t channels, int64_t side, int64_t patch,
                    float* out) {
    const int64_t patches = side / patch;
    const Cover cover(patches * patches, channels * patch * patch);
    launch("unfold_patches", unfold_patches_kernel, cover.grid, cover.threads, 0, pixels, channels,
           side, static_cast<unsigned>(patch), out);
}

void interleave(const float* const* states, int64_t count, int64_t rows, int64_t width, float* out,
                int64_t out_stride) {
    if (count > States::most)
        fail("CUDA: interleave: ", count, " arrays, ", States::most, " are the most");
    States by_value{};
    std::copy_n(states, count, by_value.of);
    const Cover cover(rows, width * count);
    launch("interleave", interleave_kernel, cover.grid, cover.threads, 0, by_value,
           static_cast<unsigned>(count), width, out, out_stride);
}

}  // namespace mllama::cuda
