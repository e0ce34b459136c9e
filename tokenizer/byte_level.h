// The byte-level alphabet of GPT-2: every byte as one printable character, so that a vocabulary of
// byte strings can be written down as text. Visible Latin-1 characters stand for themselves, the
// other 68 bytes for U+0100 onwards in order: a space is 'Ġ', a line feed 'Ċ'. Reference:
// openai/gpt-2 src/encoder.py bytes_to_unicode; tokenizers pre_tokenizers/byte_level.rs.
#pragma once

#include <string>
#include <string_view>

namespace mllama {

/// The character of a byte, as UTF-8 (one or two bytes).
[[nodiscard]] std::string_view byte_level_char(unsigned char byte);

/// Appends the spelling of `bytes` in the alphabet to `out`.
void append_byte_level(std::string_view bytes, std::string& out);

/// Appends the bytes that the token `spelling` (UTF-8) stands for. A token with any character
/// outside the alphabet stands for its own UTF-8 bytes, whole: such are added tokens with a space
/// in their text.
void append_token_bytes(std::string_view spelling, std::string& out);

}  // namespace mllama
