// The softmax of attention over one chunk of keys, from scores to the packed probabilities that the
// next product takes. Like cpu_tile.h, this file goes into the unnamed namespace and the target
// region of a table's source, once for each kind of packed element (Packed: Element, degree,
// store(p, v)).
//
// Logits are taken in units of ln 2, so that exp(logit) = 2^x: the scale of attention and log2(e)
// are one factor, and the exponential needs no reduction but the split of x into a whole number and
// a rest.

/// 2^x for x <= 0: 2^n (1 + r p(r)), n whole, |r| <= 1/2. Relative error 3e-6 (degree 4) or 2e-9
/// (degree 6), beside rounding. Below 2^-150 it is 0; a NaN stays a NaN.
template <int degree>
Vec power_of_two_of(Vec x) {
    x = largest(broadcast(-151.0f), x);
    const Vec n = nearest(x);
    const Vec r = x - n;
    Vec p;
    if constexpr (degree == 4) {
        p = broadcast(0.009582853f);
        p = fma(p, r, broadcast(0.055906426f));
        p = fma(p, r, broadcast(0.240240991f));
        p = fma(p, r, broadcast(0.693124175f));
    } else {
        static_assert(degree == 6);
        p = broadcast(0.00015353362f);
        p = fma(p, r, broadcast(0.0013398875f));
        p = fma(p, r, broadcast(0.009618437f));
        p = fma(p, r, broadcast(0.055503324f));
        p = fma(p, r, broadcast(0.240226477f));
        p = fma(p, r, broadcast(0.693147182f));
    }
    return times_power_of_two(fma(p, r, broadcast(1.0f)), n);
}

/// Scores that no range shows become -inf, up to whole lanes.
inline void hide_unseen(const ScoreRow& row, int64_t padded) {
    int64_t done = 0;  // scores before this are as they shall be
    for (int64_t r = 0; r < row.range_count; ++r) {
        const int64_t begin = row.ranges[r].begin - row.first_key;
        for (; done < begin && done < row.n; ++done) row.scores[done] = -__builtin_inff();
        const int64_t end = at_most(row.ranges[r].end - row.first_key, row.n);
        if (end > done) done = end;
    }
    for (; done < padded; ++done) row.scores[done] = -__builtin_inff();
}

/// scores = factor * scores + log2(e) * key_bias over n keys. Where a score is -inf, it stays so.
inline void add_key_bias(float* scores, const float* key_bias, float factor, int64_t n) {
    const Vec log2_e = broadcast(1.44269504f);
    for (int64_t i = 0; i < n; i += lanes) {
        const Vec bias = load<F32>(key_bias + i, n - i) * log2_e;
        store<F32>(scores + i, fma(load<F32>(scores + i, n - i), broadcast(factor), bias), n - i);
    }
}

/// scores = scores * key_scales over n keys.
inline void scale_scores(float* scores, const float* key_scales, int64_t n) {
    for (int64_t i = 0; i < n; i += lanes) {
        const Vec scaled = load<F32>(scores + i, n - i) * load<F32>(key_scales + i, n - i);
        store<F32>(scores + i, scaled, n - i);
    }
}

/// The largest score; a NaN counts for nothing. n is a multiple of lanes.
inline float largest_score(const float* scores, int64_t n) {
    Vec lane_max = broadcast(-__builtin_inff());
    for (int64_t i = 0; i < n; i += lanes) lane_max = largest(F32::load(scores + i), lane_max);
    float parts[lanes];
    F32::store(parts, lane_max);
    float max = parts[0];
    for (const float part : parts) max = part > max ? part : max;
    return max;
}

/// See Product::softmax.
template <class Packed>
SoftmaxPart softmax(const ScoreRow& row, void* packed) {
    const int64_t padded = round_up(row.n, lanes);
    if (row.key_scales != nullptr) scale_scores(row.scores, row.key_scales, row.n);
    float factor = row.scale * 1.44269504f;  // log2(e)
    if (row.key_bias != nullptr) {
        add_key_bias(row.scores, row.key_bias, factor, row.n);
        factor = 1.0f;
    }
    hide_unseen(row, padded);
    const float max = largest_score(row.scores, padded) * factor;

    // A NaN among the scores is not in max; it comes out of the exponential, and is in the sum.
    const Vec shift = broadcast(max == -__builtin_inff() ? 0.0f : 0.0f - max);
    auto* to = static_cast<typename Packed::Element*>(packed);
    Vec lane_sum = broadcast(0.0f);
    for (int64_t i = 0; i < padded; i += lanes) {
        const Vec x = fma(F32::load(row.scores + i), broadcast(factor), shift);
        const Vec p = power_of_two_of<Packed::degree>(x);
        lane_sum = lane_sum + p;
        const bool scaled = row.value_scales != nullptr;
        Packed::store(to + i, scaled ? p * load<F32>(row.value_scales + i, row.n - i) : p);
    }
    return {max, static_cast<float>(sum_of_lanes(lane_sum))};
}
