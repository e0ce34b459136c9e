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
    int64_t max_new_tokens = 512;        ///< the file's, if it gives one

    /// Reads DIR/generation_config.json; without that file, the defaults of transformers. Errors:
    /// Error naming file and key.
    static GenerationConfig load(const std::string& checkpoint_dir, const ModelConfig& config);
};

}  // namespace mllama
