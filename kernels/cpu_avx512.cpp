// The tables for AVX-512 (F, BW, VL, DQ): vectors of 16 floats. Where the processor has
// AVX512_BF16, products of bfloat16 are made by vdpbf16ps, which adds the products of 16 pairs to
// 16 floats; elsewhere the factors are rounded and multiplied as floats.
//
// vdpbf16ps takes subnormal numbers as zero, in its inputs and in its results.
#include "kernels/cpu.h"
#include "kernels/decode.h"

#if defined(__x86_64__)

#include <immintrin.h>

// Target regions instead of -m flags for the file: what a header defines outside of the region
// stays portable code.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"))), apply_to = function)
#else
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // false alarms inside GCC 12's intrinsics (its bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")
#endif

namespace mllama::cpu {
namespace {

constexpr int64_t lanes = 16;
constexpr int tile_rows = 6;
constexpr int panel_vectors = 4;
constexpr int registers = 32;
constexpr int few_rows_max = 8;
constexpr int few_columns_vectors = 4;
constexpr int64_t prefetch_blocks = 16;  // how far ahead rows are asked for, in vectors

using Vec = __m512;
using Mask = __mmask16;

inline Vec broadcast(float a) {
    return _mm512_set1_ps(a);
}
inline Vec fma(Vec a, Vec b, Vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline Mask less(Vec a, Vec b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
inline Vec select(Mask mask, Vec a, Vec b) {
    return _mm512_mask_blend_ps(mask, b, a);
}
inline Vec largest(Vec a, Vec b) {
    return _mm512_max_ps(a, b);
}
inline Vec smallest(Vec a, Vec b) {
    return _mm512_min_ps(a, b);
}
inline Vec nearest(Vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec times_power_of_two(Vec a, Vec n) {
    return _mm512_scalef_ps(a, n);
}

inline Vec upper_bits(Vec a) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xFFFFF000u));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), mask));
}

/// The upper half of each lane is the bfloat16: nearest, ties to even; a NaN is made quiet and
/// stays one.
inline __m512i bf16_bits(Vec a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
}

inline Vec round_bf16(Vec a) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(bf16_bits(a), mask));
}

