// The norms: a block for each row, which stays in the registers of its threads between the sum over
// it and the result. (A row that is too wide for them is read again.)
#include <algorithm>

#include "kernels/cuda.h"
#include "kernels/cuda/four.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace mllama::cuda {
namespace {

constexpr int kept = 2;  // pieces of four elements that a thread keeps
constexpr int most_threads = 1024;

/// The elements of one row that a thread computes: pieces of four, `step` apart.
struct Place {
    int64_t first, step, width;
    [[nodiscard]] __device__ int64_t next() const { return kept * step; }
};

__device__ inline Place place_of_thread(int64_t width) {
    return {four * threadIdx.x, four * blockDim.x, width};
}

/// Threads of a row: each has its two pieces, if a block can have as many.
unsigned threads_for(int64_t width) {
    const int64_t wanted = round_up(pieces(width, four * kept), warp_size);
    return static_cast<unsigned>(std::clamp<int64_t>(wanted, warp_size, most_threads));
}

/// The sum over x - mean, or its squares, of the elements within the row.
template <bool squares>
__device__ inline float sum_of(const Four (&x)[kept], float mean, int64_t i, const Place& place) {
    float sum = 0;
    for (int k = 0; k < kept; ++k) {
        for (int j = 0; j < four; ++j) {
            const bool within = i + k * place.step + j < place.width;
            const float value = within ? x[k].at[j] - mean : 0.0f;
            sum += squares ? value * value : value;
        }
    }
    return sum;
}

/// The same over the whole row, of which x are the pieces that this thread keeps. All threads call.
template <bool vectors, bool squares>
__device__ inline float sum_of_row(const float* row, const Four (&x)[kept], float mean,
                                   const Place& place) {
    float sum = sum_of<squares>(x, mean, place.first, place);
    for (int64_t i = place.first + place.next(); i < place.width; i += place.next()) {
        Four more[kept];
        load_fours<vectors>(more, row, DType::f32, i, place.step, place.width);
        sum += sum_of<squares>(more, mean, i, place);
    }
    return block_sum(sum);
}

/// 1 / the root of the mean of the squares.
__device__ inline float norm_of(float squares, int64_t width, float eps) {
    return 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
}

template <bool vectors>
__device__ inline void store_pieces(const Four (&values)[kept], const Floats& to, int64_t i,
                                    const Place& place) {
    for (int k = 0; k < kept; ++k)
        store_four<vectors>(values[k], to, i + k * place.step, place.width);
}

__device__ inline void scale(Four (&x)[kept], float norm, const Four (&weight)[kept]) {
    for (int k = 0; k < kept; ++k) {
        for (int j = 0; j < four; ++j) x[k].at[j] = x[k].at[j] * norm * weight[k].at[j];
    }
}

template <bool vectors>
__global__ void __launch_bounds__(most_threads)
    rms_norm_kernel(const float* x, int64_t width, const void* weight, DType weight_dtype,
                    float eps, Floats out) {
    const float* row = x + blockIdx.x * width;
    const Floats to = out.from(blockIdx.x * width);
    const Place place = place_of_thread(width);
    Four values[kept], weights[kept];
    load_fours<vectors>(weights, weight, weight_dtype, place.first, place.step, width);
    after_previous();
    load_fours<vectors>(values, row, DType::f32, place.first, place.step, width);
    const float norm = norm_of(sum_of_row<vectors, true>(row, values, 0.0f, place), width, eps);
    scale(values, norm, weights);
    store_pieces<vectors>(values, to, place.first, place);
    for (int64_t i = place.first + place.next(); i < width; i += place.next()) {
        load_fours<vectors>(values, row, DType::f32, i, place.step, width);
        load_fours<vectors>(weights, weight, weight_dtype, i, place.step, width);
        scale(values, norm, weights);
        store_pieces<vectors>(values, to, i, place);
    }
}

__device__ inline void scale_and_shift(Four (&x)[kept], float mean, float norm,
                                       const Four (&weight)[kept], const Four (&bias)[kept]) {
    for (int k = 0; k < kept; ++k) {
        for (int j = 0; j < four; ++j)
            x[k].at[j] = (x[k].at[j] - mean) * norm * weight[k].at[j] + bias[k].at[j];
    }
}

template <bool vectors>
__global__ void __launch_bounds__(most_threads)
    layer_norm_kernel(const float* x, int64_t width, const void* weight, const void* bias,
                      DType weight_dtype, float eps, Floats out) {
    const float* row = x + blockIdx.x * width;
    const Floats to = out.from(blockIdx.x * width);
    const Place place = place_of_thread(width);
    Four values[kept], weights[kept], biases[kept];
    load_fours<vectors>(weights, weight, weight_dtype, place.first, place.step, width);
    load_fours<vectors>(biases, bias, weight_dtype, place.first, place.step, width);
    after_previous();
    load_fours<vectors>(values, row, DType::f32, place.first, place.step, width);
    const float mean =
        sum_of_row<vectors, false>(row, values, 0.0f, place) / static_cast<float>(width);
    const float norm = norm_of(sum_of_row<vectors, true>(row, values, mean, place), width, eps);
    scale_and_shift(values, mean, norm, weights, biases);
    store_pieces<vectors>(values, to, place.first, place);
    for (int64_t i = place.first + place.next(); i < width; i += place.next()) {
        load_fours<vectors>(values, row, DType::f32, i, place.step, width);
        load_fours<vectors>(weights, weight, weight_dtype, i, place.step, width);
        load_fours<vectors>(biases, bias, weight_dtype, i, place.step, width);
        scale_and_shift(values, mean, norm, weights, biases);
        store_pieces<vectors>(values, to, i, place);
    }
}

}  // namespace

void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, Floats out) {
    const bool vectors = four_aligned(x, width) && four_aligned(out, width) &&
                         four_aligned(weight, weight_dtype, width);
    launch("rms_norm", vectors ? rms_norm_kernel<true> : rms_norm_kernel<false>,
           static_cast<unsigned>(rows), threads_for(width), 0, x, width, weight, weight_dtype, eps,
           out);
}

void layer_norm(const float* x, int64_t rows, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, Floats out) {
    const bool vectors = four_aligned(x, width) && four_aligned(out, width) &&
                         four_aligned(weight, weight_dtype, width) &&
                         four_aligned(bias, weight_dtype, width);
    launch("layer_norm", vectors ? layer_norm_kernel<true> : layer_norm_kernel<false>,
           static_cast<unsigned>(rows), threads_for(width), 0, x, width, weight, bias, weight_dtype,
           eps, out);
}

}  // namespace mllama::cuda
