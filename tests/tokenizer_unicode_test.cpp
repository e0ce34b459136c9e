// UTF-8, character classes and the byte-level alphabet, over all of Unicode.
#include <doctest/doctest.h>

#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "tokenizer/byte_level.h"
#include "tokenizer/unicode.h"

using namespace mllama;

namespace {

constexpr char32_t code_limit = 0x110000;

bool is_surrogate(char32_t code) {
    return code >= 0xD800 && code < 0xE000;
}

std::string utf8(char32_t code) {
    const auto byte = [](char32_t value) { return static_cast<char>(value); };
    if (code < 0x80) return {byte(code)};
    const char last = byte(0x80 | (code & 0x3F));
    if (code < 0x800) return {byte(0xC0 | code >> 6), last};
    const char middle = byte(0x80 | (code >> 6 & 0x3F));
    if (code < 0x10000) return {byte(0xE0 | code >> 12), middle, last};
    return {byte(0xF0 | code >> 18), byte(0x80 | (code >> 12 & 0x3F)), middle, last};
}

/// The code points that char_classes.txt lists under a letter.
std::vector<bool> golden_class(const std::string& name) {
    std::ifstream file(std::string(MLLAMA_TEST_DATA) + "/goldens/tokenizer/char_classes.txt");
    REQUIRE(file);
    std::vector<bool> members(code_limit);
    uint32_t first = 0;
    uint32_t last = 0;
    std::string type;
    while (file >> std::hex >> first >> last >> type) {
        REQUIRE(last < code_limit);
        for (uint32_t code = first; type == name && code <= last; ++code) members[code] = true;
    }
    return members;
}

/// The code points for which `holds` and the golden class disagree, surrogates aside.
std::vector<uint32_t> disagreements(const std::string& name,
                                    const std::function<bool(char32_t)>& holds) {
    const std::vector<bool> expected = golden_class(name);
    std::vector<uint32_t> wrong;
    for (char32_t code = 0; code < code_limit; ++code) {
        if (!is_surrogate(code) && holds(code) != expected[code])
            wrong.push_back(static_cast<uint32_t>(code));
    }
    return wrong;
}

std::string lossy(std::string_view bytes) {
    std::string text;
    CHECK(append_utf8_lossy(bytes, true, text) == bytes.size());
    return text;
}

}  // namespace

TEST_CASE("char_class_of_every_code_point_matches_the_library") {
    const auto is = [](CharClass type) {
        return [type](char32_t code) { return char_class(code) == type; };
    };
    CHECK(disagreements("L", is(CharClass::Letter)).empty());
    CHECK(disagreements("N", is(CharClass::Number)).empty());
    CHECK(disagreements("S", [](char32_t code) {
              return char_class(code) == CharClass::Space || char_class(code) == CharClass::Newline;
          }).empty());
    CHECK(disagreements("S", is_white_space).empty());
    for (char32_t code = 0; code < code_limit; ++code) {
        if ((char_class(code) == CharClass::Newline) != (code == '\r' || code == '\n')) FAIL(code);
    }
}

TEST_CASE("is_word_char_of_every_code_point_matches_the_library") {
    CHECK(disagreements("W", is_word_char).empty());
}

TEST_CASE("read_utf8_round_trips_every_code_point") {
    for (char32_t code = 0; code < code_limit; ++code) {
        if (is_surrogate(code)) continue;
        const std::string text = utf8(code);
        const Utf8Step step = read_utf8(text, 0);
        if (step.status != Utf8Step::Status::Valid || step.code != code ||
            step.length != text.size())
            FAIL(code);
        for (size_t cut = 1; cut < text.size(); ++cut) {
            const Utf8Step part = read_utf8(std::string_view(text).substr(0, cut), 0);
            if (part.status != Utf8Step::Status::Truncated || part.length != cut) FAIL(code);
        }
    }
}

