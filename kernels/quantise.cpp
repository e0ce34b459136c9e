#include "kernels/quantise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/cpu.h"

namespace mllama::cpu {

namespace portable_quantise {
namespace {
constexpr int64_t width = 4;
#include "kernels/quantise_loops.h"
}  // namespace
}  // namespace portable_quantise

#if defined(__x86_64__)

// Target regions instead of -m flags for the file, as in cpu_avx2.cpp.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace avx2_quantise {
namespace {
constexpr int64_t width = 8;
#include "kernels/quantise_loops.h"
}  // namespace
}  // namespace avx2_quantise
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif
namespace avx512_quantise {
namespace {
constexpr int64_t width = 16;
#include "kernels/quantise_loops.h"
}  // namespace
}  // namespace avx512_quantise
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

namespace {

struct Loops {
    decltype(&portable_quantise::errors_of) errors_of;
    decltype(&portable_quantise::round_to_levels) round_to_levels;
};

/// Those of the table in use: MLLAMA_ISA chooses here as well.
Loops loops_in_use() {
#if defined(__x86_64__)
    if (isa_name().starts_with("avx512")) {
        return {avx512_quantise::errors_of, avx512_quantise::round_to_levels};
    }
    if (isa_name().starts_with("avx2")) {
        return {avx2_quantise::errors_of, avx2_quantise::round_to_levels};
    }
#endif
    return {portable_quantise::errors_of, portable_quantise::round_to_levels};
}

constexpr int64_t parts = portable_quantise::parts;
constexpr int clippings = 16;  ///< tried for each sign: 1, ..., 1/4 of the largest magnitude
constexpr int most_candidates = 2 * (clippings + 1);
constexpr int neighbours = 6;  ///< scales of bfloat16 on each side of the best of those, tried then

/// One group: its numbers brought to magnitudes around 1 by a power of two, which is exact, so that
/// no square overflows or vanishes; filled up with zeros to whole vectors.
class Group {
  public:
    Group(const Loops& loops, Levels levels, int64_t group_size)
        : loops_(loops),
          low_(static_cast<float>(levels.low)),
          high_(static_cast<float>(levels.high)),
          x_(static_cast<size_t>(round_up(group_size, parts))),
          importance_(x_.size()),
          q_(x_.size()) {}

    /// Finds the best scale for w (n) and importance (n) or null. Every w is finite.
    void fit(const float* w, const float* importance, int64_t n) {
        take(w, importance, n);
        scale_ = 0.0f;
        if (extreme_ == 0.0f) return;
        for (int step = 0; step <= clippings; ++step) {
            const float clipped = extreme_ * (1.0f - 0.75f * static_cast<float>(step) / clippings);
            propose(clipped * up_ / high_);
            // Where there is a level more below zero than above, the extreme may go there.
            if (-low_ > high_) propose(clipped * up_ / low_);
        }
        keep_best();
        if (scale_ == 0.0f) return;
        const uint16_t best = f32_to_bf16(scale_ * up_);
        for (int step = 1; step <= neighbours; ++step) {
            propose(bf16_to_f32(static_cast<uint16_t>(best + step)));
            propose(bf16_to_f32(static_cast<uint16_t>(best - step)));
        }
        keep_best();
    }

    /// q (n) and the scale that `fit` found.
    float write(int8_t* q, int64_t n) {
        if (scale_ == 0.0f) {
            std::fill_n(q, n, int8_t{0});
            return 1.0f;
        }
        loops_.round_to_levels(x_.data(), static_cast<int64_t>(x_.size()), scale_, low_, high_,
                               q_.data());
        std::copy_n(q_.begin(), n, q);
        return scale_ * up_;
    }

  private:
    void take(const float* w, const float* importance, int64_t n) {
        const auto [lowest, highest] = std::minmax_element(w, w + n);
        const float extreme = -*lowest > *highest ? *lowest : *highest;
        const int exponent = extreme == 0.0f ? 0 : std::clamp(std::ilogb(extreme), -126, 126);
        up_ = std::ldexp(1.0f, exponent);
        down_ = std::ldexp(1.0f, -exponent);
        extreme_ = extreme * down_;
        for (int64_t i = 0; i < n; ++i) x_[static_cast<size_t>(i)] = w[i] * down_;
        std::fill(x_.begin() + n, x_.end(), 0.0f);
        const float largest =
            importance == nullptr ? 0.0f : *std::max_element(importance, importance + n);
        if (largest == 0.0f) {
            std::fill(importance_.begin(), importance_.end(), 1.0f);
            return;
        }
        for (int64_t i = 0; i < n; ++i) {
            importance_[static_cast<size_t>(i)] = importance[i] / largest;
        }
    }

    /// A scale (of w) to be tried, rounded as it will be stored. Not one that is too small to have an
    /// inverse, or so large that a product with a level overflows.
    void propose(float scale) {
        const float stored = bf16_to_f32(f32_to_bf16(scale));
        if (!std::isfinite(stored * low_) || !(std::abs(stored) >= 0x1p-126f)) return;
        candidates_[static_cast<size_t>(count_++)] = stored * down_;
    }

    /// Of what was proposed and what there is.
    void keep_best() {
        std::array<float, most_candidates> errors;
        loops_.errors_of(x_.data(), importance_.data(), static_cast<int64_t>(x_.size()),
                         candidates_.data(), count_, low_, high_, errors.data());
        for (int k = 0; k < count_; ++k) {
            const float error = errors[static_cast<size_t>(k)];
            if (scale_ != 0.0f && error >= error_) continue;
            scale_ = candidates_[static_cast<size_t>(k)];
            error_ = error;
        }
        count_ = 0;
    }

    Loops loops_;
    float low_, high_;
    std::vector<float> x_, importance_;  // whole vectors
    std::vector<int8_t> q_;
    float extreme_ = 0.0f;                           // of x_: the largest magnitude, with its sign
    std::array<float, most_candidates> candidates_;  // scales of x_
    int count_ = 0;
    float up_ = 1.0f, down_ = 1.0f;      // powers of two: w = x * up, x = w * down
    float scale_ = 0.0f, error_ = 0.0f;  // of x_, the best so far; 0: none
};

}  // namespace

int64_t quantise_row(const float* w, const float* importance, int64_t cols, int64_t group_size,
                     Levels levels, int8_t* q, uint16_t* scale) {
    const float* bad = std::find_if(w, w + cols, [](float x) { return !std::isfinite(x); });
    if (bad != w + cols) return bad - w;
    Group group(loops_in_use(), levels, group_size);
    for (int64_t begin = 0; begin < cols; begin += group_size) {
        const int64_t n = std::min(group_size, cols - begin);
        group.fit(w + begin, importance == nullptr ? nullptr : importance + begin, n);
        scale[begin / group_size] = f32_to_bf16(group.write(q + begin, n));
    }
    return -1;
}

}  // namespace mllama::cpu
