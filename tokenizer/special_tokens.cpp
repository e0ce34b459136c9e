#include "tokenizer/special_tokens.h"

#include <filesystem>

#include "io/json.h"

namespace mllama {
namespace {

constexpr int64_t most_config_bytes = int64_t{64} << 20;

bool exists(const std::string& path) {
    std::error_code ignored;
    return std::filesystem::exists(path, ignored);
}

OrderedJson read_object(const std::string& path) {
    OrderedJson json = parse_ordered_json(read_file(path, most_config_bytes), path);
    if (!json.is_object()) fail(path, ": expected a JSON object, found ", json.type_name());
    return json;
}

/// A token as a string or as a serialised AddedToken.
void add_token(SpecialTokens& tokens, const std::string& key, const OrderedJson& value,
               const std::string& path) {
    if (value.is_null()) return;
    const bool is_object = value.is_object() && value.contains("content");
    const OrderedJson& text = is_object ? value["content"] : value;
    if (!text.is_string()) {
        fail(path, ": ", key,
             ": expected a token as a string or an object with a string \"content\", found ",
             is_object ? "content: " : "", text.type_name());
    }
    tokens[key] = text.get<std::string>();
}

void add_tokens(SpecialTokens& tokens, const OrderedJson& config, const std::string& path) {
    for (const char* key : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                            "cls_token", "mask_token"}) {
        if (config.contains(key)) add_token(tokens, key, config[key], path);
    }
    // Tokens that a model adds under names of its own, image_token for one.
    if (!config.contains("extra_special_tokens") || !config["extra_special_tokens"].is_object())
        return;
    for (const auto& [key, value] : config["extra_special_tokens"].items())
        add_token(tokens, key, value, path);
}

}  // namespace

std::optional<OrderedJson> read_tokenizer_config(const std::string& checkpoint_dir) {
    const std::string path = checkpoint_dir + "/tokenizer_config.json";
    if (!exists(path)) return std::nullopt;
    return read_object(path);
}

SpecialTokens read_special_tokens(const std::string& checkpoint_dir) {
    SpecialTokens tokens;
    const std::optional<OrderedJson> config = read_tokenizer_config(checkpoint_dir);
    if (config) add_tokens(tokens, *config, checkpoint_dir + "/tokenizer_config.json");
    const std::string map_path = checkpoint_dir + "/special_tokens_map.json";
    const bool is_legacy = !config || !config->contains("added_tokens_decoder");
    if (is_legacy && exists(map_path)) add_tokens(tokens, read_object(map_path), map_path);
    return tokens;
}

}  // namespace mllama
