// Four neighbours at a time: what a thread of the operations on rows and elements takes. Four floats
// are the 16 bytes that the memory gives a thread at best.
//
// `vectors`: the array begins at an aligned address, and i and the end are multiples of 4. Otherwise
// elements are loaded one by one, the same ones by the same thread: results do not depend on it.
#pragma once

#include "kernels/arguments.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/warp.h"
#include "kernels/dtype.h"
#include "kernels/rounding.h"

namespace mllama::cuda {

inline constexpr int64_t four = 4;

struct Four {
    float at[four];
};

/// Whether arrays of rows that are `stride` elements apart can be loaded as vectors.
inline bool four_aligned(const void* data, DType dtype, int64_t stride) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    return address % static_cast<uintptr_t>(four * dtype_size(dtype)) == 0 && stride % four == 0;
}
inline bool four_aligned(const float* data, int64_t stride) {
    return four_aligned(data, DType::f32, stride);
}
inline bool four_aligned(const Floats& array, int64_t stride) {
    return four_aligned(array.data, array.dtype, stride);
}

/// The elements i ... i + 3 of an array of f32, bf16 or f16; 0 for those from `end` on.
template <bool vectors, DType dtype>
__device__ inline Four load_typed(const void* data, int64_t i, int64_t end) {
    Four result{};
    if constexpr (!vectors) {
        for (int j = 0; j < four; ++j) {
            if (i + j < end) result.at[j] = load_float(data, dtype, i + j);
        }
    } else if (i < end) {
        if constexpr (dtype == DType::f32) {
            const auto raw = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
            result = {{raw.x, raw.y, raw.z, raw.w}};
        } else {
            const auto raw =
                *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + i);
            const uint32_t words[] = {raw.x, raw.y};
            for (int j = 0; j < four; ++j) {
                const auto bits = static_cast<uint16_t>(words[j / 2] >> (16 * (j % 2)));
                result.at[j] = dtype == DType::bf16 ? bf16_to_f32(bits) : half_to_float(bits);
            }
        }
    }
    return result;
}

/// n pieces at i, i + step, ...: all loads are on their way before the first is waited for.
template <bool vectors, int n>
__device__ inline void load_fours(Four (&to)[n], const void* data, DType dtype, int64_t i,
                                  int64_t step, int64_t end) {
    switch (dtype) {
        case DType::bf16:
            for (int k = 0; k < n; ++k)
                to[k] = load_typed<vectors, DType::bf16>(data, i + k * step, end);
            break;
        case DType::f16:
            for (int k = 0; k < n; ++k)
                to[k] = load_typed<vectors, DType::f16>(data, i + k * step, end);
            break;
        default:
            for (int k = 0; k < n; ++k)
                to[k] = load_typed<vectors, DType::f32>(data, i + k * step, end);
    }
}

template <bool vectors>
__device__ inline Four load_four(const void* data, DType dtype, int64_t i, int64_t end) {
    Four result[1];
    load_fours<vectors>(result, data, dtype, i, 0, end);
    return result[0];
}
template <bool vectors>
__device__ inline Four load_four(const float* data, int64_t i, int64_t end) {
    return load_typed<vectors, DType::f32>(data, i, end);
}

__device__ inline uint32_t pack_f16(float low, float high) {
    return f32_to_f16(low) | static_cast<uint32_t>(f32_to_f16(high)) << 16;
}

/// Stores those before `end`, each rounded to the nearest of the type.
template <bool vectors>
__device__ inline void store_four(const Four& values, const Floats& to, int64_t i, int64_t end) {
    const float* x = values.at;
    if constexpr (!vectors) {
        for (int j = 0; j < four; ++j) {
            if (i + j < end) store_float(to, i + j, x[j]);
        }
    } else if (i < end) {
        if (to.dtype == DType::f32) {
            reinterpret_cast<float4*>(to.data)[i / four] = {x[0], x[1], x[2], x[3]};
        } else if (to.dtype == DType::bf16) {
            reinterpret_cast<uint2*>(to.data)[i / four] = {pack_bf16(x[0], x[1]),
                                                           pack_bf16(x[2], x[3])};
        } else {
            reinterpret_cast<uint2*>(to.data)[i / four] = {pack_f16(x[0], x[1]),
                                                           pack_f16(x[2], x[3])};
        }
    }
}

}  // namespace mllama::cuda
