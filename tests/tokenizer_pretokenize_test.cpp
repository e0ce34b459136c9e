// The scanner of the Llama 3 pattern against the pattern itself.
#include <doctest/doctest.h>

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/pretokenize.h"
#include "tokenizer/unicode.h"

using namespace mllama;

namespace {

std::vector<std::string> pieces(std::string_view text) {
    std::vector<std::string> result;
    for (const std::string_view piece : pre_tokenize(text)) result.emplace_back(piece);
    return result;
}

using Pieces = std::vector<std::string>;

/// A regular expression's step: between `min` and `max` characters that `fits` takes, as many as
/// will do. With `ends_here`, none, and no \S may follow.
struct Step {
    std::function<bool(char32_t)> fits;
    size_t min = 1;
    size_t max = 1;
    bool ends_here = false;
};
using Alternative = std::vector<Step>;

/// Backtracking in its plainest form: where `steps` from the `at`-th on match `text` from `pos`,
/// their end.
std::optional<size_t> match(const Alternative& steps, size_t at, const std::u32string& text,
                            size_t pos) {
    if (at == steps.size()) return pos;
    const Step& step = steps[at];
    if (step.ends_here) {
        if (pos < text.size() && !is_white_space(text[pos])) return std::nullopt;
        return match(steps, at + 1, text, pos);
    }
    size_t count = 0;
    while (count < step.max && pos + count < text.size() && step.fits(text[pos + count])) ++count;
    for (size_t taken = count + 1; taken-- > step.min;) {
        if (const auto end = match(steps, at + 1, text, pos + taken)) return end;
    }
    return std::nullopt;
}

/// llama3_pattern, written out.
std::vector<Alternative> pattern() {
    constexpr size_t many = SIZE_MAX;
    const auto letter = [](char32_t c) { return char_class(c) == CharClass::Letter; };
    const auto number = [](char32_t c) { return char_class(c) == CharClass::Number; };
    const auto newline = [](char32_t c) { return c == '\r' || c == '\n'; };
    const auto other = [=](char32_t c) { return !is_white_space(c) && !letter(c) && !number(c); };
    const auto one_of = [](std::u32string set) {
        return Step{[set](char32_t c) { return set.find(c) != std::u32string::npos; }};
    };
    std::vector<Alternative> alternatives;
    for (const std::vector<std::u32string>& word :
         std::vector<std::vector<std::u32string>>{{U"sS\u017F"},
                                                  {U"tT"},
                                                  {U"rR", U"eE"},
                                                  {U"vV", U"eE"},
                                                  {U"mM"},
                                                  {U"lL", U"lL"},
                                                  {U"dD"}}) {
        alternatives.push_back({one_of(U"'")});
        for (const std::u32string& set : word) alternatives.back().push_back(one_of(set));
    }
    const auto prefix = [=](char32_t c) { return !newline(c) && !letter(c) && !number(c); };
    alternatives.push_back({{prefix, 0, 1}, {letter, 1, many}});
    alternatives.push_back({{number, 1, 3}});
    alternatives.push_back(
        {{[](char32_t c) { return c == ' '; }, 0, 1}, {other, 1, many}, {newline, 0, many}});
    alternatives.push_back({{is_white_space, 0, many}, {newline, 1, many}});
    alternatives.push_back({{is_white_space, 1, many}, {{}, 0, 0, true}});
    alternatives.push_back({{is_white_space, 1, many}});
    return alternatives;
}

/// The lengths, in characters, of the pieces that the pattern makes of a text.
std::vector<size_t> lengths_by_pattern(const std::u32string& text) {
    static const std::vector<Alternative> alternatives = pattern();
    std::vector<size_t> lengths;
    for (size_t pos = 0; pos < text.size(); pos += lengths.back()) {
        std::optional<size_t> end;
        for (size_t i = 0; !end; ++i) end = match(alternatives.at(i), 0, text, pos);
        lengths.push_back(*end - pos);
    }
    return lengths;
}

/// The same of the scanner.
std::vector<size_t> lengths_by_scanner(const std::string& text) {
    std::vector<size_t> lengths;
    for (const std::string_view piece : pre_tokenize(text)) {
        lengths.push_back(0);
        for (const char byte : piece) lengths.back() += (byte & 0xC0) == 0x80 ? 0 : 1;
    }
    return lengths;
}

}  // namespace

