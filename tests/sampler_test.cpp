#include "mllama/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "kernels/error.h"

using namespace mllama;

namespace {

/// Shares of each token in many draws.
std::map<int64_t, double> shares(SamplingParams params, const std::vector<float>& logits,
                                 int draws = 20000) {
    params.greedy = false;
    Sampler sampler(params);
    std::map<int64_t, double> result;
    for (int i = 0; i < draws; ++i) result[sampler.next(logits, {})] += 1.0 / draws;
    return result;
}

const std::vector<float> four = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};

}  // namespace

TEST_CASE("sampler_greedy_takes_the_first_of_the_largest") {
    Sampler sampler(SamplingParams{});
    CHECK(sampler.next(std::vector<float>{1, 5, 5, -2}, {}) == 1);
    CHECK(sampler.next(std::vector<float>{-std::numeric_limits<float>::infinity(), -7}, {}) == 1);
}

TEST_CASE("sampler_refuses_logits_that_are_not_numbers") {
    Sampler sampler(SamplingParams{});
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float inf = std::numeric_limits<float>::infinity();
    CHECK_THROWS_AS(sampler.next(std::vector<float>{1, nan, 0}, {}), Error);
    CHECK_THROWS_AS(sampler.next(std::vector<float>{-inf, -inf}, {}), Error);
}

TEST_CASE("sampler_draws_follow_the_probabilities") {
    auto drawn = shares({.top_k = 0, .seed = 1}, four);
    CHECK(drawn[0] == doctest::Approx(0.5).epsilon(0.05));
    CHECK(drawn[1] == doctest::Approx(0.3).epsilon(0.05));
    CHECK(drawn[2] == doctest::Approx(0.15).epsilon(0.1));
    CHECK(drawn[3] == doctest::Approx(0.05).epsilon(0.2));
}

TEST_CASE("sampler_temperature_sharpens") {
    auto drawn = shares({.temperature = 0.5, .top_k = 0, .seed = 2}, four);
    const double sum = 0.25 + 0.09 + 0.0225 + 0.0025;
    CHECK(drawn[0] == doctest::Approx(0.25 / sum).epsilon(0.05));
}

TEST_CASE("sampler_top_k_keeps_k_and_ties") {
    auto drawn = shares({.top_k = 2, .seed = 3}, four);
    CHECK(drawn.size() == 2);
    CHECK(drawn[1] == doctest::Approx(0.375).epsilon(0.05));
    CHECK(shares({.top_k = 1, .seed = 3}, {1, 2, 2, 0}).size() == 2);
}

TEST_CASE("sampler_top_p_keeps_the_token_that_crosses_it") {
    CHECK(shares({.top_k = 0, .top_p = 0.5, .seed = 4}, four).size() == 1);
    CHECK(shares({.top_k = 0, .top_p = 0.51, .seed = 4}, four).size() == 2);
    CHECK(shares({.top_k = 0, .top_p = 0.001, .seed = 4}, four).size() == 1);
}

TEST_CASE("sampler_min_p_is_relative_to_the_best") {
    CHECK(shares({.top_k = 0, .min_p = 0.31, .seed = 5}, four).size() == 2);
    CHECK(shares({.top_k = 0, .min_p = 0.29, .seed = 5}, four).size() == 3);
}

TEST_CASE("sampler_repetition_penalty_divides_positive_and_multiplies_negative_logits_once") {
    Sampler sampler(SamplingParams{.repetition_penalty = 2.0});
    CHECK(sampler.next(std::vector<float>{3, 2}, std::vector<int64_t>{0, 0}) == 1);
    CHECK(sampler.next(std::vector<float>{5, 2}, std::vector<int64_t>{0, 0}) == 0);
    CHECK(sampler.next(std::vector<float>{-1, -1.5}, std::vector<int64_t>{0}) == 1);
    // the image token has no logit
    CHECK(sampler.next(std::vector<float>{3, 2}, std::vector<int64_t>{2, 128256}) == 0);
}

TEST_CASE("sampler_same_seed_same_draws") {
    const SamplingParams params{.greedy = false, .seed = 11};
    Sampler a(params);
    Sampler b(params);
    Sampler other(SamplingParams{.greedy = false, .seed = 12});
    int different = 0;
    for (int i = 0; i < 200; ++i) {
        const int64_t drawn = a.next(four, {});
        CHECK(drawn == b.next(four, {}));
        if (drawn != other.next(four, {})) ++different;
    }
    CHECK(different > 0);
}

TEST_CASE("sampling_params_out_of_range_are_named") {
    CHECK_THROWS_WITH_AS(SamplingParams{.temperature = 0}.check(), doctest::Contains("temperature"),
                         Error);
    CHECK_THROWS_WITH_AS(SamplingParams{.top_p = 1.5}.check(), doctest::Contains("top_p"), Error);
    CHECK_THROWS_WITH_AS(SamplingParams{.min_p = -1}.check(), doctest::Contains("min_p"), Error);
    CHECK_THROWS_WITH_AS(SamplingParams{.top_k = -1}.check(), doctest::Contains("top_k"), Error);
    const SamplingParams nan_penalty{.repetition_penalty = std::nan("")};
    CHECK_THROWS_WITH_AS(nan_penalty.check(), doctest::Contains("repetition_penalty"), Error);
}

TEST_CASE("sampler_tiny_temperature_is_greedy") {
    for (const double temperature : {1e-10, 1e-40, 1e-300}) {
        Sampler sampler(SamplingParams{.greedy = false, .temperature = temperature, .seed = 3});
        CHECK(sampler.next(std::vector<float>{20, 30, 29.5, -4}, {}) == 1);
    }
}
