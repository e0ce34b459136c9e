#include "mllama/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "kernels/error.h"
#include "kernels/reference.h"

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

/// What next() is to draw, by its rules read plainly: everything is sorted. numbers: uniform ones.
int64_t drawn_plainly(const SamplingParams& params, const std::vector<float>& logits,
                      double number) {
    struct Token {
        float logit;
        int64_t id;
    };
    const float largest = *std::max_element(logits.begin(), logits.end());
    std::vector<Token> tokens;
    for (const float logit : logits) {
        const auto scaled = static_cast<float>((logit - largest) / params.temperature);
        tokens.push_back({scaled, static_cast<int64_t>(tokens.size())});
    }
    std::stable_sort(tokens.begin(), tokens.end(),
                     [](const Token& a, const Token& b) { return a.logit > b.logit; });
    const auto k = static_cast<size_t>(params.top_k);
    if (k > 0 && k < tokens.size()) {
        const float least = tokens[k - 1].logit;
        std::erase_if(tokens, [&](const Token& token) { return token.logit < least; });
    }
    double sum = 0, covered = 0;
    for (const Token& token : tokens) sum += std::exp(double{token.logit});
    size_t kept = 0;
    while (kept < tokens.size()) {
        const double weight = std::exp(double{tokens[kept].logit});
        if (kept > 0 && (covered >= params.top_p || weight < params.min_p)) break;
        covered += weight / sum;
        ++kept;
    }
    double behind = 0;
    for (size_t i = 0; i < kept; ++i) {
        behind += std::exp(double{tokens[i].logit}) / sum / covered;
        if (number < behind) return tokens[i].id;
    }
    return tokens[kept - 1].id;
}

/// The numbers of a seed: splitmix64, as sampler.cpp has it.
double next_number(uint64_t& state) {
    state += 0x9E3779B97F4A7C15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
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
    CHECK_THROWS_AS(sampler.next(std::vector<float>{1, inf, 0}, {}), Error);
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

TEST_CASE("sampler_draws_what_the_rules_read_plainly_draw") {
    std::mt19937 random(3);
    std::vector<float> logits(3000);
    for (float& logit : logits)  // many ties, and some that cannot be
        logit = random() % 7 == 0 ? -std::numeric_limits<float>::infinity()
                                  : static_cast<float>(random() % 200) / 16.0f;
    for (const int64_t top_k : {0, 1, 50, 400, 3000, 5000}) {
        for (const double top_p : {0.05, 0.5, 0.9, 0.9999, 1.0}) {
            for (const double min_p : {0.0, 0.001, 0.3}) {
                for (const double temperature : {0.3, 1.0, 3.0}) {
                    const SamplingParams params{false, temperature, top_k, top_p, min_p, 1.0, 5};
                    Sampler sampler(params);
                    uint64_t state = params.seed;
                    for (int i = 0; i < 10; ++i) {
                        CHECK(sampler.next(logits, {}) ==
                              drawn_plainly(params, logits, next_number(state)));
                    }
                }
            }
        }
    }
}

TEST_CASE("sampler_draws_the_same_from_the_largest_logits_alone") {
    std::mt19937 random(4);
    const int64_t vocab_size = 3000;
    std::vector<float> logits(vocab_size);
    int decided = 0, undecided = 0;
    for (const unsigned steps : {200u, 100'000'000u}) {  // many ties, hardly any
        for (float& logit : logits)
            logit = static_cast<float>(random() % steps) * 12.0f / static_cast<float>(steps);
        for (const int64_t top_k : {1, 2, 50, 400, 1000, 2999, 3000, 5000}) {
            for (const double top_p : {0.5, 0.9, 1.0}) {
                for (const double temperature : {5e-324, 0.3, 3.0, 1e44}) {
                    const SamplingParams params{false, temperature, top_k, top_p, 0.001, 1.0, 5};
                    const int64_t wanted = params.largest_wanted(vocab_size);
                    CHECK(wanted == (top_k <= 1000 ? top_k + 1 : 0));
                    if (wanted == 0) continue;
                    std::vector<float> largest(static_cast<size_t>(wanted));
                    std::vector<int64_t> ids(largest.size());
                    reference::top_k(logits.data(), 1, vocab_size, wanted, largest.data(),
                                     ids.data());
                    Sampler from_all(params), from_largest(params);
                    for (int i = 0; i < 10; ++i) {
                        std::optional<int64_t> id = from_largest.next_of_largest(largest, ids);
                        ++(id ? decided : undecided);
                        if (!id) id = from_largest.next(logits, {});
                        CHECK(*id == from_all.next(logits, {}));
                    }
                }
            }
        }
    }
    CHECK(decided > 100);
    CHECK(undecided > 100);

    // Numbers that differ, but not once the temperature has divided them.
    const std::vector<float> near = {12.0f, 1e-8f, 0.0f};
    const std::vector<int64_t> order = {0, 1, 2};
    Sampler sampler(SamplingParams{.greedy = false, .temperature = 2.0, .top_k = 2});
    CHECK(!sampler.next_of_largest(near, order));
}

TEST_CASE("sampler_wants_all_logits_where_the_largest_do_not_decide") {
    CHECK(SamplingParams{.greedy = true}.largest_wanted(421) == 0);
    CHECK(SamplingParams{.greedy = false, .repetition_penalty = 1.1}.largest_wanted(421) == 0);
    CHECK(SamplingParams{.greedy = false, .top_k = 0}.largest_wanted(421) == 0);
    CHECK(SamplingParams{.greedy = false, .top_k = 421}.largest_wanted(421) == 421);
    CHECK(SamplingParams{.greedy = false, .top_k = 1023}.largest_wanted(1'000'000) == 1024);
    CHECK(SamplingParams{.greedy = false, .top_k = 1024}.largest_wanted(1'000'000) == 0);

    // What next() refuses is left to it.
    const float infinity = std::numeric_limits<float>::infinity();
    Sampler sampler(SamplingParams{.greedy = false, .top_k = 1});
    const std::vector<int64_t> ids = {3, 1};
    CHECK(!sampler.next_of_largest(std::vector<float>{std::nanf(""), 2.0f}, ids));
    CHECK(!sampler.next_of_largest(std::vector<float>{infinity, 2.0f}, ids));
    CHECK(!sampler.next_of_largest(std::vector<float>{-infinity, -infinity}, ids));
    CHECK(!sampler.next_of_largest(std::vector<float>{2.0f, 2.0f}, ids));
    CHECK(sampler.next_of_largest(std::vector<float>{2.0f, 1.0f}, ids) == 3);
    Sampler of_all(SamplingParams{.greedy = false, .top_k = 50});  // more than there are
    CHECK(!of_all.next_of_largest(std::vector<float>{std::nanf(""), 2.0f}, ids));
    CHECK(!of_all.next_of_largest(std::vector<float>{infinity, 2.0f}, ids));
    CHECK(!of_all.next_of_largest(std::vector<float>{-infinity, -infinity}, ids));
    CHECK(of_all.next_of_largest(std::vector<float>{2.0f, -infinity}, ids) == 3);
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
