// config.json and generation_config.json: what is read, and that every wrong value is named.
#include "mllama/config.h"

#include <doctest/doctest.h>

#include "io/json.h"
#include "mllama/generation_config.h"
#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

Json good_config() {
    return Json::parse(R"({
        "model_type": "mllama", "image_token_index": 300,
        "vision_config": {"hidden_size": 32, "attention_heads": 4, "num_hidden_layers": 3, "num_global_layers": 1,
            "intermediate_size": 64, "image_size": 28, "patch_size": 7, "max_num_tiles": 4, "norm_eps": 1e-3,
            "hidden_act": "gelu", "intermediate_layers_indices": [0, 2], "vision_output_dim": 96},
        "text_config": {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 80, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
            "rope_theta": 10000, "cross_attention_layers": [3, 1], "eos_token_id": [7, 9], "hidden_act": "silu",
            "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                             "original_max_position_embeddings": 64}}})");
}

ModelConfig load(const Json& json) {
    const TemporaryDirectory directory;
    directory.write("config.json", json.dump());
    return ModelConfig::load(directory.path());
}

}  // namespace

TEST_CASE("config_reads_what_the_file_says") {
    const ModelConfig c = load(good_config());
    CHECK(c.image_token_id == 300);
    CHECK(c.vision.num_attention_heads == 4);
    CHECK(c.vision.num_patches() == 17);
    CHECK(c.vision.padded_patches() == 24);
    CHECK(c.vision.supported_aspect_ratios.size() == 8);
    CHECK(c.vision.num_aspect_ratio_ids() == 9);
    CHECK(c.text.head_dim() == 12);
    CHECK(c.text.is_cross_attention(1));
    CHECK(!c.text.is_cross_attention(2));
    CHECK(c.text.embedding_rows() == 308);
    CHECK(c.text.eos_token_ids == std::vector<int64_t>{7, 9});
    CHECK(c.text.rope.type == RopeConfig::Type::llama3);
}

TEST_CASE("config_other_key_names_mean_the_same") {
    Json json = good_config();
    Json& vision = json["vision_config"];
    vision["num_attention_heads"] = vision["attention_heads"];
    vision.erase("attention_heads");
    json["image_token_id"] = json["image_token_index"];
    json.erase("image_token_index");
    json["text_config"]["eos_token_id"] = 7;
    json["text_config"].erase("rope_scaling");
    const ModelConfig c = load(json);
    CHECK(c.vision.num_attention_heads == 4);
    CHECK(c.image_token_id == 300);
    CHECK(c.text.eos_token_ids == std::vector<int64_t>{7});
    CHECK(c.text.rope.type == RopeConfig::Type::standard);
}