/// 16 x 16 of 32 bits: pairs, quadruples, then the 128-bit quarters.
inline void transpose(__m512i (&rows)[lanes]) {
    __m512i pair[lanes], quad[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        pair[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pair[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        quad[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
        quad[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
        quad[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
        quad[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
    }
    // quad[4 b + c] holds, of rows 4 b ... 4 b + 3, the columns c, c + 4, c + 8, c + 12, a quarter
    // each.
#pragma GCC unroll 16
    for (int c = 0; c < 4; ++c) {
        const __m512i even_low = _mm512_shuffle_i32x4(quad[c], quad[4 + c], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(quad[c], quad[4 + c], 0xDD);
        const __m512i even_high = _mm512_shuffle_i32x4(quad[8 + c], quad[12 + c], 0x88);
        const __m512i odd_high = _mm512_shuffle_i32x4(quad[8 + c], quad[12 + c], 0xDD);
        rows[c] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
        rows[c + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xDD);
        rows[c + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
        rows[c + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xDD);
    }
}

inline void transpose(Vec (&rows)[lanes]) {
    __m512i bits[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) bits[i] = _mm512_castps_si512(rows[i]);
    transpose(bits);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_castsi512_ps(bits[i]);
}

/// 4 x 4 quarters of 128 bits: pairs, then halves.
inline void transpose_quads(__m512i (&rows)[4]) {
    const __m512i low_0 = _mm512_shuffle_i32x4(rows[0], rows[1], 0x44);
    const __m512i high_0 = _mm512_shuffle_i32x4(rows[0], rows[1], 0xEE);
    const __m512i low_1 = _mm512_shuffle_i32x4(rows[2], rows[3], 0x44);
    const __m512i high_1 = _mm512_shuffle_i32x4(rows[2], rows[3], 0xEE);
    rows[0] = _mm512_shuffle_i32x4(low_0, low_1, 0x88);
    rows[1] = _mm512_shuffle_i32x4(low_0, low_1, 0xDD);
    rows[2] = _mm512_shuffle_i32x4(high_0, high_1, 0x88);
    rows[3] = _mm512_shuffle_i32x4(high_0, high_1, 0xDD);
}

inline void transpose_quads(Vec (&rows)[4]) {
    __m512i bits[4];
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) bits[i] = _mm512_castps_si512(rows[i]);
    transpose_quads(bits);
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) rows[i] = _mm512_castsi512_ps(bits[i]);
}

inline Vec broadcast_quad(const float* from) {
    return _mm512_broadcast_f32x4(_mm_loadu_ps(from));
}

inline __m512i quads_by_place(__m512i v) {
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}

inline Vec quads_by_place(Vec v) {
    return _mm512_castsi512_ps(quads_by_place(_mm512_castps_si512(v)));
}

inline void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

/// The first n lanes, 0 <= n <= 16.
inline __mmask16 first_lanes(int64_t n) {
    return static_cast<__mmask16>((1u << n) - 1u);
}

struct F32 {
    using Element = float;
    static Vec load(const Element* from) { return _mm512_loadu_ps(from); }
    static void store(Element* to, Vec v) { _mm512_storeu_ps(to, v); }
    static Vec load_part(const Element* from, int64_t n) {
        return _mm512_maskz_loadu_ps(first_lanes(n), from);
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        _mm512_mask_storeu_ps(to, first_lanes(n), v);
    }

    static constexpr int unit = 1;
    static constexpr bool fits_bf16 = false;
    static void unpack(const void* from, Vec (&elements)[unit]) {
        elements[0] = _mm512_loadu_ps(from);
    }
    static void pack(const Vec (&elements)[unit], void* to) { _mm512_storeu_ps(to, elements[0]); }
};

inline __m512i upper_halves(__m512i units) {
    return _mm512_andnot_si512(_mm512_set1_epi32(0xFFFF), units);
}

struct Bf16 {
    using Element = uint16_t;
    static Vec widen(__m256i bits) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static __m256i narrow(Vec v) {
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_bits(v), 16));
    }

    static Vec load(const Element* from) {
        return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static void store(Element* to, Vec v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(v));
    }
    static Vec load_part(const Element* from, int64_t n) {
        return widen(_mm256_maskz_loadu_epi16(first_lanes(n), from));
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        _mm256_mask_storeu_epi16(to, first_lanes(n), narrow(v));
    }

    static constexpr int unit = 2;
    static constexpr bool fits_bf16 = true;
    static void unpack(const void* from, Vec (&elements)[unit]) {
        const __m512i units = _mm512_loadu_si512(from);
        elements[0] = _mm512_castsi512_ps(_mm512_slli_epi32(units, 16));
        elements[1] = _mm512_castsi512_ps(upper_halves(units));
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        const __m512i low = _mm512_srli_epi32(bf16_bits(elements[0]), 16);
        _mm512_storeu_si512(to, _mm512_or_si512(low, upper_halves(bf16_bits(elements[1]))));
    }
};

struct F16 {
    using Element = uint16_t;
    static __m256i narrow(Vec v) {
        return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }

    static Vec load(const Element* from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static void store(Element* to, Vec v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(v));
    }
    static Vec load_part(const Element* from, int64_t n) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), from));
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        _mm256_mask_storeu_epi16(to, first_lanes(n), narrow(v));
    }

    static constexpr int unit = 2;
    static constexpr bool fits_bf16 = false;
    static void unpack(const void* from, Vec (&elements)[unit]) {
        const __m512i units = _mm512_loadu_si512(from);
        elements[0] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(units));
        elements[1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(units, 16)));
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        const __m512i low = _mm512_cvtepu16_epi32(narrow(elements[0]));
        const __m512i high = _mm512_cvtepu16_epi32(narrow(elements[1]));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
};

// ---- integers ----

using Ints = __m512i;

