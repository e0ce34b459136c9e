// The table for AVX2 with FMA and F16C: vectors of 8 floats. There is no bfloat16 product, so
// Compute::bf16 rounds the factors and multiplies floats.
#include "kernels/cpu.h"
#include "kernels/decode.h"

#if defined(__x86_64__)

#include <immintrin.h>

// Target regions instead of -m flags for the file: what a header defines outside of the region
// stays portable code.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace mllama::cpu {
namespace {

constexpr int64_t lanes = 8;
constexpr int tile_rows = 6;
constexpr int panel_vectors = 2;
constexpr int registers = 16;
constexpr int few_rows_max = 4;
constexpr int few_columns_vectors = 4;
constexpr int64_t prefetch_blocks = 16;  // how far ahead rows are asked for, in vectors

using Vec = __m256;
using Mask = __m256;

inline Vec broadcast(float a) {
    return _mm256_set1_ps(a);
}
inline Vec fma(Vec a, Vec b, Vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
inline Mask less(Vec a, Vec b) {
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
}
inline Vec select(Mask mask, Vec a, Vec b) {
    return _mm256_blendv_ps(b, a, mask);
}
inline Vec largest(Vec a, Vec b) {
    return _mm256_max_ps(a, b);
}
inline Vec smallest(Vec a, Vec b) {
    return _mm256_min_ps(a, b);
}
inline Vec nearest(Vec a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline Vec power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/// In two steps, since 2^n itself may be out of range where a * 2^n is not.
inline Vec times_power_of_two(Vec a, Vec n) {
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return a * power_of_two(half) * power_of_two(_mm256_sub_epi32(whole, half));
}

inline Vec upper_bits(Vec a) {
    return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xFFFFF000u))));
}

/// The upper half of each lane is the bfloat16: nearest, ties to even; a NaN is made quiet and
/// stays one.
inline __m256i bf16_bits(Vec a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, is_nan);
}

inline Vec round_bf16(Vec a) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(bf16_bits(a), _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
}

/// 8 x 8: pairs, quadruples, halves.
inline void transpose(Vec (&rows)[lanes]) {
    Vec pair[lanes], quad[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 4) {
        quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xEE);
        quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xEE);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31);
    }
}

/// 2 x 2 halves of 128 bits.
inline void transpose_quads(Vec (&rows)[2]) {
    const Vec low = _mm256_permute2f128_ps(rows[0], rows[1], 0x20);
    rows[1] = _mm256_permute2f128_ps(rows[0], rows[1], 0x31);
    rows[0] = low;
}

inline Vec broadcast_quad(const float* from) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
}

inline Vec quads_by_place(Vec v) {
    return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

inline void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

/// The first n lanes (0 <= n <= 8) of a mask for maskload and maskstore.
inline __m256i first_lanes(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}

struct F32 {
    using Element = float;
    static Vec load(const Element* from) { return _mm256_loadu_ps(from); }
    static void store(Element* to, Vec v) { _mm256_storeu_ps(to, v); }
    static Vec load_part(const Element* from, int64_t n) {
        return _mm256_maskload_ps(from, first_lanes(n));
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        _mm256_maskstore_ps(to, first_lanes(n), v);
    }

    static constexpr int unit = 1;
    static constexpr bool fits_bf16 = false;
    static void unpack(const void* from, Vec (&elements)[unit]) {
        elements[0] = load(static_cast<const float*>(from));
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        store(static_cast<float*>(to), elements[0]);
    }
};

inline __m256i load_units(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store_units(void* to, __m256i units) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), units);
}
/// The upper half of each unit, where it is.
inline __m256i upper_halves(__m256i units) {
    return _mm256_andnot_si256(_mm256_set1_epi32(0xFFFF), units);
}
/// The lower half of each unit, one behind the other.
inline __m128i narrow_units(__m256i units) {
    const __m256i low = _mm256_andnot_si256(_mm256_set1_epi32(-0x10000), units);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08));
}

