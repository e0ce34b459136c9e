// What tests of drawn answers need: the same answers by drawing from all logits, and a checkpoint in
// which tokens are equally probable.
#pragma once

#include <doctest/doctest.h>

#include "mllama/mllama.h"
#include "tests/goldens.h"

namespace mllama::test {

/// A copy of the golden a_published in which three neighbouring rows of lm_head are one: the logits of
/// three tokens are equal.
inline std::string checkpoint_with_ties(const TemporaryDirectory& folder) {
    const std::string directory = copy_of_golden(folder, "a_published");
    const std::string name = "language_model.lm_head.weight";
    Tensor rows = SafetensorsFile::open(directory + "/model.safetensors").get(name).clone();
    for (int64_t row = 0; row < rows.rows(); ++row) {
        const int64_t first = row / 3 * 3;
        if (row > first) rows.rows(row, row + 1).copy_from(rows.rows(first, first + 1));
    }
    replace_in_golden(directory, name, rows);
    return directory;
}

/// The tokens that `params` draw behind a text without pictures, each from the logits of all tokens.
inline std::vector<int64_t> drawn_from_all_logits(const Model& model, std::vector<int64_t> text,
                                                  const SamplingParams& params, size_t tokens) {
    Sampler sampler(params);
    Sequence sequence = model.new_sequence();
    std::vector<int64_t> drawn;
    std::span<const int64_t> fed = text;
    while (drawn.size() < tokens) {
        const SequenceInput input{&sequence, fed, 1};
        const Tensor logits = model.forward({&input, 1});
        text.push_back(
            sampler.next({logits.data<float>(), static_cast<size_t>(logits.cols())}, text));
        drawn.push_back(text.back());
        fed = std::span<const int64_t>(text).last(1);
    }
    return drawn;
}

/// Checks that a batch draws, token for token, what each of its texts draws from all logits.
inline void check_drawn_answers(const Mllama& mllama, const SamplingParams& sampling,
                                int64_t tokens) {
    CAPTURE(sampling.top_k);
    CAPTURE(sampling.repetition_penalty);
    const std::vector<Prompt> prompts = {{{1, 5, 9, 2}, {}}, {{1, 7}, {}}, {{1, 3, 4, 6, 8}, {}}};
    GenerationOptions options;
    options.max_new_tokens = tokens;
    options.sampling = sampling;
    const std::vector<Completion> found = mllama.generate(prompts, options, {});
    for (size_t i = 0; i < prompts.size(); ++i) {
        SamplingParams params = sampling;
        params.seed += i;
        CHECK(found[i].tokens == drawn_from_all_logits(mllama.model(), prompts[i].ids, params,
                                                       static_cast<size_t>(tokens)));
    }
}

}  // namespace mllama::test
