// The portable table: the leaves over Eigen's packets, which are whatever SIMD the target has by
// default (SSE2, NEON, AltiVec, ...; plain floats where it has none). Eigen's own matrix product is
// not used: the order of its sums depends on the sizes.
#include <Eigen/Core>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cpu.h"
#include "kernels/decode.h"

// A packet as a template argument: its vector attribute is part of the type's alignment, which is kept.
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace mllama::cpu {
namespace {

using Traits = Eigen::internal::packet_traits<float>;
using Vec = Traits::type;
using Mask = Vec;  // all bits of a lane, or none

constexpr int64_t lanes = Traits::size;
constexpr int tile_rows = 3;
constexpr int panel_vectors = 4;
constexpr int registers = 16;
constexpr int few_rows_max = 4;
constexpr int few_columns_vectors = 4;
constexpr int64_t prefetch_blocks = 16;  // how far ahead rows are asked for, in vectors

Vec broadcast(float a) {
    return Eigen::internal::pset1<Vec>(a);
}
Vec fma(Vec a, Vec b, Vec c) {
    return Eigen::internal::pmadd(a, b, c);
}
Mask less(Vec a, Vec b) {
    return Eigen::internal::pcmp_lt(a, b);
}
Vec select(Mask mask, Vec a, Vec b) {
    return Eigen::internal::pselect(mask, a, b);
}
Vec largest(Vec a, Vec b) {
    return select(less(b, a), a, b);
}
Vec smallest(Vec a, Vec b) {
    return select(less(a, b), a, b);
}

struct F32 {
    using Element = float;
    static Vec load(const Element* from) { return Eigen::internal::ploadu<Vec>(from); }
    static void store(Element* to, Vec v) { Eigen::internal::pstoreu(to, v); }
    static Vec load_part(const Element* from, int64_t n) {
        float parts[lanes] = {};
        for (int64_t i = 0; i < n; ++i) parts[i] = from[i];
        return load(parts);
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        float parts[lanes];
        store(parts, v);
        for (int64_t i = 0; i < n; ++i) to[i] = parts[i];
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

/// The two-byte types, through the scalar conversions of dtype.h.
template <float (*widen)(uint16_t), uint16_t (*narrow)(float)>
struct TwoBytes {
    using Element = uint16_t;
    static Vec load(const Element* from) {
        float parts[lanes];
        for (int64_t i = 0; i < lanes; ++i) parts[i] = widen(from[i]);
        return F32::load(parts);
    }
    static Vec load_part(const Element* from, int64_t n) {
        float parts[lanes] = {};
        for (int64_t i = 0; i < n; ++i) parts[i] = widen(from[i]);
        return F32::load(parts);
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        float parts[lanes];
        F32::store(parts, v);
        for (int64_t i = 0; i < n; ++i) to[i] = narrow(parts[i]);
    }
    static void store(Element* to, Vec v) { store_part(to, v, lanes); }

    static constexpr int unit = 2;
    static constexpr bool fits_bf16 = false;
    static void unpack(const void* from, Vec (&elements)[unit]) {
        Element units[lanes * unit];
        float parts[unit][lanes];
        std::memcpy(units, from, sizeof units);
        for (int64_t i = 0; i < lanes * unit; ++i) parts[i % unit][i / unit] = widen(units[i]);
        for (int64_t e = 0; e < unit; ++e) elements[e] = F32::load(parts[e]);
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        Element units[lanes * unit];
        float parts[unit][lanes];
        for (int64_t e = 0; e < unit; ++e) F32::store(parts[e], elements[e]);
        for (int64_t i = 0; i < lanes * unit; ++i) units[i] = narrow(parts[i % unit][i / unit]);
        std::memcpy(to, units, sizeof units);
    }
};

/// Written so that the compiler sees whole vectors.
struct Bf16 : TwoBytes<bf16_to_f32, f32_to_bf16> {
    static constexpr bool fits_bf16 = true;
    static Vec load(const Element* from) {
        std::array<uint32_t, lanes> bits;
        for (size_t i = 0; i < lanes; ++i) bits[i] = uint32_t{from[i]} << 16;
        return F32::load(std::bit_cast<std::array<float, lanes>>(bits).data());
    }
    static void unpack(const void* from, Vec (&elements)[unit]) {
        std::array<uint16_t, lanes * unit> units;
        std::array<uint32_t, lanes> first, second;
        std::memcpy(units.data(), from, sizeof units);
        for (size_t i = 0; i < lanes; ++i) {
            first[i] = uint32_t{units[2 * i]} << 16;
            second[i] = uint32_t{units[2 * i + 1]} << 16;
        }
        elements[0] = F32::load(std::bit_cast<std::array<float, lanes>>(first).data());
        elements[1] = F32::load(std::bit_cast<std::array<float, lanes>>(second).data());
    }
};

using F16 = TwoBytes<f16_to_f32, f32_to_f16>;

/// Applies a scalar function to every lane.
template <class Function>
Vec each(Vec v, Function function) {
    float parts[lanes];
    F32::store(parts, v);
    for (float& part : parts) part = function(part);
    return F32::load(parts);
}

/// Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded to the nearest whole number.
/// |a| < 2^22.
Vec nearest(Vec a) {
    const Vec magic = broadcast(12582912.0f);
    return (a + magic) - magic;
}

float power_of_two(int32_t n) {
    return std::bit_cast<float>((n + 127) << 23);
}

/// In two steps, since 2^n itself may be out of range where a * 2^n is not. A NaN in n must not
/// reach the conversion.
Vec times_power_of_two(Vec a, Vec n) {
    float first[lanes], second[lanes];
    F32::store(first, n);
    for (int64_t i = 0; i < lanes; ++i) {
        const int32_t whole = std::isnan(first[i]) ? 0 : static_cast<int32_t>(first[i]);
        first[i] = power_of_two(whole / 2);
        second[i] = power_of_two(whole - whole / 2);
    }
    return a * F32::load(first) * F32::load(second);
}

Vec upper_bits(Vec a) {
    return each(
        a, [](float x) { return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0xFFFFF000u); });
}

Vec round_bf16(Vec a) {
    return each(a, [](float x) { return bf16_to_f32(f32_to_bf16(x)); });
}

void transpose(Vec (&rows)[lanes]) {
    Eigen::internal::PacketBlock<Vec, lanes> block;
    for (int64_t i = 0; i < lanes; ++i) block.packet[i] = rows[i];
    Eigen::internal::ptranspose(block);
    for (int64_t i = 0; i < lanes; ++i) rows[i] = block.packet[i];
}

// Quads through memory where a packet is wider than one.
constexpr int64_t quad_count = lanes / 4;

void transpose_quads(Vec (&rows)[quad_count]) {
    if constexpr (quad_count > 1) {
        float from[quad_count][lanes], to[quad_count][lanes];
        for (int64_t i = 0; i < quad_count; ++i) F32::store(from[i], rows[i]);
        for (int64_t i = 0; i < quad_count; ++i) {
            for (int64_t j = 0; j < lanes; ++j) to[j / 4][i * 4 + j % 4] = from[i][j];
        }
        for (int64_t i = 0; i < quad_count; ++i) rows[i] = F32::load(to[i]);
    }
}

Vec broadcast_quad(const float* from) {
    float parts[lanes];
    for (int64_t i = 0; i < lanes; ++i) parts[i] = from[i % 4];
    return F32::load(parts);
}

Vec quads_by_place(Vec v) {
    if constexpr (quad_count == 1) return v;
    float from[lanes], to[lanes];
    F32::store(from, v);
    for (int64_t i = 0; i < lanes; ++i) to[i % 4 * quad_count + i / 4] = from[i];
    return F32::load(to);
}

void prefetch(const void*) {}

/// Only in units, of keys and values. A bfloat16 holds them all.
struct I8 {
    using Element = int8_t;
    static constexpr int unit = 4;
    static constexpr bool fits_bf16 = true;
    static void unpack(const void* from, Vec (&elements)[unit]) {
        Element units[lanes * unit];
        float parts[unit][lanes];
        std::memcpy(units, from, sizeof units);
        for (int64_t i = 0; i < lanes * unit; ++i) parts[i % unit][i / unit] = units[i];
        for (int64_t e = 0; e < unit; ++e) elements[e] = F32::load(parts[e]);
    }
    static void pack(const Vec (&elements)[unit], void* to) {
        Element units[lanes * unit];
        float parts[unit][lanes];
        for (int64_t e = 0; e < unit; ++e) F32::store(parts[e], elements[e]);
        for (int64_t i = 0; i < lanes * unit; ++i) {
            units[i] = static_cast<Element>(parts[i % unit][i / unit]);
        }
        std::memcpy(to, units, sizeof units);
    }
};

#include "kernels/cpu_leaves.h"
#include "kernels/cpu_probe.h"

// ---- integers: the compiler's own vectors, which it makes of what the target has ----

constexpr int int_tile_rows = 4;
constexpr int int_few_rows = 2;
constexpr int64_t int_dot_width = 4 * lanes;
constexpr int64_t int_most_dot_rows = 4;

using Ints [[gnu::vector_size(4 * lanes)]] = int32_t;
using Words [[gnu::vector_size(4 * lanes)]] = int16_t;  // of neighbouring bytes

template <class Function>
Ints each_lane(Function function) {
    Ints result{};
    for (int64_t i = 0; i < lanes; ++i) result[i] = function(i);
    return result;
}

Ints int_broadcast(int32_t a) {
    return Ints{} + a;
}
Ints int_add(Ints a, Ints b) {
    return a + b;
}
Ints load_bytes_part(const void* from, int64_t n) {
    Ints result{};
    std::memcpy(&result, from, static_cast<size_t>(n));
    return result;
}
Ints load_bytes(const void* from) {
    Ints result;
    std::memcpy(&result, from, sizeof result);
    return result;
}
Ints int_load(const int32_t* from) {
    return load_bytes(from);
}
void int_store(int32_t* to, Ints v) {
    std::memcpy(to, &v, sizeof v);
}
Ints broadcast_bytes(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return int_broadcast(four);
}
Ints low_nibbles(Ints v) {
    return v & 0x0F0F0F0F;
}
Ints high_nibbles(Ints v) {
    return v >> 4 & 0x0F0F0F0F;
}
Vec to_floats(Ints v) {
    float floats[lanes];
    for (int64_t i = 0; i < lanes; ++i) floats[i] = static_cast<float>(v[i]);
    return F32::load(floats);
}
/// Place i of each quad of the result is place from[i] % 4 of a, or of b where from[i] is above 3.
Ints shuffled(Ints a, Ints b, const int (&from)[4]) {
    return each_lane([&](int64_t i) {
        const int place = from[i % 4];
        const int64_t at = i / 4 * 4 + place % 4;
        return place < 4 ? a[at] : b[at];
    });
}
Ints low_pairs(Ints a, Ints b) {
    return shuffled(a, b, {0, 4, 1, 5});
}
Ints high_pairs(Ints a, Ints b) {
    return shuffled(a, b, {2, 6, 3, 7});
}
Ints low_halves(Ints a, Ints b) {
    return shuffled(a, b, {0, 1, 4, 5});
}
Ints high_halves(Ints a, Ints b) {
    return shuffled(a, b, {2, 3, 6, 7});
}
void transpose(Ints (&rows)[lanes]) {
    const auto from = std::to_array(rows);
    for (size_t i = 0; i < lanes; ++i) {
        rows[i] = each_lane([&](int64_t j) { return from[static_cast<size_t>(j)][i]; });
    }
}
Ints widen_int8(const int8_t* from) {
    return each_lane([&](int64_t i) { return int32_t{from[i]}; });
}
Vec widen_f8(const uint8_t* from) {
    float floats[lanes];
    for (int64_t i = 0; i < lanes; ++i) floats[i] = f8_e4m3_to_f32(from[i]);
    return F32::load(floats);
}
template <bool high_first>
Ints nibbles(const uint8_t* from) {
    return each_lane([&](int64_t i) {
        const bool high = (i % 2 == 1) != high_first;
        return (high ? from[i / 2] >> 4 : from[i / 2]) & 15;
    });
}
Vec gather(const float* table, Ints index) {
    float floats[lanes];
    for (int64_t i = 0; i < lanes; ++i) floats[i] = table[index[i]];
    return F32::load(floats);
}
Vec look_up(const float* table, Ints index) {
    return gather(table, index);
}
void store_rounded(int8_t* to, Vec v) {
    float floats[lanes];
    F32::store(floats, nearest(v));
    for (int64_t i = 0; i < lanes; ++i) to[i] = static_cast<int8_t>(floats[i]);
}

/// The lower and the upper byte of every word, with its sign.
Words lower(Ints v) {
    return std::bit_cast<Words>(v) << 8 >> 8;
}
Words upper(Ints v) {
    return std::bit_cast<Words>(v) >> 8;
}

/// Two products of int8 fit 16 bits: at most 2 * 128 * 127.
struct Int8Dot {
    static constexpr int64_t most_adds = 0;
    static constexpr int32_t offset = 0;
    static Ints prepare(Ints w) { return w; }
    static Ints multiply_add(Ints x, Ints w, Ints sum) {
        const Words words = lower(x) * lower(w) + upper(x) * upper(w);
        const auto pairs = std::bit_cast<Ints>(words);
        return sum + (pairs << 16 >> 16) + (pairs >> 16);
    }
    static Ints whole(Ints sum) { return sum; }
};

using NibbleDot = Int8Dot;  // a nibble is an int8 too

#include "kernels/cpu_decode.h"

struct Int8Weights;
using WideWeights = Int8Weights;

#include "kernels/cpu_int.h"

/// int8 products as the compiler makes them of a plain loop.
struct PlainInt8 {
    static constexpr int64_t length = 256;

    static double run(int64_t rounds, int one) {
        int8_t x[length], y[length];
        for (int64_t i = 0; i < length; ++i) x[i] = y[i] = static_cast<int8_t>(one);
        double total = 0.0;
        for (int64_t round = 0; round < rounds; ++round) {
            const int8_t* from = x;
            __asm__ volatile("" : "+r"(from) : : "memory");  // x may be another one every round
            int32_t sum = 0;
            for (int64_t i = 0; i < length; ++i) sum += from[i] * y[i];
            total += sum;
        }
        return total;
    }
};

}  // namespace

const Table* portable_table() {
    static const Table table = [] {
        Table made =
            with_probes(make_table("portable"), PeakLoop{PlainInt8::length, PlainInt8::run});
        made.decode = decode;
        made.integers = make_int_product();
        return made;
    }();
    return &table;
}

}  // namespace mllama::cpu