/// What the two-byte types share: a part of a vector goes through a whole one on the stack.
template <class Whole>
struct TwoBytes {
    using Element = uint16_t;
    static constexpr int unit = 2;
    static constexpr bool fits_bf16 = false;
    static Vec load_part(const Element* from, int64_t n) {
        Element parts[lanes] = {};
        __builtin_memcpy(parts, from, static_cast<size_t>(n) * sizeof(Element));
        return Whole::load(parts);
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        Element parts[lanes];
        Whole::store(parts, v);
        __builtin_memcpy(to, parts, static_cast<size_t>(n) * sizeof(Element));
    }
};

struct Bf16 : TwoBytes<Bf16> {
    static constexpr bool fits_bf16 = true;
    static Vec load(const Element* from) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    static void store(Element* to, Vec v) {
        const __m256i bits = _mm256_srli_epi32(bf16_bits(v), 16);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
    }

    static void unpack(const void* from, Vec (&elements)[unit]) {
        const __m256i units = load_units(from);
        elements[0] = _mm256_castsi256_ps(_mm256_slli_epi32(units, 16));
        elements[1] = _mm256_castsi256_ps(upper_halves(units));
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        const __m256i low = _mm256_srli_epi32(bf16_bits(elements[0]), 16);
        store_units(to, _mm256_or_si256(low, upper_halves(bf16_bits(elements[1]))));
    }
};

struct F16 : TwoBytes<F16> {
    static Vec load(const Element* from) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static __m128i narrow(Vec v) {
        return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static void store(Element* to, Vec v) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(v));
    }

    static void unpack(const void* from, Vec (&elements)[unit]) {
        const __m256i units = load_units(from);
        elements[0] = _mm256_cvtph_ps(narrow_units(units));
        elements[1] = _mm256_cvtph_ps(narrow_units(_mm256_srli_epi32(units, 16)));
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        const __m256i low = _mm256_cvtepu16_epi32(narrow(elements[0]));
        const __m256i high = _mm256_cvtepu16_epi32(narrow(elements[1]));
        store_units(to, _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
    }
};

/// Only in units, of keys and values. A bfloat16 holds them all.
struct I8 {
    using Element = int8_t;
    static constexpr int unit = 4;
    static constexpr bool fits_bf16 = true;
    static void unpack(const void* from, Vec (&elements)[unit]) {
        const __m256i units = load_units(from);
        elements[0] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(units, 24), 24));
        elements[1] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(units, 16), 24));
        elements[2] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(units, 8), 24));
        elements[3] = _mm256_cvtepi32_ps(_mm256_srai_epi32(units, 24));
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        const __m256i byte = _mm256_set1_epi32(0xFF);
        const __m256i e0 = _mm256_and_si256(_mm256_cvtps_epi32(elements[0]), byte);
        const __m256i e1 = _mm256_and_si256(_mm256_cvtps_epi32(elements[1]), byte);
        const __m256i e2 = _mm256_and_si256(_mm256_cvtps_epi32(elements[2]), byte);
        const __m256i e3 = _mm256_cvtps_epi32(elements[3]);
        const __m256i low = _mm256_or_si256(e0, _mm256_slli_epi32(e1, 8));
        const __m256i high = _mm256_or_si256(_mm256_slli_epi32(e2, 16), _mm256_slli_epi32(e3, 24));
        store_units(to, _mm256_or_si256(low, high));
    }
};

#include "kernels/cpu_leaves.h"
#include "kernels/cpu_probe.h"

// ---- integers ----

constexpr int int_tile_rows = 6;
constexpr int int_few_rows = 2;
constexpr int64_t int_dot_width = 64;
constexpr int64_t int_most_dot_rows = 16;

using Ints = __m256i;

