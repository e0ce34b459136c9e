// The Llama 3 pattern as a scanner: one function an alternative. Each returns the end of its match
// at `begin`, or `begin` if it does not match. The order, and greediness with backtracking, are the
// regex's.
#include "tokenizer/pretokenize.h"

#include "tokenizer/unicode.h"

namespace mllama {
namespace {

/// The character at text[pos], which is there.
struct Char {
    char32_t code;
    CharClass type;
    size_t end;  ///< where the next one starts
};

Char char_at(std::string_view text, size_t pos) {
    const Utf8Step step = read_utf8(text, pos);
    return {step.code, char_class(step.code), pos + step.length};
}

bool is_space(CharClass type) {
    return type == CharClass::Space || type == CharClass::Newline;
}

/// The end of the longest run of characters of one class.
size_t run_end(std::string_view text, size_t pos, CharClass type) {
    while (pos < text.size()) {
        const Char c = char_at(text, pos);
        if (c.type != type) break;
        pos = c.end;
    }
    return pos;
}

/// An ASCII letter in lower case, and the one character beyond ASCII that case folding makes equal
/// to a letter of the contractions: U+017F, the long s, is an s. Anything else is 0.
char folded_letter(char32_t code) {
    if (code == 0x17F) return 's';
    if (code >= 'A' && code <= 'Z') return static_cast<char>(code - 'A' + 'a');
    return code >= 'a' && code <= 'z' ? static_cast<char>(code) : '\0';
}

/// (?i:'s|'t|'re|'ve|'m|'ll|'d)
size_t contraction_end(std::string_view text, size_t begin) {
    if (text[begin] != '\'' || begin + 1 == text.size()) return begin;
    const Char first = char_at(text, begin + 1);
    const char letter = folded_letter(first.code);
    if (letter == 's' || letter == 't' || letter == 'm' || letter == 'd') return first.end;
    if (first.end == text.size()) return begin;
    const Char second = char_at(text, first.end);
    const char next = folded_letter(second.code);
    const bool two =
        ((letter == 'r' || letter == 'v') && next == 'e') || (letter == 'l' && next == 'l');
    return two ? second.end : begin;
}

/// [^\r\n\p{L}\p{N}]?\p{L}+
size_t word_end(std::string_view text, size_t begin, const Char& first) {
    if (first.type == CharClass::Letter) return run_end(text, first.end, CharClass::Letter);
    if (first.type == CharClass::Newline || first.type == CharClass::Number) return begin;
    const size_t end = run_end(text, first.end, CharClass::Letter);
    return end > first.end ? end : begin;
}

/// \p{N}{1,3}
size_t number_end(std::string_view text, size_t begin) {
    size_t end = begin;
    for (int count = 0; count < 3 && end < text.size(); ++count) {
        const Char c = char_at(text, end);
        if (c.type != CharClass::Number) break;
        end = c.end;
    }
    return end;
}

/// " ?[^\s\p{L}\p{N}]+[\r\n]*"
size_t symbols_end(std::string_view text, size_t begin) {
    const size_t start = text[begin] == ' ' ? begin + 1 : begin;
    const size_t end = run_end(text, start, CharClass::Other);
    return end > start ? run_end(text, end, CharClass::Newline) : begin;
}

/// \s*[\r\n]+|\s+(?!\S)|\s+
size_t space_end(std::string_view text, size_t begin) {
    size_t end = begin;          // of the run of white space
    size_t last = begin;         // start of the run's last character
    size_t newline_end = begin;  // end of the run's last line end
    while (end < text.size()) {
        const Char c = char_at(text, end);
        if (!is_space(c.type)) break;
        last = end;
        end = c.end;
        if (c.type == CharClass::Newline) newline_end = end;
    }
    if (newline_end > begin) return newline_end;  // \s* gives back what follows the last line end
    if (end == text.size()) return end;           // no \S follows
    // The last character is left to what follows, unless it is the only one.
    return last > begin ? last : end;
}

}  // namespace

size_t pre_token_end(std::string_view text, size_t begin) {
    if (const size_t end = contraction_end(text, begin); end > begin) return end;
    const Char first = char_at(text, begin);
    if (const size_t end = word_end(text, begin, first); end > begin) return end;
    if (const size_t end = number_end(text, begin); end > begin) return end;
    if (const size_t end = symbols_end(text, begin); end > begin) return end;
    return space_end(text, begin);
}

std::vector<std::string_view> pre_tokenize(std::string_view text) {
    std::vector<std::string_view> pieces;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = pre_token_end(text, begin);
        pieces.push_back(text.substr(begin, end - begin));
        begin = end;
    }
    return pieces;
}

}  // namespace mllama