inline Ints int_broadcast(int32_t a) {
    return _mm512_set1_epi32(a);
}
inline Ints int_add(Ints a, Ints b) {
    return _mm512_add_epi32(a, b);
}
inline Ints int_load(const int32_t* from) {
    return _mm512_loadu_si512(from);
}
inline void int_store(int32_t* to, Ints v) {
    _mm512_storeu_si512(to, v);
}
inline Ints load_bytes(const void* from) {
    return _mm512_loadu_si512(from);
}
inline Ints load_bytes_part(const void* from, int64_t n) {
    return _mm512_maskz_loadu_epi8((uint64_t{1} << n) - 1, from);
}
inline Ints broadcast_bytes(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}
inline Ints low_nibbles(Ints v) {
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}
inline Ints high_nibbles(Ints v) {
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}
inline Vec to_floats(Ints v) {
    return _mm512_cvtepi32_ps(v);
}
inline Ints low_pairs(Ints a, Ints b) {
    return _mm512_unpacklo_epi32(a, b);
}
inline Ints high_pairs(Ints a, Ints b) {
    return _mm512_unpackhi_epi32(a, b);
}
inline Ints low_halves(Ints a, Ints b) {
    return _mm512_unpacklo_epi64(a, b);
}
inline Ints high_halves(Ints a, Ints b) {
    return _mm512_unpackhi_epi64(a, b);
}
inline Ints widen_int8(const int8_t* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
/// Exponent and fraction move to the places of a float's. A subnormal number is made as 2^-6 more,
/// which is then taken away: subnormal floats would be slow.
inline Vec widen_f8(const uint8_t* from) {
    const Ints bits = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const Ints magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7F));
    const Ints sign = _mm512_slli_epi32(_mm512_xor_si512(bits, magnitude), 24);
    const __mmask16 is_small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(8));
    const __mmask16 is_nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7F));
    const Ints exponent = _mm512_mask_blend_epi32(is_small, _mm512_set1_epi32(120 << 23),
                                                  _mm512_set1_epi32(121 << 23));
    Vec v = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(magnitude, 20), exponent));
    v = _mm512_mask_sub_ps(v, is_small, v, broadcast(0x1p-6f));
    const Ints number =
        _mm512_mask_blend_epi32(is_nan, _mm512_castps_si512(v), _mm512_set1_epi32(0x7FC00000));
    return _mm512_castsi512_ps(_mm512_or_si512(number, sign));
}
template <bool high_first>
inline Ints nibbles(const uint8_t* from) {
    int32_t words[2];
    __builtin_memcpy(words, from, sizeof words);
    const Ints both = _mm512_mask_set1_epi32(_mm512_set1_epi32(words[0]), 0xFF00, words[1]);
    constexpr int x = high_first ? 4 : 0;  // exchanges the nibbles of a byte
    const Ints shifts =
        _mm512_setr_epi32(0 ^ x, 4 ^ x, 8 ^ x, 12 ^ x, 16 ^ x, 20 ^ x, 24 ^ x, 28 ^ x, 0 ^ x, 4 ^ x,
                          8 ^ x, 12 ^ x, 16 ^ x, 20 ^ x, 24 ^ x, 28 ^ x);
    return _mm512_and_si512(_mm512_srlv_epi32(both, shifts), _mm512_set1_epi32(15));
}
inline Vec look_up(const float* table, Ints index) {
    return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table));
}
inline Vec gather(const float* table, Ints index) {
    return _mm512_i32gather_ps(index, table, 4);
}
inline void store_rounded(int8_t* to, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

/// Only in units, of keys and values. A bfloat16 holds them all.
struct I8 {
    using Element = int8_t;
    static constexpr int unit = 4;
    static constexpr bool fits_bf16 = true;
    static void unpack(const void* from, Vec (&elements)[unit]) {
        const __m512i units = _mm512_loadu_si512(from);
        elements[0] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(units, 24), 24));
        elements[1] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(units, 16), 24));
        elements[2] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(units, 8), 24));
        elements[3] = _mm512_cvtepi32_ps(_mm512_srai_epi32(units, 24));
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        const __m512i byte = _mm512_set1_epi32(0xFF);
        const __m512i e0 = _mm512_and_si512(_mm512_cvtps_epi32(elements[0]), byte);
        const __m512i e1 = _mm512_and_si512(_mm512_cvtps_epi32(elements[1]), byte);
        const __m512i e2 = _mm512_and_si512(_mm512_cvtps_epi32(elements[2]), byte);
        const __m512i e3 = _mm512_cvtps_epi32(elements[3]);
        const __m512i low = _mm512_or_si512(e0, _mm512_slli_epi32(e1, 8));
        const __m512i high = _mm512_or_si512(_mm512_slli_epi32(e2, 16), _mm512_slli_epi32(e3, 24));
        _mm512_storeu_si512(to, _mm512_or_si512(low, high));
    }
};

#include "kernels/cpu_leaves.h"
#include "kernels/cpu_probe.h"

/// The multiply-add of 64 pairs of int8: products of neighbours to 16 bits, those to 32 bits, and
/// their sum.
struct Int8Steps {
    using Factor = __m512i;
    using Sum = __m512i;
    static constexpr int64_t multiply_adds = 64;
    static Factor factor(int one) { return _mm512_set1_epi8(static_cast<char>(one)); }
    static Sum start(int zero) { return _mm512_set1_epi32(zero); }
    static Sum step(Sum sum, Factor& one) {
        __asm__("" : "+v"(one));  // the products cannot be taken out of the loop
        const __m512i pairs = _mm512_maddubs_epi16(one, one);
        return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    static double total(Sum sum) { return _mm512_reduce_add_epi32(sum); }
};

#include "kernels/cpu_decode.h"

}  // namespace
}  // namespace mllama::cpu

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")
#endif