inline Ints int_broadcast(int32_t a) {
    return _mm256_set1_epi32(a);
}
inline Ints int_add(Ints a, Ints b) {
    return _mm256_add_epi32(a, b);
}
inline Ints int_load(const int32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline void int_store(int32_t* to, Ints v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
}
inline Ints load_bytes(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline Ints load_bytes_part(const void* from, int64_t n) {
    int8_t parts[32] = {};
    __builtin_memcpy(parts, from, static_cast<size_t>(n));
    return load_bytes(parts);
}
inline Ints broadcast_bytes(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
}
inline Ints low_nibbles(Ints v) {
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}
inline Ints high_nibbles(Ints v) {
    return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}
inline Vec to_floats(Ints v) {
    return _mm256_cvtepi32_ps(v);
}
inline Ints low_pairs(Ints a, Ints b) {
    return _mm256_unpacklo_epi32(a, b);
}
inline Ints high_pairs(Ints a, Ints b) {
    return _mm256_unpackhi_epi32(a, b);
}
inline Ints low_halves(Ints a, Ints b) {
    return _mm256_unpacklo_epi64(a, b);
}
inline Ints high_halves(Ints a, Ints b) {
    return _mm256_unpackhi_epi64(a, b);
}
inline void transpose(Ints (&rows)[lanes]) {
    Vec bits[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) bits[i] = _mm256_castsi256_ps(rows[i]);
    transpose(bits);
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) rows[i] = _mm256_castps_si256(bits[i]);
}
inline void store_rounded(int8_t* to, Vec v) {
    const __m256i whole = _mm256_cvtps_epi32(v);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

inline Ints widen_int8(const int8_t* from) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
/// Exponent and fraction move to the places of a float's. A subnormal number is made as 2^-6 more,
/// which is then taken away: subnormal floats would be slow.
inline Vec widen_f8(const uint8_t* from) {
    const Ints bits = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const Ints magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7F));
    const Ints sign = _mm256_slli_epi32(_mm256_xor_si256(bits, magnitude), 24);
    const Ints is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
    const Ints is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7F));
    const Ints exponent = _mm256_set1_epi32(120 << 23);
    const Ints shifted = _mm256_slli_epi32(magnitude, 20);
    const Ints raised = _mm256_and_si256(is_small, _mm256_set1_epi32(1 << 23));
    Vec v = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_add_epi32(shifted, exponent), raised));
    v = v - _mm256_and_ps(_mm256_castsi256_ps(is_small), broadcast(0x1p-6f));
    const Vec nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
    v = _mm256_blendv_ps(v, nan, _mm256_castsi256_ps(is_nan));
    return _mm256_or_ps(v, _mm256_castsi256_ps(sign));
}
template <bool high_first>
inline Ints nibbles(const uint8_t* from) {
    int32_t word;
    __builtin_memcpy(&word, from, sizeof word);
    constexpr int x = high_first ? 4 : 0;  // exchanges the nibbles of a byte
    const Ints shifts =
        _mm256_setr_epi32(0 ^ x, 4 ^ x, 8 ^ x, 12 ^ x, 16 ^ x, 20 ^ x, 24 ^ x, 28 ^ x);
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(word), shifts),
                            _mm256_set1_epi32(15));
}
inline Vec look_up(const float* table, Ints index) {
    const Vec lower = _mm256_permutevar8x32_ps(F32::load(table), index);
    const Vec upper = _mm256_permutevar8x32_ps(F32::load(table + 8), index);
    const Ints in_upper = _mm256_slli_epi32(index, 28);  // bit 3 to the sign
    return _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(in_upper));
}
inline Vec gather(const float* table, Ints index) {
    return _mm256_i32gather_ps(table, index, 4);
}

/// Sums of neighbouring 16-bit numbers, added to 32-bit sums.
inline Ints add_words(Ints words, Ints sum) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

/// maddubs takes one factor as unsigned: |w|, and x with the sign of w. A pair is at most 2 * 128 *
/// 127 and fits 16 bits.
struct Int8Dot {
    static constexpr int32_t offset = 0;
    static constexpr int64_t most_adds = 0;
    static Ints prepare(Ints w) { return w; }
    static Ints multiply_add(Ints x, Ints w, Ints sum) {
        return add_words(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), sum);
    }
    static Ints whole(Ints sum) { return sum; }
};

/// A sum that stays in its register: GCC 12 would move some of a tile's to memory and back with every
/// multiply-add, which takes longer than that.
inline Ints kept(Ints sum) {
    __asm__ volatile("" : "+x"(sum));
    return sum;
}

