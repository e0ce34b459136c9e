// What tests of drawn answers need: the same answers by drawing from all logits, and a checkpoint in
// which tokens are equally probable.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>

#include "io/safetensors.h"
#include "mllama/mllama.h"
#include "tests/goldens.h"
#include "tests/temporary_directory.h"

namespace mllama::test {

/// A copy of the golden a_published in which three neighbouring rows of lm_head are one: the logits of
/// three tokens are equal.
inline std::string checkpoint_with_ties(const TemporaryDirectory& folder) {
    const std::string from = models_folder() + "/a_published", to = folder.file("ties");
    std::filesystem::copy(from, to);
    const SafetensorsFile file = SafetensorsFile::open(from + "/model.safetensors");
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const TensorInfo& info : file.tensors()) {
        Tensor tensor = file.get(info);
        if (info.name == "language_model.lm_head.weight") {
            tensor = tensor.clone();
            for (int64_t row = 0; row < tensor.rows(); ++row)
                tensor.rows(row, row + 1).copy_from(tensor.rows(row / 3 * 3, row / 3 * 3 + 1));
        }
        tensors.emplace_back(info.name, tensor);
    }
    write_safetensors(to + "/model.safetensors", tensors);
    return to;
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
        const std::vector<int64_t> before = text;
        text.push_back(
            sampler.next({logits.data<float>(), static_cast<size_t>(logits.cols())}, before));
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
