#include "mllama/generation_config.h"

#include <filesystem>
#include <limits>

#include "io/json_object.h"

namespace mllama {

GenerationConfig GenerationConfig::load(const std::string& checkpoint_dir,
                                        const ModelConfig& config) {
    GenerationConfig result;
    result.eos_token_ids = config.text.eos_token_ids;
    const std::string path = checkpoint_dir + "/generation_config.json";
    if (!std::filesystem::exists(path)) return result;

    const Json document = read_json_file(path);
    const JsonObject json(document, path);
    constexpr double huge = std::numeric_limits<double>::max();
    SamplingParams& sampling = result.sampling;
    sampling.greedy = !json.boolean_or("do_sample", false);
    sampling.temperature = json.number_or("temperature", 0, huge, sampling.temperature);
    sampling.top_k = json.integer_or("top_k", 0, int64_t{1} << 31, sampling.top_k);
    sampling.top_p = json.number_or("top_p", 0, 1, sampling.top_p);
    sampling.min_p = json.number_or("min_p", 0, 1, sampling.min_p);
    sampling.repetition_penalty =
        json.number_or("repetition_penalty", 0, huge, sampling.repetition_penalty);
    if (sampling.temperature == 0) {  // some files say "greedy" this way
        sampling.greedy = true;
        sampling.temperature = 1;
    }
    if (json.integer_or("num_beams", 1, 1 << 20, 1) != 1) {
        json.reject("num_beams", "1 (beam search is not offered)");
    }
    result.max_new_tokens =
        json.integer_or("max_new_tokens", 1, int64_t{1} << 31, result.max_new_tokens);
    if (json.has("eos_token_id")) {
        result.eos_token_ids =
            json.integers("eos_token_id", 0, config.text.embedding_rows() - 1, true);
    }
    try {
        sampling.check();
    } catch (const Error& error) {
        fail(path, ": ", error.what());
    }
    return result;
}

}  // namespace mllama