/// Sums stay in 16 bits: a pair is at most 2 * 15 * 127, and eight of them less than 2^15.
struct NibbleDot {
    static constexpr int64_t most_adds = 8;
    static Ints multiply_add(Ints x, Ints w, Ints sum) {
        return kept(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)));
    }
    static Ints whole(Ints sum) { return add_words(sum, _mm256_setzero_si256()); }
};

/// Numbers of int8 in 16 bits: where x and w are packed anyway, one instruction less multiplies them.
struct WideDot {
    static constexpr int64_t most_adds = 0;
    static Ints multiply_add(Ints x, Ints w, Ints sum) {
        return kept(_mm256_add_epi32(sum, _mm256_madd_epi16(x, w)));
    }
    static Ints whole(Ints sum) { return sum; }
};
struct WideWeights {
    static_assert(Int8Dot::offset == 0);  // nothing is added to the numbers here either
    using Dot = WideDot;
    using Number = int16_t;
    static constexpr int vectors = 1;
    static constexpr int64_t unit = 2 * lanes;
    static constexpr int64_t unit_bytes = 2 * lanes;
    static void load(const uint8_t* from, int64_t n, Ints (&w)[vectors]) {
        int8_t parts[unit_bytes] = {};
        if (n < unit_bytes) __builtin_memcpy(parts, from, static_cast<size_t>(n));
        const void* bytes = n < unit_bytes ? static_cast<const void*>(parts) : from;
        w[0] = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(bytes)));
    }
};

/// Sixteen bfloat16 numbers: their low and their high bytes, in both halves of a vector.
template <class To>
struct NibbleTable;
template <>
struct NibbleTable<Bf16> {
    static constexpr int64_t step = 32;
    Ints low, high;

    explicit NibbleTable(const float (&numbers)[16]) {
        const Ints first = _mm256_srli_epi32(bf16_bits(F32::load(numbers)), 16);
        const Ints second = _mm256_srli_epi32(bf16_bits(F32::load(numbers + 8)), 16);
        const Ints words = _mm256_packus_epi32(first, second);  // 0-3, 8-11; 4-7, 12-15
        const Ints bytes = _mm256_packus_epi16(_mm256_and_si256(words, _mm256_set1_epi16(255)),
                                               _mm256_srli_epi16(words, 8));
        low = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
        high = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(2, 6, 3, 7, 2, 6, 3, 7));
    }
    template <bool high_first>
    void write(const uint8_t* from, uint16_t* to) const {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        // Words 0 and 2 to the lower half, 1 and 3 to the upper, so that what is unpacked from the
        // halves ends in order.
        const Ints spread = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(bytes),
                                                        _mm256_setr_epi32(0, 2, 0, 0, 1, 3, 0, 0));
        const Ints even = high_first ? high_nibbles(spread) : low_nibbles(spread);
        const Ints odd = high_first ? low_nibbles(spread) : high_nibbles(spread);
        const Ints index = _mm256_unpacklo_epi8(even, odd);
        const Ints low_bytes = _mm256_shuffle_epi8(low, index);
        const Ints high_bytes = _mm256_shuffle_epi8(high, index);
        int_store(reinterpret_cast<int32_t*>(to), _mm256_unpacklo_epi8(low_bytes, high_bytes));
        int_store(reinterpret_cast<int32_t*>(to + 16), _mm256_unpackhi_epi8(low_bytes, high_bytes));
    }
};

/// A product rounded to bfloat16 has the same fraction whatever the exponent of the F8_E4M3. So
/// sixteen products are enough: those with the eight subnormals, and those with the eight fractions at
/// exponent 0, to whose exponent that of a number is added.
template <class To>
struct F8Times;
template <>
struct F8Times<Bf16> {
    static constexpr int64_t step = 32;
    Vec scale;
    NibbleTable<Bf16> products;

