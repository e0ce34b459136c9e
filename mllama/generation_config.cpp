#include "mllama/generation_config.h"

#include <filesystem>
#include <limits>

#include "io/json_object.h"

namespace mllama {
namespace {

/// What of transformers' GenerationConfig changes the answer and is not offered here, each with the
/// value that changes nothing; null changes nothing anywhere. Source: _get_logits_processor,
/// _get_stopping_criteria and get_generation_mode of transformers 4.56.2, generation/.
struct NotOffered {
    const char* key;
    Json neutral;
};

void check_not_offered(const JsonObject& json) {
    const NotOffered all[] = {
        // searching
        {"num_beams", 1},
        {"num_beam_groups", 1},
        {"num_return_sequences", 1},
        {"diversity_penalty", 0},
        {"penalty_alpha", 0},
        {"constraints", nullptr},
        {"force_words_ids", nullptr},
        {"dola_layers", nullptr},
        // changing the logits
        {"guidance_scale", 1},
        {"sequence_bias", nullptr},
        {"encoder_repetition_penalty", 1},
        {"no_repeat_ngram_size", 0},
        {"encoder_no_repeat_ngram_size", 0},
        {"bad_words_ids", nullptr},
        {"forced_bos_token_id", nullptr},
        {"forced_eos_token_id", nullptr},
        {"exponential_decay_length_penalty", nullptr},
        {"suppress_tokens", Json::array()},
        {"begin_suppress_tokens", Json::array()},
        {"typical_p", 1},
        {"epsilon_cutoff", 0},
        {"eta_cutoff", 0},
        {"watermarking_config", nullptr},
        // changing the prompt
        {"token_healing", false},
        // ending the answer, or not
        {"min_length", 0},
        {"min_new_tokens", 0},
        {"max_time", nullptr},
    };
    for (const auto& [key, neutral] : all) {
        if (json.has(key) && json.value(key) != neutral)
            json.reject(key, neutral.dump() + ", since it is not offered here");
    }
}

/// stop_strings: a text or a list of texts.
std::vector<std::string> read_stop_strings(const JsonObject& json) {
    const char* const key = "stop_strings";
    if (!json.has(key)) return {};
    const Json& value = json.value(key);
    const Json list = value.is_array() ? value : Json::array({value});
    std::vector<std::string> stop;
    for (const Json& text : list) {
        if (!text.is_string() || text.get_ref<const std::string&>().empty())
            json.reject(key, "a text or a list of texts, none of them empty");
        stop.push_back(text.get<std::string>());
    }
    return stop;
}

/// max_new_tokens and max_length: the former wins.
void read_lengths(const JsonObject& json, GenerationConfig& config) {
    constexpr int64_t most = int64_t{1} << 31;
    constexpr int64_t default_max_length = 20;  // of transformers: as good as not there
    const int64_t max_length = json.integer_or("max_length", 1, most, default_max_length);
    if (json.has("max_new_tokens")) {
        config.max_new_tokens = json.integer("max_new_tokens", 1, most);
    } else if (max_length != default_max_length) {
        config.max_length = max_length;
        config.max_new_tokens = max_length;  // never reached: the prompt counts too
    }
}

}  // namespace

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
    check_not_offered(json);
    result.stop = read_stop_strings(json);
    read_lengths(json, result);
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
