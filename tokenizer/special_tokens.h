// The special tokens that a checkpoint names: which text begins a text, ends a turn, and so on.
//
// Reference: transformers 4.56.2, tokenization_utils_base.py (from_pretrained,
// special_tokens_map).
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace mllama {

/// "bos_token" -> "<|begin_of_text|>" and so on. A token that is there may be the empty text.
using SpecialTokens = std::map<std::string, std::string>;

/// DIR/tokenizer_config.json, a JSON object; nothing if there is no such file. Errors: Error that
/// names the file.
std::optional<nlohmann::ordered_json> read_tokenizer_config(const std::string& checkpoint_dir);

/// The tokens of tokenizer_config.json (those of extra_special_tokens too), or of
/// special_tokens_map.json where the former has no added_tokens_decoder. Null is no token. Errors:
/// Error that names file and key: a token that is neither a string nor a serialised AddedToken.
SpecialTokens read_special_tokens(const std::string& checkpoint_dir);

}  // namespace mllama
