// Text from outside reaches a terminal without control characters and broken UTF-8.
#include "io/printable.h"

#include <doctest/doctest.h>

using namespace mllama;

TEST_CASE("printable_leaves_text_as_it_is") {
    CHECK(printable("model.layers.0") == "model.layers.0");
    CHECK(printable("caf\xC3\xA9 \xE7\x8C\xAB \xF0\x9F\x90\x88") ==
          "caf\xC3\xA9 \xE7\x8C\xAB \xF0\x9F\x90\x88");
    CHECK(printable("").empty());
}

TEST_CASE("printable_escapes_control_characters") {
    CHECK(printable("a\nb\r\t\x1b[2J\x7f") == "a\\x0Ab\\x0D\\x09\\x1B[2J\\x7F");
    CHECK(printable(std::string_view("a\0b", 3)) == "a\\x00b");
    CHECK(printable("\xC2\x9B"
                    "31m") == "\\xC2\\x9B31m");  // C1: some terminals' ESC [
}

TEST_CASE("printable_escapes_what_is_no_utf8") {
    CHECK(printable("\xFF\xFEx") == "\\xFF\\xFEx");
    CHECK(printable("caf\xC3") == "caf\\xC3");  // cut within a character
    CHECK(printable("\xC0\xAF \xED\xA0\x80") ==
          "\\xC0\\xAF \\xED\\xA0\\x80");  // overlong, surrogate
}

TEST_CASE("printable_cuts_long_text_between_characters") {
    CHECK(printable(std::string(5000, 'x')) == std::string(200, 'x') + "...");
    CHECK(printable(std::string(200, 'x')) == std::string(200, 'x'));
    CHECK(printable("ab\xC3\xA9z", 3) == "ab\xC3\xA9...");
    CHECK(printable("abc", std::string::npos) == "abc");
}

TEST_CASE("printable_text_stays_the_same_when_shown_again") {
    const std::string shown = printable("a\n\xFF");
    CHECK(printable(shown) == shown);
}