TEST_CASE("config_every_wrong_value_is_an_error_that_names_its_key") {
    struct Wrong {
        const char* pointer;
        Json value;
        const char* named;
    };
    const std::vector<Wrong> wrongs = {
        {"/model_type", "llama", "model_type"},
        {"/quantization_config", {{"quant_method", "gptq"}}, "quantization_config"},
        {"/image_token_index", 1000000, "image_token_index"},
        {"/vision_config", 3, "vision_config"},
        {"/vision_config/hidden_size", 0, "hidden_size"},
        {"/vision_config/hidden_size", -5, "hidden_size"},
        {"/vision_config/hidden_size", "32", "hidden_size"},
        {"/vision_config/hidden_size", 33, "hidden_size"},
        {"/vision_config/hidden_size", 1e30, "hidden_size"},
        {"/vision_config/attention_heads", 0, "attention_heads"},
        {"/vision_config/hidden_act", "tanhshrink", "hidden_act"},
        {"/vision_config/hidden_act", 1, "hidden_act"},
        {"/vision_config/patch_size", 29, "patch_size"},
        {"/vision_config/num_channels", 4, "num_channels"},
        {"/vision_config/intermediate_layers_indices", {0, 3}, "intermediate_layers_indices"},
        {"/vision_config/intermediate_layers_indices", {0, -1}, "intermediate_layers_indices"},
        {"/vision_config/vision_output_dim", 95, "vision_output_dim"},
        {"/vision_config/supported_aspect_ratios", {{1, 5}}, "supported_aspect_ratios"},
        {"/vision_config/supported_aspect_ratios", {{1}}, "supported_aspect_ratios"},
        {"/vision_config/supported_aspect_ratios", {1, 2}, "supported_aspect_ratios"},
        {"/vision_config/max_num_tiles", 0, "max_num_tiles"},
        {"/vision_config/max_num_tiles", 3, "supported_aspect_ratios"},
        {"/vision_config/norm_eps", -1, "norm_eps"},
        {"/text_config/vocab_size", nullptr, "vocab_size"},
        {"/text_config/num_key_value_heads", 3, "num_key_value_heads"},
        {"/text_config/num_attention_heads", 16, "hidden_size"},
        {"/text_config/cross_attention_layers", {4}, "cross_attention_layers"},
        {"/text_config/cross_attention_layers", {1, 1}, "cross_attention_layers"},
        {"/text_config/tie_word_embeddings", true, "tie_word_embeddings"},
        {"/text_config/rope_scaling/rope_type", "yarn", "rope_type"},
        {"/text_config/rope_scaling/factor", nullptr, "factor"},
        {"/text_config/rope_scaling/high_freq_factor", 1, "high_freq_factor"},
        {"/text_config/rope_theta", "big", "rope_theta"},
        {"/text_config/rope_parameters", {{"rope_type", "llama3"}}, "rope_parameters"},
        {"/text_config/attention_bias", true, "attention_bias"},
        {"/text_config/mlp_bias", true, "mlp_bias"},
        {"/text_config/head_dim", 99, "head_dim"},
        {"/text_config/hidden_act", "silu2", "hidden_act"},
        {"/text_config/eos_token_id", {1.5}, "eos_token_id"},
    };
    for (const Wrong& wrong : wrongs) {
        Json json = good_config();
        json[Json::json_pointer(wrong.pointer)] = wrong.value;
        CAPTURE(wrong.pointer);
        CHECK_THROWS_WITH_AS(load(json), doctest::Contains(wrong.named), Error);
        CHECK_THROWS_WITH_AS(load(json), doctest::Contains("config.json"), Error);
    }
}

TEST_CASE("config_missing_or_broken_file_is_named") {
    const TemporaryDirectory directory;
    CHECK_THROWS_WITH_AS(ModelConfig::load(directory.path()),
                         doctest::Contains("config.json: cannot be read"), Error);
    directory.write("config.json", "{\"model_type\": ");
    CHECK_THROWS_WITH_AS(ModelConfig::load(directory.path()), doctest::Contains("not valid JSON"),
                         Error);
    directory.write("config.json", "[]");
    CHECK_THROWS_WITH_AS(ModelConfig::load(directory.path()),
                         doctest::Contains("expected an object"), Error);
}

TEST_CASE("generation_config_defaults_and_overrides") {
    const ModelConfig config = load(good_config());
    const TemporaryDirectory directory;
    GenerationConfig g = GenerationConfig::load(directory.path(), config);
    CHECK(g.sampling.greedy);
    CHECK(g.eos_token_ids == std::vector<int64_t>{7, 9});
    directory.write(
        "generation_config.json",
        R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 5, "max_new_tokens": 17})");
    g = GenerationConfig::load(directory.path(), config);
    CHECK(!g.sampling.greedy);
    CHECK(g.sampling.temperature == 0.6);
    CHECK(g.sampling.top_p == 0.9);
    CHECK(g.sampling.top_k == 50);
    CHECK(g.eos_token_ids == std::vector<int64_t>{5});
    CHECK(g.max_new_tokens == 17);
    for (const char* bad : {R"({"temperature": -1})", R"({"top_p": 0})", R"({"num_beams": 4})",
                            R"({"eos_token_id": "a"})", "[1]"}) {
        directory.write("generation_config.json", bad);
        CHECK_THROWS_WITH_AS(GenerationConfig::load(directory.path(), config),
                             doctest::Contains("generation_config.json"), Error);
    }
}

