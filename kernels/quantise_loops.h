// The loops of the search for a scale. quantise.cpp includes this file once for each instruction
// set, in a namespace and target region of its own, after defining `width`, the floats of a vector
// there; so this is no ordinary header: it has no `#pragma once` and includes nothing.
//
// Whatever the width, sums are kept in 16 parts which are then added pairwise, and products are not
// fused with sums (-ffp-contract=off): the results are the same to the bit everywhere.
//
// x, importance: n elements, n a multiple of 16.

using Vec = float __attribute__((vector_size(4 * width), aligned(4), may_alias));
constexpr int64_t parts = 16;
constexpr int64_t vectors = parts / width;

inline Vec vector_at(const float* from) {
    return *reinterpret_cast<const Vec*>(from);
}

inline float sum_of(const Vec* sums) {
    float all[parts];
    for (int64_t v = 0; v < vectors; ++v) *reinterpret_cast<Vec*>(all + v * width) = sums[v];
    for (int64_t half = parts / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) all[i] += all[i + half];
    }
    return all[0];
}

/// The level nearest to x * inverse, ties to even. Adding 1.5 * 2^23 leaves no bits for fractions.
inline Vec level(Vec x, float inverse, float low, float high) {
    constexpr float no_fraction = 12582912.0f;
    Vec v = x * inverse;
    v = v < low ? Vec{} + low : v;
    v = v > high ? Vec{} + high : v;
    return (v + no_fraction) - no_fraction;
}

/// error[k] = sum importance * (x - scale[k] * q)^2, for each of `count` scales
void errors_of(const float* x, const float* importance, int64_t n, const float* scale, int count,
               float low, float high, float* error) {
    for (int k = 0; k < count; ++k) {
        const float inverse = 1.0f / scale[k];
        Vec sums[vectors] = {};
        for (int64_t i = 0; i < n; i += parts) {
#pragma GCC unroll 4
            for (int64_t v = 0; v < vectors; ++v) {
                const Vec numbers = vector_at(x + i + v * width);
                const Vec rest = numbers - level(numbers, inverse, low, high) * scale[k];
                sums[v] += vector_at(importance + i + v * width) * rest * rest;
            }
        }
        error[k] = sum_of(sums);
    }
}

/// q = the levels of x
void round_to_levels(const float* x, int64_t n, float scale, float low, float high, int8_t* q) {
    const float inverse = 1.0f / scale;
    for (int64_t i = 0; i < n; i += width) {
        const Vec v = level(vector_at(x + i), inverse, low, high);
        for (int64_t lane = 0; lane < width; ++lane) q[i + lane] = static_cast<int8_t>(v[lane]);
    }
}
