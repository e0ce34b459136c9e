#include "mllama/stop_filter.h"

#include <doctest/doctest.h>

using namespace mllama;

namespace {

/// Everything that is shown of a text that comes in pieces of `size` bytes.
std::string shown(const std::vector<std::string>& stops, const std::string& text, size_t size,
                  bool* stopped) {
    StopFilter filter(stops);
    std::string result;
    for (size_t begin = 0; begin < text.size(); begin += size)
        result += filter.push(text.substr(begin, size));
    if (!filter.stopped()) result += filter.finish();
    *stopped = filter.stopped();
    return result;
}

}  // namespace

TEST_CASE("stop_filter_any_pieces_show_the_text_before_the_first_stop") {
    const std::vector<std::string> stops = {"END", "\n\n", "aab"};
    for (const char* text :
         {"one END two", "aaab", "aaaab", "EN EN\nD", "x\n\ny", "END", "", "aa", "no stop at E"}) {
        size_t first = std::string::npos;
        for (const std::string& stop : stops) first = std::min(first, std::string(text).find(stop));
        const std::string expected = std::string(text).substr(0, first);
        for (size_t size = 1; size <= 5; ++size) {
            bool stopped = false;
            CHECK(shown(stops, text, size, &stopped) == expected);
            CHECK(stopped == (first != std::string::npos));
        }
    }
}

TEST_CASE("stop_filter_never_shows_a_part_of_a_stop_early") {
    StopFilter filter({"stop"});
    CHECK(filter.push("a st") == "a ");
    CHECK(filter.push("o") == "");
    CHECK(filter.push("w") == "stow");
    CHECK(filter.push("stop and more") == "");
    CHECK(filter.stopped());
    CHECK(filter.push("more") == "");
}

TEST_CASE("stop_filter_without_stops_passes_everything_on") {
    StopFilter filter({"", ""});
    CHECK(filter.push("abc") == "abc");
    CHECK(!filter.stopped());
    CHECK(filter.finish() == "");
}