TEST_CASE("read_utf8_refuses_surrogates_overlong_forms_and_values_beyond_the_last") {
    std::vector<std::string> bad = {"\xC0\x80",
                                    "\xC1\xBF",
                                    "\xE0\x80\x80",
                                    "\xE0\x9F\xBF",
                                    "\xF0\x80\x80\x80",
                                    "\xF0\x8F\xBF\xBF",
                                    "\xF4\x90\x80\x80",
                                    "\xF5\x80\x80\x80",
                                    "\xFF",
                                    "\x80",
                                    "\xBF",
                                    "\xF8\x88\x80\x80\x80"};
    for (char32_t code = 0xD800; code < 0xE000; ++code) bad.push_back(utf8(code));
    for (const std::string& text : bad) {
        CHECK(read_utf8(text, 0).status == Utf8Step::Status::Invalid);
        CHECK(read_utf8(text, 0).length == 1);
        CHECK(find_invalid_utf8("ab" + text) == 2);
    }
    CHECK(find_invalid_utf8("caf\xC3\xA9 \xE6\xB9\x96 \xF0\x9F\x98\x80") == std::string_view::npos);
    CHECK(find_invalid_utf8("caf\xC3") == 3);
}

TEST_CASE("append_utf8_lossy_replaces_each_maximal_subpart_once") {
    const std::string r = "\xEF\xBF\xBD";
    CHECK(lossy("") == "");
    CHECK(lossy("a\xF0\x9F\x98z") == "a" + r + "z");             // three bytes of a character: one
    CHECK(lossy("\xF0\x9F\x98") == r);                           // the same at the end
    CHECK(lossy("\xE2\x82\xE2\x82\xAC") == r + "\xE2\x82\xAC");  // the next lead byte is kept
    CHECK(lossy("\xED\xA0\x80") == r + r + r);                   // a surrogate: none of it fits
    CHECK(lossy("\xF0\x80\x80\x41") == r + r + r + "A");
    // Unicode 16, section 3.9, table 3-8.
    CHECK(lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41") == r + r + r + r + r + r + r + r + "A");
    CHECK(lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41") == r + r + r + r + "A");
}

TEST_CASE("append_utf8_lossy_keeps_an_unfinished_character_for_later") {
    std::string text;
    CHECK(append_utf8_lossy("ab\xE6\xB9", false, text) == 2);
    CHECK(text == "ab");
    CHECK(append_utf8_lossy("\xF0\x9F\x98\x80", false, text) == 4);
    CHECK(append_utf8_lossy("\xFFz", false, text) == 2);
    CHECK(text == "ab\xF0\x9F\x98\x80\xEF\xBF\xBDz");
}

TEST_CASE("byte_level_alphabet_has_a_visible_character_for_every_byte") {
    std::set<std::string_view> seen;
    for (int value = 0; value < 256; ++value) {
        const auto byte = static_cast<unsigned char>(value);
        const std::string_view spelling = byte_level_char(byte);
        CHECK(find_invalid_utf8(spelling) == std::string_view::npos);
        CHECK(!is_white_space(read_utf8(spelling, 0).code));
        seen.insert(spelling);
        std::string bytes;
        append_token_bytes(spelling, bytes);
        CHECK(bytes == std::string(1, static_cast<char>(byte)));
    }
    CHECK(seen.size() == 256);
    CHECK(byte_level_char(' ') == "\xC4\xA0");   // Ġ
    CHECK(byte_level_char('\n') == "\xC4\x8A");  // Ċ
    CHECK(byte_level_char('a') == "a");
    CHECK(byte_level_char(0xAD) == "\xC5\x83");  // the soft hyphen, last of the 68: U+0143
}

TEST_CASE("append_token_bytes_of_a_spelling_outside_the_alphabet_is_its_own_text") {
    std::string bytes = "<";
    append_token_bytes(
        "\xC4\xA0"
        "a b",
        bytes);  // the space is not in the alphabet
    CHECK(bytes ==
          "<\xC4\xA0"
          "a b");
    append_token_bytes("\xE6\xB9\x96", bytes);
    CHECK(bytes ==
          "<\xC4\xA0"
          "a b\xE6\xB9\x96");
}