namespace mllama::cpu {
namespace {

namespace pairs {

/// The multiply-add of a tile on pairs of bfloat16.
struct PairDot {
    using Element = uint16_t;
    using Panel = __m512i;
    static constexpr int64_t group = 2;
    static Panel zero() { return _mm512_setzero_si512(); }
    static Panel load_panel(const Element* from) { return _mm512_loadu_si512(from); }
    static void store_panel(Element* to, Panel v) { _mm512_storeu_si512(to, v); }
    static Panel broadcast_x(const Element* from) {
        int32_t pair;
        __builtin_memcpy(&pair, from, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    static Panel broadcast_quad(const Element* from) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static Panel by_sum(Panel v) { return quads_by_place(v); }
    static Vec multiply_add(Panel x, Panel w, Vec sum) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
    }
};

/// The first n <= 32 elements of a vector of two-byte elements.
inline __mmask32 first_elements(int64_t n) {
    return static_cast<__mmask32>((uint64_t{1} << n) - 1);
}

/// 16 pairs, that is 32 elements of any type, as bfloat16.
template <class Type>
struct Pairs {
    using Element = typename Type::Element;
    static __m512i load(const Element* from, int64_t n) {
        const Vec low = mllama::cpu::load<Type>(from, n);
        const Vec high =
            n > lanes ? mllama::cpu::load<Type>(from + lanes, n - lanes) : broadcast(0.0f);
        return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    }
};

template <>
struct Pairs<Bf16> {
    using Element = uint16_t;
    static __m512i load(const Element* from, int64_t n) {
        if (n >= 2 * lanes) return _mm512_loadu_si512(from);
        return _mm512_maskz_loadu_epi16(first_elements(n), from);
    }
};

#include "kernels/cpu_columns.h"
#include "kernels/cpu_probe.h"
#include "kernels/cpu_softmax.h"
#include "kernels/cpu_tile.h"
#include "kernels/cpu_typed_product.h"

/// The multiply-add of pairs of bfloat16: sum += 1 * 1 + 1 * 1.
struct PairSteps {
    using Factor = __m512i;
    using Sum = Vec;
    static constexpr int64_t multiply_adds = 2 * lanes;
    static Factor factor(int one) {
        return _mm512_set1_epi16(static_cast<short>(f32_to_bf16(static_cast<float>(one))));
    }
    static Sum start(int zero) { return broadcast(static_cast<float>(zero)); }
    static Sum step(Sum sum, Factor& one) { return PairDot::multiply_add(one, one, sum); }
    static double total(Sum sum) { return sum_of_lanes(sum); }
};

/// Floats as bfloat16, two of them in each lane: groups of columns.
inline __m512i pairs_of(Vec first, Vec second) {
    const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(first)));
    const __m512i high =
        _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(second)));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/// Two elements of each column, in units of any type, as bfloat16.
template <class Type>
struct PairUnits {
    static constexpr int depth = 2;
    static constexpr int unit_rows = depth / Type::unit;
    static void load(const std::byte* from, int64_t stride, int64_t k, __m512i (&groups)[1]) {
        Vec elements[depth] = {};
        if constexpr (Type::unit == 1) {
            elements[0] = F32::load(reinterpret_cast<const float*>(from));
            if (k >= 2) elements[1] = F32::load(reinterpret_cast<const float*>(from + stride));
        } else {
            Type::unpack(from, elements);
            if (k < 2) elements[1] = broadcast(0.0f);
        }
        groups[0] = pairs_of(elements[0], elements[1]);
    }
};

/// Exact: the upper halves of the floats.
template <>
struct PairUnits<I8> {
    static constexpr int depth = 4;
    static constexpr int unit_rows = 1;
    static void load(const std::byte* from, int64_t, int64_t k, __m512i (&groups)[2]) {
        Vec elements[depth];
        I8::unpack(from, elements);
        for (int e = 1; e < depth; ++e) {
            if (e >= k) elements[e] = broadcast(0.0f);
        }
        for (int g = 0; g < 2; ++g) {
            const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(elements[2 * g]), 16);
            const __m512i high = upper_halves(_mm512_castps_si512(elements[2 * g + 1]));
            groups[g] = _mm512_or_si512(low, high);
        }
    }
};

