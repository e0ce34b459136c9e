// The tensor cores' products of small matrices, by one warp: c (16, 8) += a (16, k) b (k, 8).
//
// How the matrices lie in the lanes' registers (PTX ISA, "Matrix fragments for mma.m16n8k16" and
// "mma.m16n8k32"). With group = lane / 4 and quad = lane % 4, a unit being the 4 bytes of 2
// bfloat16 or 4 int8 that are neighbours along k:
//
//     a[0] row group      unit quad          b[0] unit quad      column group
//     a[1] row group + 8  unit quad          b[1] unit quad + 4  column group
//     a[2] row group      unit quad + 4
//     a[3] row group + 8  unit quad + 4
//     c[0], c[1]  row group,      columns 2 quad, 2 quad + 1
//     c[2], c[3]  row group + 8,  the same columns
//
// A column of b in units is how kv_layout.h keeps keys and values: they are loaded as they lie.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/dtype.h"

namespace mllama::cuda {

#ifdef __CUDACC__

/// bfloat16, k = 16, sums in float32.
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// int8, k = 32, sums in int32.
__device__ inline void mma_int8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Two floats as a unit of bfloat16, rounded to nearest: `low` is the one of the smaller k.
__device__ inline uint32_t pack_bf16(float low, float high) {
    uint32_t unit;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(unit) : "f"(high), "f"(low));
    return unit;
}

/// Loads four matrices of 8 rows of 16 bytes from shared memory: lane 8 i + r brings the address of
/// row r of matrix i, and every lane gets unit lane % 4 of row lane / 4 of each. That is where mma has
/// its factors.
__device__ inline void load_matrices(uint32_t (&units)[4], const void* row) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(units[0]), "=r"(units[1]), "=r"(units[2]), "=r"(units[3])
                 : "r"(address)
                 : "memory");
}

/// Starts to copy 16 bytes to shared memory; none and zeros if not `there`. Both are aligned.
__device__ inline void copy_async_16(void* shared, const void* global, bool there) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global),
                 "r"(bytes)
                 : "memory");
}
/// The same for one float.
__device__ inline void copy_async_4(float* shared, const float* global, bool there) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const int bytes = there ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
}
/// Ends a group of copies.
__device__ inline void copy_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// Waits until at most `groups` of this thread's groups are on their way.
template <int groups>
__device__ inline void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(groups) : "memory");
}

#else

namespace emulated {

struct Fragments {
    uint32_t a[4], b[2];
};

inline const Fragments& fragments_of(const std::byte* all, unsigned lane) {
    return *reinterpret_cast<const Fragments*>(all + lane * exchange_bytes);
}

/// c += a b with `multiply` giving the product of two units.
template <class Sum, class Multiply>
void mma(Sum (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Multiply multiply) {
    Fragments mine{};
    std::memcpy(mine.a, a, sizeof(a));
    std::memcpy(mine.b, b, sizeof(b));
    const std::byte* all = exchange(&mine, sizeof(mine));
    const unsigned group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned half = i / 2, column = 2 * quad + i % 2;
        for (unsigned unit = 0; unit < 8; ++unit) {
            const uint32_t x = fragments_of(all, group * 4 + unit % 4).a[half + 2 * (unit / 4)];
            const uint32_t y = fragments_of(all, column * 4 + unit % 4).b[unit / 4];
            c[i] += multiply(x, y);
        }
    }
}

}  // namespace emulated

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated::mma(c, a, b, [](uint32_t x, uint32_t y) {
        const auto low = [](uint32_t unit) { return bf16_to_f32(static_cast<uint16_t>(unit)); };
        return low(x) * low(y) + low(x >> 16) * low(y >> 16);
    });
}

inline void mma_int8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated::mma(c, a, b, [](uint32_t x, uint32_t y) {
        return __dp4a(static_cast<int>(x), static_cast<int>(y), 0);
    });
}

inline uint32_t pack_bf16(float low, float high) {
    return f32_to_bf16(low) | static_cast<uint32_t>(f32_to_bf16(high)) << 16;
}

inline void load_matrices(uint32_t (&units)[4], const void* row) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned i = 0; i < 4; ++i) {
        const auto* from = static_cast<const uint32_t*>(emulated::of_lane(row, 8 * i + lane / 4));
        units[i] = from[lane % 4];
    }
}

inline void copy_async_16(void* shared, const void* global, bool there) {
    if (there) {
        *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
    } else {
        *static_cast<uint4*>(shared) = uint4{};
    }
}
inline void copy_async_4(float* shared, const float* global, bool there) {
    *shared = there ? *global : 0.0f;
}
inline void copy_async_commit() {}
template <int groups>
void copy_async_wait() {}

#endif

}  // namespace mllama::cuda
