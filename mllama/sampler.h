// From logits to the next token.
// Source: the order and the rules of the logits processors in generation/logits_process.py of
// transformers 4.56.2.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace mllama {

/// Defaults are those of transformers' GenerationConfig.
struct SamplingParams {
    bool greedy = true;        ///< the most probable token, no draw
    double temperature = 1.0;  ///< logits are divided by it; > 0
    int64_t top_k = 50;        ///< only the k most probable tokens; 0: all
    double top_p =
        1.0;  ///< only the fewest most probable tokens that together have this probability
    double min_p =
        0.0;  ///< only tokens of at least this share of the most probable one's probability
    double repetition_penalty =
        1.0;  ///< logits of tokens in the text: divided by it if positive, multiplied if negative
    uint64_t seed = 0;

    /// Whether the next token is the one with the largest logit, whatever stands in front.
    [[nodiscard]] bool takes_the_largest() const { return greedy && repetition_penalty == 1.0; }

    /// How many of the largest logits next_of_largest asks for; 0: it takes all to know the next token.
    [[nodiscard]] int64_t largest_wanted(int64_t vocab_size) const;

    /// Errors: Error naming the value that is out of range.
    void check() const;
};

class Sampler {
  public:
    explicit Sampler(const SamplingParams& params) : params_(params), state_(params.seed) {}

    /// logits (vocab_size); history: the tokens of the text so far, prompt included (ids behind the
    /// vocabulary, like the image's, have no logit and are passed over). The same seed and logits
    /// give the same tokens. Errors: Error if the logits hold a NaN, +infinity or nothing finite.
    int64_t next(std::span<const float> logits, std::span<const int64_t> history);

    /// The same token from the largest_wanted() logits alone and their ids, in order of size. None, and
    /// nothing drawn, if the others are needed: some of them might equal the k-th, or it is next() that has
    /// an error to report.
    std::optional<int64_t> next_of_largest(std::span<const float> logits,
                                           std::span<const int64_t> ids);

  private:
    struct Candidate {
        float logit;
        int64_t id;
    };

    void take(std::span<const float> logits);
    void penalise(std::span<const int64_t> history);
    [[nodiscard]] int64_t most_probable() const;
    [[nodiscard]] float scaled(float logit, float largest) const;
    void scale();
    int64_t draw();
    [[nodiscard]] float kth_largest(size_t k);
    void choose_candidates();
    void keep_top_p_and_min_p();
    [[nodiscard]] size_t kept_of(size_t sorted, double sum) const;
    double uniform();

    SamplingParams params_;
    uint64_t state_;
    std::vector<float> logits_;          // (vocab_size), as they are being changed
    std::vector<float> largest_;         // a heap, for kth_largest
    std::vector<Candidate> candidates_;  // after keep_top_p_and_min_p in order
    std::vector<double> probabilities_;  // of candidates_, once they are kept
    std::vector<bool> penalised_;        // by id, for penalise
};

}  // namespace mllama
