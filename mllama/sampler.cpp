#include "mllama/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/error.h"
#include "tensor/ops.h"

namespace mllama {
namespace {

void check_range(const char* name, double value, bool good, const char* expected) {
    if (!good) fail(name, ": expected ", expected, ", found ", value);
}

}  // namespace

void SamplingParams::check() const {
    check_range("temperature", temperature, std::isfinite(temperature) && temperature > 0,
                "a number above 0");
    check_range("top_k", static_cast<double>(top_k), top_k >= 0, "0 (all tokens) or more");
    check_range("top_p", top_p, top_p > 0 && top_p <= 1, "a number above 0 and at most 1");
    check_range("min_p", min_p, min_p >= 0 && min_p <= 1, "a number in [0, 1]");
    check_range("repetition_penalty", repetition_penalty,
                std::isfinite(repetition_penalty) && repetition_penalty > 0, "a number above 0");
}

int64_t SamplingParams::largest_wanted(int64_t vocab_size) const {
    const bool decide = !greedy && repetition_penalty == 1.0 && top_k > 0 && top_k < most_top_k;
    return decide ? std::min(top_k + 1, vocab_size) : 0;
}

int64_t Sampler::next(std::span<const float> logits, std::span<const int64_t> history) {
    take(logits);
    if (params_.repetition_penalty != 1.0) penalise(history);
    if (params_.greedy) return most_probable();
    scale();
    choose_candidates();
    return draw();
}

std::optional<int64_t> Sampler::next_of_largest(std::span<const float> logits,
                                                std::span<const int64_t> ids) {
    const auto k = static_cast<size_t>(params_.top_k);
    if (!std::isfinite(logits.front())) return {};
    const auto at = [&](size_t i) { return scaled(logits[i], logits.front()); };
    // The one behind the k-th must be below it. (Or there is none: all tokens are candidates.)
    const bool all = logits.size() <= k;
    if (!all && !(at(k) < at(k - 1))) return {};
    candidates_.clear();
    for (size_t i = 0; i < std::min(k, logits.size()); ++i) candidates_.push_back({at(i), ids[i]});
    // As choose_candidates leaves them: sums are rounded in the same order.
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    return draw();
}

/// One of candidates_.
int64_t Sampler::draw() {
    keep_top_p_and_min_p();
    const double point = uniform();
    double sum = 0;
    for (size_t i = 0; i < candidates_.size(); ++i) {
        sum += probabilities_[i];
        if (point < sum) return candidates_[i].id;
    }
    return candidates_.back().id;  // the sum fell short of 1 by rounding
}

void Sampler::take(std::span<const float> logits) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    logits_.assign(logits.begin(), logits.end());
    bool finite = false;
    for (size_t id = 0; id < logits_.size(); ++id) {
        const float logit = logits_[id];
        if (!(logit < infinity)) {
            fail("the logits hold ", std::isnan(logit) ? "a NaN" : "an infinity",
                 ", first at token ", id, ": are the weights whole?");
        }
        finite = finite || logit > -infinity;
    }
    if (!finite) fail("the logits hold no finite value: are the weights whole?");
}

void Sampler::penalise(std::span<const int64_t> history) {
    penalised_.assign(logits_.size(), false);
    const auto penalty = static_cast<float>(params_.repetition_penalty);
    for (const int64_t id : history) {
        const auto place = static_cast<size_t>(id);
        if (place >= logits_.size() || penalised_[place]) continue;
        penalised_[place] = true;
        float& logit = logits_[place];
        logit = logit < 0 ? logit * penalty : logit / penalty;
    }
}

int64_t Sampler::most_probable() const {
    return std::max_element(logits_.begin(), logits_.end()) - logits_.begin();
}

/// Only differences count: with the largest at 0, no temperature makes a logit overflow upwards.
float Sampler::scaled(float logit, float largest) const {
    return static_cast<float>((logit - largest) / params_.temperature);
}

void Sampler::scale() {
    const float largest = logits_[static_cast<size_t>(most_probable())];
    if (!std::isfinite(largest)) fail("repetition_penalty: it leaves no token that is possible");
    for (float& logit : logits_) logit = scaled(logit, largest);
}

/// By a heap of the k largest so far, the least in front: most logits are below it and cost one
/// comparison.
float Sampler::kth_largest(size_t k) {
    const auto kth = logits_.begin() + static_cast<int64_t>(k);
    largest_.assign(logits_.begin(), kth);
    std::make_heap(largest_.begin(), largest_.end(), std::greater<>());
    for (auto logit = kth; logit != logits_.end(); ++logit) {
        if (*logit <= largest_.front()) continue;
        std::pop_heap(largest_.begin(), largest_.end(), std::greater<>());
        largest_.back() = *logit;
        std::push_heap(largest_.begin(), largest_.end(), std::greater<>());
    }
    return largest_.front();
}

/// The k most probable tokens; ties with the k-th stay, as in the reference.
void Sampler::choose_candidates() {
    const auto k = static_cast<size_t>(params_.top_k);
    const bool all = k == 0 || k >= logits_.size();
    const float least = all ? -std::numeric_limits<float>::infinity() : kth_largest(k);
    candidates_.clear();
    for (size_t id = 0; id < logits_.size(); ++id) {
        if (logits_[id] >= least) candidates_.push_back({logits_[id], static_cast<int64_t>(id)});
    }
}

/// How many of the first `sorted` candidates stay, whose probabilities are probabilities_ / sum.
size_t Sampler::kept_of(size_t sorted, double sum) const {
    double covered = 0;  // probability of the candidates in front of this one
    for (size_t i = 0; i < sorted; ++i) {
        const bool outside = covered >= params_.top_p || probabilities_[i] < params_.min_p;
        if (i > 0 && outside) return i;
        covered += probabilities_[i] / sum;
    }
    return sorted;
}

/// Candidates are put in order from the front, more and more of them, until some are not kept: of a
/// whole vocabulary few are, as a rule.
void Sampler::keep_top_p_and_min_p() {
    const auto more_probable = [](const Candidate& a, const Candidate& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    };
    double sum = 0;
    for (const Candidate& candidate : candidates_)
        sum += std::exp(static_cast<double>(candidate.logit));
    size_t sorted = 0, kept = 0;
    while (kept == sorted && sorted < candidates_.size()) {
        const auto begin = candidates_.begin() + static_cast<int64_t>(sorted);
        sorted = std::min(candidates_.size(), std::max<size_t>(256, 8 * sorted));
        const auto end = candidates_.begin() + static_cast<int64_t>(sorted);
        if (end != candidates_.end())
            std::nth_element(begin, end, candidates_.end(), more_probable);
        std::sort(begin, end, more_probable);
        probabilities_.clear();
        for (auto i = candidates_.begin(); i != end; ++i)
            probabilities_.push_back(std::exp(static_cast<double>(i->logit)));
        kept = kept_of(sorted, sum);
    }
    candidates_.resize(kept);
    probabilities_.resize(kept);
    const double left = std::accumulate(probabilities_.begin(), probabilities_.end(), 0.0);
    for (double& probability : probabilities_) probability /= left;
}

/// splitmix64 (Steele, Lea, Flood 2014): 53 bits of each output make a number in [0, 1).
double Sampler::uniform() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
}

}  // namespace mllama
