// The pre-tokeniser of Llama 3: cuts a text into the pieces within which byte pairs are merged.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace mllama {

/// The regular expression of the published tokenizer.json that this scanner implements. Its
/// alternatives are tried in order at each position, and between them they match any character.
inline constexpr std::string_view llama3_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// The end of the piece that starts at `begin`. `text` is valid UTF-8, `begin` < text.size() is the
/// start of a character. Constant memory; all pieces of a text take linear time.
[[nodiscard]] size_t pre_token_end(std::string_view text, size_t begin);

/// All pieces of a valid UTF-8 text, in order: none is empty, and joined they are the text.
[[nodiscard]] std::vector<std::string_view> pre_tokenize(std::string_view text);

}  // namespace mllama
