#include "mllama/sampler.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"

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

int64_t Sampler::next(std::span<const float> logits, std::span<const int64_t> history) {
    candidates_.clear();
    bool finite = false;
    for (size_t id = 0; id < logits.size(); ++id) {
        if (std::isnan(logits[id]))
            fail("the logits hold a NaN, first at token ", id, ": are the weights whole?");
        finite = finite || std::isfinite(logits[id]);
        candidates_.push_back({logits[id], static_cast<int64_t>(id)});
    }
    if (!finite) fail("the logits hold no finite value: are the weights whole?");
    if (params_.repetition_penalty != 1.0) penalise(history);

    const auto more_probable = [](const Candidate& a, const Candidate& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    };
    if (params_.greedy)
        return std::min_element(candidates_.begin(), candidates_.end(), more_probable)->id;

    // Only differences count: with the largest at 0, no temperature makes a logit overflow upwards.
    const float largest =
        std::min_element(candidates_.begin(), candidates_.end(), more_probable)->logit;
    for (Candidate& candidate : candidates_) {
        candidate.logit -= largest;
        candidate.logit = static_cast<float>(candidate.logit / params_.temperature);
    }
    keep_top_k();
    std::sort(candidates_.begin(), candidates_.end(), more_probable);
    keep_top_p_and_min_p();

    const double point = uniform();
    double sum = 0;
    for (size_t i = 0; i < candidates_.size(); ++i) {
        sum += probabilities_[i];
        if (point < sum) return candidates_[i].id;
    }
    return candidates_.back().id;  // the sum fell short of 1 by rounding
}

void Sampler::penalise(std::span<const int64_t> history) {
    penalised_.assign(candidates_.size(), false);
    const auto penalty = static_cast<float>(params_.repetition_penalty);
    for (const int64_t id : history) {
        const auto place = static_cast<size_t>(id);
        if (place >= candidates_.size() || penalised_[place]) continue;
        penalised_[place] = true;
        float& logit = candidates_[place].logit;
        logit = logit < 0 ? logit * penalty : logit / penalty;
    }
}

void Sampler::keep_top_k() {
    const auto k = static_cast<size_t>(params_.top_k);
    if (k == 0 || k >= candidates_.size()) return;
    const auto kth = candidates_.begin() + static_cast<int64_t>(k) - 1;
    std::nth_element(candidates_.begin(), kth, candidates_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
    const float least = kth->logit;  // ties with the k-th stay, as in the reference
    std::erase_if(candidates_, [least](const Candidate& c) { return c.logit < least; });
}

void Sampler::keep_top_p_and_min_p() {
    const float largest = candidates_.front().logit;
    double sum = 0;
    probabilities_.clear();
    for (const Candidate& candidate : candidates_) {
        probabilities_.push_back(std::exp(static_cast<double>(candidate.logit) - largest));
        sum += probabilities_.back();
    }
    size_t kept = 0;
    double covered = 0;  // probability of the candidates in front of this one
    while (kept < candidates_.size()) {
        const double probability = probabilities_[kept] / sum;
        const bool outside = covered >= params_.top_p || probabilities_[kept] < params_.min_p;
        if (kept > 0 && outside) break;
        covered += probability;
        ++kept;
    }
    candidates_.resize(kept);
    probabilities_.resize(kept);
    for (double& probability : probabilities_) probability /= covered * sum;
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
