// The portable table: the leaves over Eigen's fixed-size arrays, which the compiler turns into
// whatever SIMD the target has by default (SSE2, NEON, ...). Eigen's own matrix product is not
// used: the order of its sums depends on the sizes.
#include <Eigen/Core>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cpu.h"

namespace mllama::cpu {
namespace {

constexpr int64_t lanes = 4;
constexpr int tile_rows = 4;
constexpr int panel_vectors = 2;
constexpr int few_rows_max = 4;
constexpr int64_t prefetch_blocks = 16;  // how far ahead rows are asked for, in vectors

using Vec = Eigen::Array<float, lanes, 1>;
using Mask = Eigen::Array<bool, lanes, 1>;

Vec broadcast(float a) {
    return Vec::Constant(a);
}
Vec fma(Vec a, Vec b, Vec c) {
    return a * b + c;
}
Mask less(Vec a, Vec b) {
    return a < b;
}
Vec select(Mask mask, Vec a, Vec b) {
    return mask.select(a, b);
}
Vec largest(Vec a, Vec b) {
    return (a > b).select(a, b);
}
Vec smallest(Vec a, Vec b) {
    return (a < b).select(a, b);
}

/// Applies a scalar function to every lane.
template <class Function>
Vec each(Vec v, Function function) {
    for (int64_t i = 0; i < lanes; ++i) v[i] = function(v[i]);
    return v;
}

/// Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded to the nearest whole number.
/// |a| < 2^22.
Vec nearest(Vec a) {
    const Vec magic = broadcast(12582912.0f);
    Vec rounded = a + magic;
    return rounded - magic;
}

float power_of_two(int32_t n) {
    return std::bit_cast<float>((n + 127) << 23);
}

/// In two steps, since 2^n itself may be out of range where a * 2^n is not. A NaN in n must not
/// reach the conversion.
Vec times_power_of_two(Vec a, Vec n) {
    for (int64_t i = 0; i < lanes; ++i) {
        const int32_t whole = std::isnan(n[i]) ? 0 : static_cast<int32_t>(n[i]);
        const int32_t half = whole / 2;
        a[i] = a[i] * power_of_two(half) * power_of_two(whole - half);
    }
    return a;
}

Vec upper_bits(Vec a) {
    return each(
        a, [](float x) { return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0xFFFFF000u); });
}

Vec round_bf16(Vec a) {
    return each(a, [](float x) { return bf16_to_f32(f32_to_bf16(x)); });
}

void transpose(Vec (&rows)[lanes]) {
    Eigen::Array<float, lanes, lanes> square;
    for (int64_t i = 0; i < lanes; ++i) square.col(i) = rows[i];
    for (int64_t i = 0; i < lanes; ++i) rows[i] = square.row(i).transpose();
}

void prefetch(const void*) {}

struct F32 {
    using Element = float;
    static Vec load(const Element* from) { return Eigen::Map<const Vec>(from); }
    static void store(Element* to, Vec v) { Eigen::Map<Vec>{to} = v; }
    static Vec load_part(const Element* from, int64_t n) {
        Vec v = Vec::Zero();
        for (int64_t i = 0; i < n; ++i) v[i] = from[i];
        return v;
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        for (int64_t i = 0; i < n; ++i) to[i] = v[i];
    }
};

/// The two-byte types, through the scalar conversions of dtype.h.
template <float (*widen)(uint16_t), uint16_t (*narrow)(float)>
struct Half {
    using Element = uint16_t;
    static Vec load_part(const Element* from, int64_t n) {
        Vec v = Vec::Zero();
        for (int64_t i = 0; i < n; ++i) v[i] = widen(from[i]);
        return v;
    }
    static void store_part(Element* to, Vec v, int64_t n) {
        for (int64_t i = 0; i < n; ++i) to[i] = narrow(v[i]);
    }
    static Vec load(const Element* from) { return load_part(from, lanes); }
    static void store(Element* to, Vec v) { store_part(to, v, lanes); }
};

using Bf16 = Half<bf16_to_f32, f32_to_bf16>;
using F16 = Half<f16_to_f32, f32_to_f16>;

#include "kernels/cpu_leaves.h"

}  // namespace

const Table* portable_table() {
    static const Table table = make_table("portable");
    return &table;
}

}  // namespace mllama::cpu