TEST_CASE("pre_tokenize_every_short_text_of_an_alphabet_matches_the_pattern") {
    // Letters, a digit, white space of each kind, a mark, a symbol, and what contractions are made
    // of.
    const std::vector<std::pair<char32_t, std::string>> alphabet = {
        {U'a', "a"}, {U'1', "1"},         {U' ', " "},        {U'\n', "\n"}, {U'\t', "\t"},
        {U'!', "!"}, {U'\'', "'"},        {U's', "s"},        {U'L', "L"},   {U'e', "e"},
        {U'r', "r"}, {0x17F, "\xC5\xBF"}, {0x301, "\xCC\x81"}};
    struct Text {
        std::u32string codes;
        std::string bytes;
    };
    std::vector<Text> texts = {{}};
    for (size_t i = 0; i < texts.size(); ++i) {
        const Text text = texts[i];
        if (lengths_by_scanner(text.bytes) != lengths_by_pattern(text.codes)) FAIL(text.bytes);
        if (text.codes.size() == 4) continue;
        for (const auto& [code, bytes] : alphabet)
            texts.push_back({text.codes + code, text.bytes + bytes});
    }
    CHECK(texts.size() == 1 + 13 + 169 + 2197 + 28561);
}

TEST_CASE("pre_tokenize_white_space_before_a_word_leaves_it_the_last_space") {
    CHECK(pieces("a   b") == Pieces{"a", "  ", " b"});
    CHECK(pieces("a   1") == Pieces{"a", "  ", " ", "1"});
    CHECK(pieces("a   ") == Pieces{"a", "   "});
    CHECK(pieces("a \n \n  b") == Pieces{"a", " \n \n", " ", " b"});
    CHECK(pieces("\r\n\r\nb") == Pieces{"\r\n\r\n", "b"});
    CHECK(pieces("!\n\n b") == Pieces{"!\n\n", " b"});
    CHECK(pieces(" \xC2\xA0 x") == Pieces{" \xC2\xA0", " x"});
}

TEST_CASE("pre_tokenize_digits_come_in_threes_in_any_script") {
    CHECK(pieces("1234567") == Pieces{"123", "456", "7"});
    CHECK(pieces("x12") == Pieces{"x", "12"});
    CHECK(pieces("\xD9\xA1\xD9\xA2\xD9\xA3\xD9\xA4") ==
          Pieces{"\xD9\xA1\xD9\xA2\xD9\xA3", "\xD9\xA4"});
    CHECK(pieces("\xC2\xBD\xE2\x85\xA7"
                 "1") == Pieces{"\xC2\xBD\xE2\x85\xA7"
                                "1"});  // No, Nl and Nd are all \p{N}
}

TEST_CASE("pre_tokenize_contractions_fold_case_and_the_long_s") {
    CHECK(pieces("he'll'LL") == Pieces{"he", "'ll", "'LL"});
    CHECK(pieces("'sa") == Pieces{"'s", "a"});
    CHECK(pieces("'\xC5\xBF"
                 "a") == Pieces{"'\xC5\xBF", "a"});  // U+017F folds to s
    CHECK(pieces("'re're'RE'rE") == Pieces{"'re", "'re", "'RE", "'rE"});
    CHECK(pieces("'la") == Pieces{"'la"});
    CHECK(pieces("'") == Pieces{"'"});
    CHECK(pieces("'r") == Pieces{"'r"});
    CHECK(pieces("\xE2\x80\x99s") ==
          Pieces{"\xE2\x80\x99s"});  // a typographic apostrophe is just a symbol
}

TEST_CASE("pre_tokenize_marks_and_joiners_are_symbols") {
    CHECK(pieces("e\xCC\x81"
                 "a") == Pieces{"e",
                                "\xCC\x81"
                                "a"});  // a combining mark takes the letters after it
    CHECK(pieces("\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA9") ==
          Pieces{"\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA9"});
}

TEST_CASE("pre_tokenize_long_runs_take_linear_time") {
    const size_t length = 1 << 20;
    CHECK(pieces(std::string(length, 'a')).size() == 1);
    CHECK(pieces(std::string(length, ' ')).size() == 1);
    CHECK(pieces(std::string(length, '\n')).size() == 1);
    CHECK(pieces(std::string(length, '!')).size() == 1);
    CHECK(pieces(std::string(length, ' ') + "a").size() == 2);
    CHECK(pieces(std::string(length, '1')).size() == (length + 2) / 3);
}
