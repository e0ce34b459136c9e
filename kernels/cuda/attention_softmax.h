// The online softmax (Milakov & Gimelshein 2018) of attention's kernels for many queries, of the two
// rows whose scores a lane holds: c of mma.h and warpgroup.h, elements 0 and 1 of the one, 2 and 3
// of the other; the four lanes of a quad hold a row together.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma.h"

namespace mllama::cuda::tile {

/// Of a row's keys so far.
struct Softmax {
    float sum[2] = {};                                ///< of 2^(x - max), a lane's part of it
    float max[2] = {minus_infinity, minus_infinity};  ///< about the largest, times `factor` a logit
};

/// What the scores of a step do to the rows.
struct Raised {
    float shift[2];       ///< is subtracted from the logits of each row
    float correction[2];  ///< what was summed so far is to be multiplied by
    bool any;             ///< a correction of any row of the warp is not 1
};

/// The largest of a row's scores.
template <int n>
__device__ float largest(const float (&scores)[n][4], int row) {
    float max = minus_infinity;
    for (const auto& of : scores) max = fmaxf(max, fmaxf(of[2 * row], of[2 * row + 1]));
    return row_max(max);
}

/// Takes the largest scores into account; factor * score is a logit in units of ln 2.
template <int n>
__device__ Raised raise_max(float factor, const float (&scores)[n][4], Softmax& softmax) {
    constexpr float slack = 8;  // exponents up to this are as exact: most steps correct nothing
    Raised raised{};
    bool any = false;
    for (int row = 0; row < 2; ++row) {
        float& max = softmax.max[row];
        const float found = largest(scores, row);
        // Of the row's own numbers alone: a row never depends on others of its warp.
        const bool raise = found > max && !((found - max) * factor <= slack);
        const float old = max;
        if (raise) max = found;
        raised.shift[row] = shift_of(max * factor);
        raised.correction[row] = raise ? exp2_fast(old * factor - raised.shift[row]) : 1.0f;
        softmax.sum[row] *= raised.correction[row];
        any = any || raise;
    }
    raised.any = __any_sync(whole_warp, any) != 0;
    return raised;
}

/// What was summed so far, corrected.
template <int n>
__device__ void correct(const Raised& raised, float (&out)[n][4]) {
    for (auto& part : out) {
        for (int i = 0; i < 4; ++i) part[i] *= raised.correction[i / 2];
    }
}

/// A score to 2^(x - max), which the sum takes in.
__device__ inline void take_in(float factor, const Raised& raised, int row, float& score,
                               Softmax& softmax) {
    score = exp2_fast(fmaf(score, factor, -raised.shift[row]));
    softmax.sum[row] += score;
}

/// What a row's sums are to be multiplied by in the end; 0 if it sees no key.
__device__ inline float last_factor(float sum) {
    sum = row_sum(sum);
    return sum == 0.0f ? 0.0f : 1.0f / sum;
}

}  // namespace mllama::cuda::tile
