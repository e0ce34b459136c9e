// What the 32 threads of a warp, and the warps of a block, do together.
#pragma once

#include "kernels/arguments.h"
#include "kernels/cuda/launch.h"
#include "kernels/dtype.h"

namespace mllama::cuda {

inline constexpr unsigned whole_warp = 0xFFFFFFFFu;
inline constexpr unsigned warp_size = 32;

/// The sum (largest) over the warp, the same to the bit in every lane.
__device__ inline float warp_sum(float x) {
    for (unsigned lanes = warp_size / 2; lanes > 0; lanes /= 2)
        x += __shfl_xor_sync(whole_warp, x, lanes);
    return x;
}
__device__ inline float warp_max(float x) {
    for (unsigned lanes = warp_size / 2; lanes > 0; lanes /= 2)
        x = fmaxf(x, __shfl_xor_sync(whole_warp, x, lanes));
    return x;
}

/// The sums of n values over the warp, n a power of two: lane l gets that of value l / (32 / n). Each
/// is the same to the bit as by warp_sum, with a fraction of the exchanges. Changes x.
template <int n>
__device__ inline float warp_sums(float (&x)[n]) {
    unsigned lanes = warp_size / 2;
    for (int half = n / 2; half > 0; half /= 2) {  // a lane goes on with half of its values
        const bool upper = (threadIdx.x & lanes) != 0;
        for (int i = 0; i < half; ++i) {
            const float given = upper ? x[i] : x[half + i];
            x[i] = (upper ? x[half + i] : x[i]) + __shfl_xor_sync(whole_warp, given, lanes);
        }
        lanes /= 2;
    }
    for (; lanes > 0; lanes /= 2) x[0] += __shfl_xor_sync(whole_warp, x[0], lanes);
    return x[0];
}

/// A number of each warp, where all threads of the block can read them until the next call; threads: a
/// multiple of 32. All threads call.
__device__ inline const float* of_warps(float x) {
    __shared__ float of_warp[32];
    __syncthreads();  // those of the last call have been read
    if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size] = x;
    __syncthreads();
    return of_warp;
}

/// The sum over the block, the same in every thread.
__device__ inline float block_sum(float x) {
    const float* of_warp = of_warps(warp_sum(x));
    float sum = 0;
    for (unsigned i = 0; i < blockDim.x / warp_size; ++i) sum += of_warp[i];
    return sum;
}

/// The largest over the block, by the same rules; a NaN counts for nothing.
__device__ inline float block_max(float x) {
    x = warp_max(x);
    const float* of_warp = of_warps(x);
    for (unsigned i = 0; i < blockDim.x / warp_size; ++i) x = fmaxf(x, of_warp[i]);
    return x;
}

/// IEEE binary16 by the GPU's own conversion; f16_to_f32 of dtype.h.
__device__ inline float half_to_float(uint16_t half) {
#ifdef __CUDACC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    return f16_to_f32(half);
#endif
}

/// 16 bytes, aligned, of memory that nobody reads a second time: they pass by the first-level cache,
/// where what all blocks read stays. Not ld.global.nc, which the compiler may move in front of
/// after_previous(); and volatile, for the same reason.
__device__ inline uint4 load_once(const void* address) {
#ifdef __CUDACC__
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address));
    return value;
#else
    return *static_cast<const uint4*>(address);
#endif
}

/// 2^x within a few units in the last place; 0 where it is below 2^-126.
__device__ inline float exp2_fast(float x) {
#ifdef __CUDACC__
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return exp2f(x);
#endif
}

/// Element i of an array of f32, bf16 or f16; float_element of dtype.h with the GPU's conversions
/// where they are worth it.
__device__ inline float load_float(const void* data, DType dtype, int64_t i) {
    if (dtype == DType::f16) return half_to_float(static_cast<const uint16_t*>(data)[i]);
    return float_element(data, dtype, i);
}

/// Stores the nearest element of that type.
__device__ inline void store_float(void* data, DType dtype, int64_t i, float value) {
    switch (dtype) {
        case DType::bf16:
            static_cast<uint16_t*>(data)[i] = f32_to_bf16(value);
            break;
        case DType::f16:
            static_cast<uint16_t*>(data)[i] = f32_to_f16(value);
            break;
        default:
            static_cast<float*>(data)[i] = value;
    }
}
__device__ inline void store_float(const Floats& to, int64_t i, float value) {
    store_float(to.data, to.dtype, i, value);
}

}  // namespace mllama::cuda