    explicit F8Times(float factor) : scale(broadcast(factor)), products(products_with(factor)) {}
    /// No product may be subnormal or infinite.
    static bool takes(float factor) {
        const float magnitude = __builtin_fabsf(factor);
        return magnitude >= 0x1p-100f && magnitude <= 0x1p100f;
    }
    void write(const uint8_t* from, uint16_t* to) const {
        const Ints bits = load_bytes(from);
        const Ints magnitude = _mm256_and_si256(bits, _mm256_set1_epi8(0x7F));
        const Ints nan = _mm256_cmpeq_epi8(magnitude, _mm256_set1_epi8(0x7F));
        if (_mm256_movemask_epi8(nan) != 0) {
            for (int i = 0; i < step; i += 8) Bf16::store(to + i, widen_f8(from + i) * scale);
            return;
        }
        // 8 bytes 0 and 2 to the lower half, 1 and 3 to the upper: what is unpacked ends in
        // order.
        const Ints spread = _mm256_permute4x64_epi64(bits, 0b11011000);
        const Ints exponent = _mm256_and_si256(spread, _mm256_set1_epi8(0x78));
        const Ints is_small = _mm256_cmpeq_epi8(exponent, _mm256_setzero_si256());
        const Ints fraction = _mm256_and_si256(spread, _mm256_set1_epi8(7));
        const Ints index =
            _mm256_or_si256(fraction, _mm256_andnot_si256(is_small, _mm256_set1_epi8(8)));
        const Ints low = _mm256_shuffle_epi8(products.low, index);
        const Ints high = _mm256_shuffle_epi8(products.high, index);
        const auto store = [&](Ints product, Ints shifted, uint16_t* out) {
            const Ints sign = _mm256_and_si256(shifted, _mm256_set1_epi16(-0x8000));
            const Ints raise =
                _mm256_and_si256(_mm256_srli_epi16(shifted, 4), _mm256_set1_epi16(0x780));
            int_store(reinterpret_cast<int32_t*>(out),
                      _mm256_xor_si256(_mm256_add_epi16(product, raise), sign));
        };
        const Ints none = _mm256_setzero_si256();
        store(_mm256_unpacklo_epi8(low, high), _mm256_unpacklo_epi8(none, spread), to);
        store(_mm256_unpackhi_epi8(low, high), _mm256_unpackhi_epi8(none, spread), to + 16);
    }

  private:
    static NibbleTable<Bf16> products_with(float factor) {
        float values[16];
        for (int i = 0; i < 8; ++i) {
            values[i] = static_cast<float>(i) * 0x1p-9f * factor;
            values[8 + i] = static_cast<float>(8 + i) * 0x1p-10f * factor;  // exponent 0 of 2^-7
        }
        return NibbleTable<Bf16>(values);
    }
};

#include "kernels/cpu_decode.h"
#include "kernels/cpu_int.h"

/// The multiply-add of 32 pairs of int8: products of neighbours to 16 bits, those to 32 bits, and
/// their sum.
struct Int8Steps {
    using Factor = __m256i;
    using Sum = __m256i;
    static constexpr int64_t multiply_adds = 32;
    static Factor factor(int one) { return _mm256_set1_epi8(static_cast<char>(one)); }
    static Sum start(int zero) { return _mm256_set1_epi32(zero); }
    static Sum step(Sum sum, Factor& one) {
        __asm__("" : "+x"(one));  // the products cannot be taken out of the loop
        const __m256i pairs = _mm256_maddubs_epi16(one, one);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static double total(Sum sum) {
        int32_t parts[8];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), sum);
        double all = 0.0;
        for (const int32_t part : parts) all += part;
        return all;
    }
};

}  // namespace
}  // namespace mllama::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace mllama::cpu {

const Table* avx2_table() {
    static const Table table = [] {
        Table made = with_probes(make_table("avx2"), Peak<Int8Steps>::loop());
        made.decode = decode;
        made.integers = make_int_product();
        return made;
    }();
    return &table;
}

}  // namespace mllama::cpu

#else

namespace mllama::cpu {

const Table* avx2_table() {
    return nullptr;
}

}  // namespace mllama::cpu

#endif
