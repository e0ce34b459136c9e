// Checks of options that are numbers, with errors that say what was expected and found: CLI11's own,
// for numbers without an upper end, name the largest double with all of its 309 digits.
#pragma once

#include <CLI/CLI.hpp>
#include <cmath>
#include <string>

namespace mllama {

/// A check for CLI::Option: good(value) holds of the number, which is finite. expected: "a number above 0".
template <class Good>
auto number_check(const std::string& expected, const Good& good) {
    return [=](const std::string& text) -> std::string {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && std::isfinite(value) && good(value))
            return "";
        return "expected " + expected + ", found " + text;
    };
}

inline auto at_least_0() {
    return number_check("a number of at least 0", [](double value) { return value >= 0; });
}
inline auto whole_at_least_0() {
    constexpr double largest = 0x1p53;  // what a double counts to
    return number_check("a whole number of at least 0", [](double value) {
        return value >= 0 && value <= largest && value == std::floor(value);
    });
}
inline auto above_0() {
    return number_check("a number above 0", [](double value) { return value > 0; });
}
inline auto from_0_to_1() {
    return number_check("a number from 0 to 1",
                        [](double value) { return value >= 0 && value <= 1; });
}
inline auto above_0_to_1() {
    return number_check("a number above 0 and at most 1",
                        [](double value) { return value > 0 && value <= 1; });
}

}  // namespace mllama
