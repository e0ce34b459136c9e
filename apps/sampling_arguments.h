// The options that say how an answer is drawn and where it ends; what is not given is
// generation_config.json's.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "mllama/mllama.h"

namespace mllama {

struct SamplingArguments {
    std::optional<int64_t> max_new_tokens;
    bool greedy = false;
    std::optional<double> temperature, top_p, min_p, repetition_penalty;
    std::optional<int64_t> top_k;
    std::optional<uint64_t> seed;
    std::vector<std::string> stop;

    void add_to(CLI::App& command);
    /// The defaults with the given options put over them.
    [[nodiscard]] GenerationOptions over(GenerationOptions defaults) const;
};

}  // namespace mllama
