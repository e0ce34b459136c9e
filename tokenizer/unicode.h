// UTF-8, and the classes of characters that the patterns of tokenizers distinguish.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mllama {

/// One step of reading UTF-8: a character, or bytes that are none.
struct Utf8Step {
    enum class Status : uint8_t {
        Valid,      ///< `code` is a Unicode scalar value
        Truncated,  ///< the text ends within a sequence that more bytes could complete
        Invalid,    ///< no continuation makes these bytes a character
    };
    char32_t code = 0xFFFD;
    uint8_t length = 1;  ///< bytes covered, at least 1; of bytes that are no character, the
                         ///< "maximal subpart" (Unicode 16, section 3.9) that one U+FFFD replaces
    Status status = Status::Invalid;
};

/// Reads the sequence that starts at text[pos], pos < text.size().
[[nodiscard]] Utf8Step read_utf8(std::string_view text, size_t pos);

/// The offset of the first byte that belongs to no character, or npos if all of `text` is UTF-8.
[[nodiscard]] size_t find_invalid_utf8(std::string_view text);

/// Appends `bytes` to `out`, each maximal subpart that is no character replaced by U+FFFD (as
/// Rust's String::from_utf8_lossy does). With `final` false, an unfinished sequence at the end is
/// left out: returns how many bytes of `bytes` were consumed, all but at most three.
size_t append_utf8_lossy(std::string_view bytes, bool final, std::string& out);

/// What the Llama 3 pattern asks about a character: \p{L}, \p{N}, \s; the line ends among \s apart.
enum class CharClass : uint8_t { Other, Letter, Number, Space, Newline };

/// The class of a code point under Unicode 16, whichever version the installed utf8proc knows.
[[nodiscard]] CharClass char_class(char32_t code);

/// \s: the property White_Space.
[[nodiscard]] bool is_white_space(char32_t code);

/// \w of Rust's regex: Alphabetic, marks, decimal digits, connector punctuation, Join_Control.
[[nodiscard]] bool is_word_char(char32_t code);

}  // namespace mllama