/// They are what the multiply-add takes.
template <>
struct PairUnits<Bf16> {
    static constexpr int depth = 2;
    static constexpr int unit_rows = 1;
    static void load(const std::byte* from, int64_t, int64_t k, __m512i (&groups)[1]) {
        groups[0] = _mm512_loadu_si512(from);
        if (k < 2) groups[0] = _mm512_and_si512(groups[0], _mm512_set1_epi32(0xFFFF));
    }
};

/// How a panel of pairs takes its factors: see cpu_typed_product.h.
struct PairFactors {
    using Dot = PairDot;

    template <class Type>
    using Row = Pairs<Type>;

    template <class Type>
    using Units = PairUnits<Type>;

    struct Probabilities {
        using Element = uint16_t;
        static constexpr int degree = 4;
        static void store(Element* to, Vec v) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                                reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
        }
    };
};

}  // namespace pairs

}  // namespace
}  // namespace mllama::cpu

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")
#endif

namespace mllama::cpu {
namespace {

namespace vnni {

constexpr int int_tile_rows = 6;
constexpr int int_few_rows = 4;
constexpr int64_t int_dot_width = 64;
constexpr int64_t int_most_dot_rows = 8;

/// vpdpbusd in place. GCC 12 copies the 24 sums of a tile back and forth around its intrinsic, which
/// halves the speed.
inline Ints dot_add(Ints unsigned_bytes, Ints bytes, Ints sum) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(bytes));
    return sum;
}

/// vpdpbusd takes one factor as unsigned: weights in int8 are raised by 128.
struct Int8Dot {
    static constexpr int64_t most_adds = 0;
    static constexpr int32_t offset = 128;
    static Ints prepare(Ints w) {
        return _mm512_xor_si512(w, _mm512_set1_epi8(static_cast<char>(0x80)));
    }
    static Ints multiply_add(Ints x, Ints w, Ints sum) { return dot_add(w, x, sum); }
    static Ints whole(Ints sum) { return sum; }
};

struct NibbleDot {
    static constexpr int64_t most_adds = 0;
    static Ints multiply_add(Ints x, Ints w, Ints sum) { return dot_add(w, x, sum); }
    static Ints whole(Ints sum) { return sum; }
};

struct Int8Weights;
using WideWeights = Int8Weights;

#include "kernels/cpu_int.h"
#include "kernels/cpu_probe.h"

/// The multiply-add of four pairs of int8 to each of 16 sums: vpdpbusd.
struct QuadSteps {
    using Factor = __m512i;
    using Sum = __m512i;
    static constexpr int64_t multiply_adds = 4 * lanes;
    static Factor factor(int one) { return _mm512_set1_epi8(static_cast<char>(one)); }
    static Sum start(int zero) { return _mm512_set1_epi32(zero); }
    static Sum step(Sum sum, Factor& one) { return _mm512_dpbusd_epi32(sum, one, one); }
    static double total(Sum sum) { return _mm512_reduce_add_epi32(sum); }
};

}  // namespace vnni

}  // namespace
}  // namespace mllama::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace mllama::cpu {
namespace {

Table make_table_with_probes(std::string_view name) {
    const bool has_vnni = __builtin_cpu_supports("avx512vnni") != 0;
    Table table = with_probes(
        make_table(name), has_vnni ? vnni::Peak<vnni::QuadSteps>::loop() : Peak<Int8Steps>::loop());
    table.decode = decode;
    // Without VNNI the vectors of 32 bytes do as well.
    table.integers = has_vnni ? vnni::make_int_product() : avx2_table()->integers;
    return table;
}

}  // namespace

const Table* avx512_table() {
    static const Table table = make_table_with_probes("avx512");
    return &table;
}

const Table* avx512_bf16_table() {
    static const Table table = [] {
        Table with_pairs = make_table_with_probes("avx512+bf16");
        with_pairs.bf16 = pairs::make_product<pairs::PairFactors>();
        with_pairs.peak_bf16 = pairs::Peak<pairs::PairSteps>::loop();
        return with_pairs;
    }();
    return &table;
}

}  // namespace mllama::cpu

#else

namespace mllama::cpu {

const Table* avx512_table() {
    return nullptr;
}
const Table* avx512_bf16_table() {
    return nullptr;
}

}  // namespace mllama::cpu

#endif
