// Rounding a row of weights to few levels: w[col] ~ q[col] * scale[col / group_size], q whole
// numbers. The scale of each group is searched for, so that the squared error is small.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace mllama::cpu {

/// The whole numbers that q may be.
struct Levels {
    int low = 0;
    int high = 0;
};

/// 8 bits: without -128, so that a product of two numbers fits where their signs are moved.
constexpr Levels int8_levels{-127, 127};
/// 4 bits: all of them. A negative scale then lets the longer side serve either sign.
constexpr Levels int4_levels{-8, 7};

/// w (cols) -> q (cols) and scale (ceil(cols / group_size)) bf16, chosen so that the sum of
/// importance[col] * (w[col] - q[col] * scale)^2 over a group is small: the best of scales that clip
/// the group's largest magnitude to between a quarter and all of it, then of the scales of bfloat16
/// around that. Never worse than the scale that clips nothing.
/// importance (cols) f32, finite and not negative, or null: all the same, as in a group where all
/// are 0.
///
/// Scales are finite and never 0; a group of zeros, or of numbers too small for a scale to exist,
/// has q 0 and scale 1; q * scale never overflows. Every w must be finite: returns the first column
/// that is not, or -1. The result is the same to the bit on all instruction sets.
int64_t quantise_row(const float* w, const float* importance, int64_t cols, int64_t group_size,
                     Levels levels, int8_t* q, uint16_t* scale);

}  // namespace mllama::cpu