TEST_CASE("generation_config_refuses_what_changes_the_answer_and_is_not_offered") {
    const ModelConfig config = load(good_config());
    const TemporaryDirectory directory;
    const auto error_with = [&](const std::string& key, const std::string& value) {
        directory.write("generation_config.json", "{\"" + key + "\": " + value + "}");
        return error_of([&] { return GenerationConfig::load(directory.path(), config); });
    };
    // key, values that change nothing in transformers 4.56.2, values that change the answer
    const std::vector<std::tuple<std::string, std::vector<std::string>, std::vector<std::string>>>
        keys = {
            {"num_beams", {"1"}, {"4", "0"}},
            {"num_beam_groups", {"1"}, {"2"}},
            {"num_return_sequences", {"1"}, {"3"}},
            {"diversity_penalty", {"0", "0.0"}, {"0.5"}},
            {"penalty_alpha", {"0", "0.0"}, {"0.6"}},
            {"constraints", {}, {"[]"}},
            {"force_words_ids", {}, {"[[5]]"}},
            {"dola_layers", {}, {"\"high\""}},
            {"guidance_scale", {"1", "1.0"}, {"1.5"}},
            {"sequence_bias", {}, {"[[[5], -1.0]]"}},
            {"encoder_repetition_penalty", {"1", "1.0"}, {"1.2"}},
            {"no_repeat_ngram_size", {"0"}, {"3", "\"3\"", "true"}},
            {"encoder_no_repeat_ngram_size", {"0"}, {"2"}},
            {"bad_words_ids", {}, {"[[5]]"}},
            {"forced_bos_token_id", {}, {"5"}},
            {"forced_eos_token_id", {}, {"5"}},
            {"exponential_decay_length_penalty", {}, {"[10, 1.1]"}},
            {"suppress_tokens", {"[]"}, {"[5]"}},
            {"begin_suppress_tokens", {"[]"}, {"[5]"}},
            {"typical_p", {"1", "1.0"}, {"0.9"}},
            {"epsilon_cutoff", {"0.0"}, {"0.0003"}},
            {"eta_cutoff", {"0.0"}, {"0.0003"}},
            {"watermarking_config", {}, {"{}"}},
            {"token_healing", {"false"}, {"true"}},
            {"min_length", {"0"}, {"5"}},
            {"min_new_tokens", {"0"}, {"5"}},
            {"max_time", {}, {"1.5"}},
        };
    for (const auto& [key, neutral, others] : keys) {
        CAPTURE(key);
        CHECK(error_with(key, "null").empty());
        for (const std::string& value : neutral) CHECK(error_with(key, value).empty());
        for (const std::string& value : others) {
            CHECK(holds_all(
                error_with(key, value),
                {"/generation_config.json: ", key, "not offered", "found " + value.substr(0, 1)}));
        }
    }
    CHECK(error_with("use_cache", "false").empty());  // another way to the same answer
}

TEST_CASE("generation_config_stop_strings") {
    const ModelConfig config = load(good_config());
    const TemporaryDirectory directory;
    const auto stop_of = [&](const std::string& value) {
        directory.write("generation_config.json", "{\"stop_strings\": " + value + "}");
        return GenerationConfig::load(directory.path(), config).stop;
    };
    CHECK(stop_of("null").empty());
    CHECK(stop_of("[]").empty());
    CHECK(stop_of("\"END\"") == std::vector<std::string>{"END"});
    CHECK(stop_of("[\"a\", \"b\"]") == std::vector<std::string>{"a", "b"});
    for (const char* const bad : {"5", "[5]", "\"\"", "[\"a\", \"\"]", "{}"}) {
        CAPTURE(bad);
        CHECK(holds_all(error_of([&] { return stop_of(bad); }),
                        {"generation_config.json: stop_strings: expected a text or a list"}));
    }
}

TEST_CASE("generation_config_max_length_counts_only_without_max_new_tokens") {
    const ModelConfig config = load(good_config());
    const TemporaryDirectory directory;
    const auto lengths_of = [&](const std::string& content) {
        directory.write("generation_config.json", content);
        const GenerationConfig read = GenerationConfig::load(directory.path(), config);
        return std::pair(read.max_new_tokens, read.max_length);
    };
    CHECK(lengths_of("{}") == std::pair<int64_t, int64_t>(512, 0));
    CHECK(lengths_of(R"({"max_length": 20})") == std::pair<int64_t, int64_t>(512, 0));
    CHECK(lengths_of(R"({"max_length": 4096})") == std::pair<int64_t, int64_t>(4096, 4096));
    CHECK(lengths_of(R"({"max_length": 4096, "max_new_tokens": 7})") ==
          std::pair<int64_t, int64_t>(7, 0));
    CHECK_THROWS_WITH_AS(lengths_of(R"({"max_length": 0})"), doctest::Contains("max_length"),
                         Error);
}
