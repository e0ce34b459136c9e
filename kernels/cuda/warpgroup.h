// The tensor cores' products by a warpgroup, four neighbouring warps ("wgmma", PTX ISA, "Asynchronous
// Warpgroup Level Matrix Multiply-Accumulate"; compute capability 9.0 alone): c (64, n) += a (64, 16)
// b (16, n), a and c in registers, b in shared memory.
//
// Of a and c each warp has 16 rows, in the same places as in mma.h: with group = lane / 4 and quad =
// lane % 4
//
//     a[0] row group      columns 2 quad, 2 quad + 1       a[2] the same row, 8 columns further
//     a[1] row group + 8  the same columns                 a[3]
//     c[j][0], c[j][1]  row group,      columns 8 j + 2 quad, 8 j + 2 quad + 1
//     c[j][2], c[j][3]  row group + 8,  the same columns
//
// b lies in pieces of 8 bfloat16 that are neighbours along k, 16 bytes: a column's pieces stand in one
// row of 8 (or 2), the rows follow each other. A piece stands where `place_of` says, so that those
// of 8 neighbouring columns meet all banks of shared memory ("128-byte swizzle", "32-byte swizzle").
//
// Products run beside what comes behind them: registers that they use may be touched again when
// products_wait() has waited for them.
#pragma once

#include "kernels/cuda/mma.h"

namespace mllama::cuda {

inline constexpr unsigned warpgroup_size = 128;

/// Whether this code is compiled for a device that has them; a kernel is empty otherwise.
#if defined(__CUDACC__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool compiled_for_warpgroups = false;
#else
inline constexpr bool compiled_for_warpgroups = true;
#endif

/// Where piece `piece` of column `column` stands, in pieces, in rows of `pieces`.
__host__ __device__ constexpr int place_of(int pieces, int column, int piece) {
    return column * pieces + (piece ^ column * pieces / 8 % pieces);
}

/// Columns of b in shared memory, rows of `pieces`; a product takes two pieces of each.
template <int pieces>
class SharedFactor {
  public:
    static_assert(pieces == 8 || pieces == 2);
#ifdef __CUDACC__
    /// rows (columns, pieces), aligned to 128 * pieces bytes
    __device__ explicit SharedFactor(const uint4* rows) {
        constexpr uint64_t kind = pieces == 8 ? 1 : 3;
        const auto address = static_cast<uint64_t>(__cvta_generic_to_shared(rows));
        descriptor_ =
            (address >> 4 & 0x3FFF) | uint64_t{1} << 16 | uint64_t{8 * pieces} << 32 | kind << 62;
    }
    /// What wgmma calls a matrix descriptor: address, the distance of 8 columns, both in units of 16
    /// bytes, and the kind of swizzle; of the pieces `piece` and piece + 1.
    [[nodiscard]] __device__ uint64_t descriptor(int piece) const {
        return descriptor_ + static_cast<uint64_t>(piece);
    }

  private:
    uint64_t descriptor_;
#else
    explicit SharedFactor(const uint4* from) : rows(from) {}
    const uint4* rows;
#endif
};

#ifdef __CUDACC__

/// n = 64, by the pieces `piece` and piece + 1 of b. `add`: to what c holds, else to 0.
template <int pieces>
__device__ void multiply(float (&c)[8][4], const uint32_t (&a)[4], const SharedFactor<pieces>& b,
                         int piece, bool add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
        "}, {%32,%33,%34,%35}, %36, add, 1, 1, 0;\n}\n"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
          "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
          "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]),
          "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),
          "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]),
          "+f"(c[7][2]), "+f"(c[7][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor(piece)), "r"(int{add}));
}

/// n = 80; `add`: to what c holds, else to 0.
template <int pieces>
__device__ void multiply(float (&c)[10][4], const uint32_t (&a)[4], const SharedFactor<pieces>& b,
                         int piece, bool add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %45, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39"
        "}, {%40,%41,%42,%43}, %44, add, 1, 1, 0;\n}\n"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
          "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
          "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]),
          "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),
          "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]),
          "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]),
          "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor(piece)), "r"(int{add}));
}

/// In front of products whose registers were written by anything else.
__device__ inline void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
/// Ends a group of products.
__device__ inline void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/// Waits until at most `groups` groups are on their way. c: results, which the compiler may not read
/// earlier.
template <int groups, int n>
__device__ void products_wait(float (&c)[n][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(groups) : "memory");
    for (auto& part : c) {
        for (float& x : part) asm volatile("" : "+f"(x)::"memory");
    }
}

/// Registers of a thread from here on, the same in a whole warpgroup: fewer than the kernel has, or
/// more when others have given theirs away.
template <unsigned registers>
__device__ void give_registers_away() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(registers));
}
template <unsigned registers>
__device__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(registers));
}

#else

/// c += a b at once; multiply() does it when it is waited for.
template <int n, int pieces>
void multiply_now(float (&c)[n][4], const uint32_t (&a)[4], const SharedFactor<pieces>& b,
                  int piece, bool add) {
    struct Rows {
        uint32_t a[4];
    } mine{};
    std::memcpy(mine.a, a, sizeof(a));
    const std::byte* all = emulated::exchange(&mine, sizeof(mine));
    const unsigned group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    for (int j = 0; j < n; ++j) {
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned column = 8 * static_cast<unsigned>(j) + 2 * quad + i % 2;
            float sum = add ? c[j][i] : 0.0f;
            for (unsigned k = 0; k < 16; ++k) {
                const std::byte* from = all + (4 * group + k % 8 / 2) * emulated::exchange_bytes;
                uint32_t unit;
                std::memcpy(&unit, from + 4 * (i / 2 + 2 * (k / 8)), 4);
                const auto x = static_cast<uint16_t>(unit >> (k % 2 * 16));
                const int place =
                    place_of(pieces, static_cast<int>(column), piece + static_cast<int>(k / 8));
                uint16_t y;
                std::memcpy(&y, reinterpret_cast<const uint16_t*>(b.rows + place) + k % 8, 2);
                sum += bf16_to_f32(x) * bf16_to_f32(y);
            }
            c[j][i] = sum;
        }
    }
}

template <int n, int pieces>
void multiply(float (&c)[n][4], const uint32_t (&a)[4], const SharedFactor<pieces>& b, int piece,
              bool add) {
    emulated::run_late([&c, &a, b, piece, add] { multiply_now(c, a, b, piece, add); });
}

inline void products_begin() {}
inline void products_commit() {
    emulated::end_group();
}
template <int groups, int n>
void products_wait(float (&)[n][4]) {
    emulated::run_groups(groups);
}
template <unsigned registers>
void give_registers_away() {}
template <unsigned registers>
void take_registers() {}

#endif

}  // namespace mllama::cuda
