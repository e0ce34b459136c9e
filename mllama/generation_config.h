// generation_config.json: how the publishers of a checkpoint want it sampled, and where it stops.
#pragma once

#include <string>
#include <vector>

#include "mllama/config.h"
#include "mllama/sampler.h"

namespace mllama {

struct GenerationConfig {
    SamplingParams sampling;
    std::vector<int64_t> eos_token_ids;  ///< from the file, or else from config.json
    std::vector<std::string> stop;       ///< the file's stop_strings
    int64_t max_new_tokens = 512;        ///< the file's, if it gives one
    /// The file's max_length, if it gives no max_new_tokens: tokens of the whole text, prompt
    /// included; 0: no such limit. As in transformers, 20 stands for a file that names none; it is
    /// the default there (and means 20 new tokens, where this program's default is 512).
    int64_t max_length = 0;

    /// Reads DIR/generation_config.json; without that file, the defaults of transformers. Errors:
    /// Error naming file and key; a value that would change the answer in transformers and is not
    /// offered here (beams, no_repeat_ngram_size, suppress_tokens, ...) is one. Keys that change
    /// nothing but the way to the answer (caches, assistants, what is returned) are passed over.
    static GenerationConfig load(const std::string& checkpoint_dir, const ModelConfig& config);
};

}  // namespace mllama
