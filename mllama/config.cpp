#include "mllama/config.h"

#include <algorithm>
#include <set>

#include "io/json_object.h"

namespace mllama {
namespace {

constexpr int64_t largest_size = int64_t{1} << 24;  // no dimension of these models comes near
constexpr int64_t largest_count = 4096;             // layers, heads, tiles

/// The names that transformers gives to activations (ACT2FN).
Activation activation(const JsonObject& json, const std::string& fallback) {
    const std::string name = json.text_or("hidden_act", fallback);
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
    if (name == "quick_gelu") return Activation::quick_gelu;
    if (name == "silu" || name == "swish") return Activation::silu;
    if (name == "relu") return Activation::relu;
    json.reject("hidden_act", "gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, silu or relu");
}

std::vector<std::pair<int64_t, int64_t>> aspect_ratios(const JsonObject& json,
                                                       int64_t max_num_tiles) {
    const std::string key = "supported_aspect_ratios";
    if (!json.has(key)) {
        if (max_num_tiles != 4) json.reject(key, "a list, since max_num_tiles is not 4");
        return {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {2, 1}, {2, 2}, {3, 1}, {4, 1}};
    }
    const std::string expected = "a list of [tiles high, tiles wide] of at most " +
                                 std::to_string(max_num_tiles) + " tiles each";
    std::vector<std::pair<int64_t, int64_t>> ratios;
    const Json& list = json.value(key);
    if (!list.is_array() || list.empty() || list.size() > largest_count) json.reject(key, expected);
    for (const Json& entry : list) {
        const bool pair = entry.is_array() && entry.size() == 2 && entry[0].is_number_integer() &&
                          entry[1].is_number_integer();
        if (!pair) json.reject(key, expected);
        const auto high = entry[0].get<int64_t>();
        const auto wide = entry[1].get<int64_t>();
        const bool fits = high >= 1 && high <= max_num_tiles && wide >= 1 &&
                          wide <= max_num_tiles && high * wide <= max_num_tiles;
        if (!fits) json.reject(key, expected);
        ratios.emplace_back(high, wide);
    }
    return ratios;
}

VisionConfig vision_config(const JsonObject& json) {
    VisionConfig c;
    c.hidden_size = json.integer("hidden_size", 1, largest_size);
    c.num_hidden_layers = json.integer("num_hidden_layers", 1, largest_count);
    c.num_global_layers = json.integer("num_global_layers", 0, largest_count);
    c.num_attention_heads =
        json.integer(json.either("attention_heads", "num_attention_heads"), 1, largest_count);
    c.num_channels = json.integer_or("num_channels", 3, 3, 3);  // pictures here are RGB
    c.intermediate_size = json.integer("intermediate_size", 1, largest_size);
    c.image_size = json.integer("image_size", 1, 1 << 14);
    c.patch_size = json.integer("patch_size", 1, c.image_size);
    c.max_num_tiles = json.integer_or("max_num_tiles", 1, largest_count, 4);
    c.norm_eps = static_cast<float>(json.number_or("norm_eps", 0, 1, 1e-5));
    c.hidden_act = activation(json, "gelu");
    c.supported_aspect_ratios = aspect_ratios(json, c.max_num_tiles);
    if (c.hidden_size % c.num_attention_heads != 0) {
        json.reject("hidden_size",
                    "a multiple of attention_heads " + std::to_string(c.num_attention_heads));
    }
    c.intermediate_layers_indices = {3, 7, 15, 23, 30};
    if (json.has("intermediate_layers_indices")) {
        c.intermediate_layers_indices =
            json.integers("intermediate_layers_indices", 0, c.num_hidden_layers - 1);
    } else if (c.num_hidden_layers <= 30) {
        json.reject("intermediate_layers_indices", "a list of local layers");
    }
    const auto outputs = static_cast<int64_t>(c.intermediate_layers_indices.size()) + 1;
    c.vision_output_dim =
        json.integer_or("vision_output_dim", 1, largest_size, c.hidden_size * outputs);
    if (c.vision_output_dim != c.hidden_size * outputs) {
        json.reject("vision_output_dim", "hidden_size * (1 + number of intermediate layers) = " +
                                             std::to_string(c.hidden_size * outputs));
    }
    return c;
}

/// Keys that change the computation and that Mllama does not have: only their neutral values pass.
void check_neutral(const JsonObject& text, int64_t head_dim) {
    for (const char* key : {"attention_bias", "mlp_bias"}) {
        if (text.boolean_or(key, false)) text.reject(key, "false");
    }
    if (text.integer_or("head_dim", 1, largest_size, head_dim) != head_dim) {
        text.reject("head_dim", "hidden_size / num_attention_heads = " + std::to_string(head_dim));
    }
    if (text.has("rope_parameters")) {
        text.reject("rope_parameters", "rope_theta and rope_scaling instead");
    }
}

RopeConfig rope_config(const JsonObject& text) {
    RopeConfig rope;
    rope.theta = text.number_or("rope_theta", 1, 1e12, 500000);
    if (!text.has("rope_scaling")) return rope;
    const JsonObject json = text.object("rope_scaling");
    const std::string_view key = json.either("rope_type", "type");
    const std::string type = json.text(key);
    if (type == "default") return rope;
    if (type != "llama3") json.reject(key, "default or llama3");
    rope.type = RopeConfig::Type::llama3;
    rope.factor = json.number("factor", 1, 1e6);
    rope.low_freq_factor = json.number("low_freq_factor", 1e-6, 1e6);
    rope.high_freq_factor = json.number("high_freq_factor", 1e-6, 1e6);
    rope.original_max_position_embeddings =
        json.integer("original_max_position_embeddings", 1, int64_t{1} << 40);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
        json.reject("high_freq_factor", "more than low_freq_factor");
    }
    return rope;
}

TextConfig text_config(const JsonObject& json) {
    TextConfig c;
    c.vocab_size = json.integer("vocab_size", 1, largest_size);
    c.hidden_size = json.integer("hidden_size", 1, largest_size);
    c.num_hidden_layers = json.integer("num_hidden_layers", 1, largest_count);
    c.num_attention_heads = json.integer("num_attention_heads", 1, largest_count);
    c.num_key_value_heads = json.integer("num_key_value_heads", 1, c.num_attention_heads);
    c.intermediate_size = json.integer("intermediate_size", 1, largest_size);
    c.max_position_embeddings =
        json.integer_or("max_position_embeddings", 1, int64_t{1} << 31, 131072);
    c.rms_norm_eps = static_cast<float>(json.number_or("rms_norm_eps", 0, 1, 1e-5));
    c.hidden_act = activation(json, "silu");
    c.rope = rope_config(json);
    if (c.hidden_size % c.num_attention_heads != 0) {
        json.reject("hidden_size",
                    "a multiple of num_attention_heads " + std::to_string(c.num_attention_heads));
    }
    check_neutral(json, c.head_dim());
    if (c.head_dim() % 2 != 0)
        json.reject("hidden_size", "an even size of a head (RoPE rotates pairs)");
    if (c.num_attention_heads % c.num_key_value_heads != 0) {
        json.reject("num_key_value_heads",
                    "a divisor of num_attention_heads " + std::to_string(c.num_attention_heads));
    }
    if (json.boolean_or("tie_word_embeddings", false)) {
        json.reject("tie_word_embeddings", "false (embed_tokens has 8 rows more than lm_head)");
    }
    if (json.has("cross_attention_layers")) {
        c.cross_attention_layers =
            json.integers("cross_attention_layers", 0, c.num_hidden_layers - 1);
    } else {
        c.cross_attention_layers = {3, 8, 13, 18, 23, 28, 33, 38};
        if (c.num_hidden_layers <= 38) json.reject("cross_attention_layers", "a list of layers");
    }
    std::sort(c.cross_attention_layers.begin(), c.cross_attention_layers.end());
    const std::set<int64_t> distinct(c.cross_attention_layers.begin(),
                                     c.cross_attention_layers.end());
    if (distinct.size() != c.cross_attention_layers.size()) {
        json.reject("cross_attention_layers", "each layer once");
    }
    const int64_t last_id = c.embedding_rows() - 1;
    c.bos_token_id = json.integer_or("bos_token_id", -1, last_id, -1);
    c.pad_token_id = json.integer_or("pad_token_id", -1, last_id, -1);
    if (json.has("eos_token_id")) c.eos_token_ids = json.integers("eos_token_id", 0, last_id, true);
    return c;
}

}  // namespace

bool TextConfig::is_cross_attention(int64_t layer) const {
    return std::binary_search(cross_attention_layers.begin(), cross_attention_layers.end(), layer);
}

ModelConfig ModelConfig::load(const std::string& checkpoint_dir) {
    return load_file(checkpoint_dir + "/config.json");
}

ModelConfig ModelConfig::load_file(const std::string& config_path) {
    const Json document = read_json_file(config_path);
    const JsonObject json(document, config_path);
    if (json.text_or("model_type", "") != "mllama") json.reject("model_type", "\"mllama\"");
    ModelConfig config;
    config.quantisation = read_quantisation_config(json);
    config.vision = vision_config(json.object("vision_config"));
    config.text = text_config(json.object("text_config"));
    config.image_token_id = json.integer_or(json.either("image_token_index", "image_token_id"), 0,
                                            config.text.embedding_rows() - 1, 128256);
    if (config.image_token_id >= config.text.embedding_rows()) {
        json.reject("image_token_index", "an id below vocab_size + 8");
    }
    return config;
}

}  // namespace mllama
