// Patterns of module names: Python's re.match, for what such lists hold, in bounded time.
#include "mllama/module_pattern.h"

#include <doctest/doctest.h>

#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

bool matches(const std::string& pattern, const std::string& name) {
    return ModulePattern(pattern, "list").matches(name);
}

std::string error(const std::string& pattern) {
    return error_of([&] { const ModulePattern made(pattern, "config.json: ignore"); });
}

}  // namespace

TEST_CASE("module_pattern_without_mark_is_the_whole_name") {
    CHECK(matches("lm_head", "lm_head"));
    CHECK(!matches("lm_head", "model.lm_head"));
    CHECK(!matches("lm_head", "lm_head.weight"));
    CHECK(!matches("a.c", "abc"));
    CHECK(!matches("vision_model", "vision_model.layers.0"));
}

TEST_CASE("module_pattern_matches_the_beginning_of_a_name_as_python_does") {
    // {pattern, name, what Python 3.11's re.match says}
    struct Case {
        const char *pattern, *name;
        bool expected;
    };
    const Case cases[] = {
        {"re:.*lm_head", "language_model.lm_head", true},
        {"re:.*lm_head", "lm_head", true},
        {"re:vision_model.*", "vision_model.transformer.layers.0.mlp.fc1", true},
        {"re:vision_model.*", "model.vision_model.transformer", false},
        {"re:multi_modal", "multi_modal_projector", true},
        {"re:lm_head$", "lm_head.weight", false},
        {"re:lm_head$", "lm_head", true},
        {"re:^lm_head", "lm_head", true},
        {"re:.*^lm_head", "x.lm_head", false},
        {"re:", "anything", true},
        {"re:.*layers\\.(0|1|12)\\..*", "model.layers.12.mlp", true},
        {"re:.*layers\\.(0|1|12)\\..*", "model.layers.2.mlp", false},
        {"re:.*layers\\.(0|1|12)\\..*", "model.layers.13.mlp", false},
        {"re:a.c", "abc", true},
        {"re:a\\.c", "abc", false},
        {"re:a\\.c", "a.c", true},
        {"re:(?:ab)+$", "ababab", true},
        {"re:(?:ab)+$", "aba", false},
        {"re:ab?c", "ac", true},
        {"re:ab?c", "abbc", false},
        {"re:ab*?c", "abbbc", true},
        {"re:a{3}$", "aaa", true},
        {"re:a{3}$", "aaaa", false},
        {"re:a{2,}$", "aaaa", true},
        {"re:a{2,}$", "a", false},
        {"re:a{,2}$", "aaa", false},
        {"re:a{1,3}$", "aaa", true},
        {"re:(a{2}){2}$", "aaaa", true},
        {"re:a{x}", "a{x}", true},
        {"re:a{}", "a{}", true},
        {"re:[qkv]_proj", "k_proj", true},
        {"re:[qkv]_proj", "o_proj", false},
        {"re:[^qkv]_proj", "o_proj", true},
        {"re:[a-c1-3]+$", "ab31c", true},
        {"re:[a-c1-3]+$", "ab34c", false},
        {"re:[]a]+$", "]a", true},
        {"re:[a-]+$", "a-a", true},
        {"re:[\\d_]+$", "1_2", true},
        {"re:\\d+\\.\\w+$", "12.mlp_1", true},
        {"re:\\D", "1", false},
        {"re:\\S\\s\\W", "a \t", true},
        {"re:a|b|cd", "cd", true},
        {"re:a||b$", "zzz", true},
        {"re:(a|)(b|)$", "ab", true},
        {"re:()*$", "", true},
        {"re:(a*)*$", "aaab", false},
        {"re:(a*)*b$", "aaab", true},
        {"re:x*", "", true},
        {"re:.", "", false},
        {"re:.*mlp.*(gate|up)_proj$", "language_model.model.layers.3.mlp.up_proj", true},
    };
    for (const Case& c : cases) {
        CAPTURE(c.pattern);
        CAPTURE(c.name);
        CHECK(matches(c.pattern, c.name) == c.expected);
    }
}

TEST_CASE("module_pattern_that_is_not_understood_is_an_error_that_shows_it") {
    for (const std::string pattern :
         {"re:(a", "re:a)", "re:[a", "re:*a", "re:a**", "re:a|+", "re:a\\", "re:a\\b", "re:(?!a)b",
          "re:(?=a)", "re:(?i)a", "re:(?P<n>a)", "re:(a)\\1", "re:a{3,2}", "re:a{2000}", "re:[z-a]",
          "re:[\\d-z]", "re:[]"}) {
        CAPTURE(pattern);
        const std::string message = error(pattern);
        CHECK(message.starts_with("config.json: ignore: pattern "));
        CHECK(message.find(pattern.substr(3)) != std::string::npos);
    }
}

TEST_CASE("module_pattern_hostile_ones_are_refused_or_run_in_bounded_time") {
    CHECK(error("re:" + std::string(5000, 'a')) != "");
    CHECK(error("re:" + std::string(400, '(') + std::string(400, ')')) != "");
    CHECK(error("re:((((a{1000}){1000}){1000}){1000}){1000}") != "");
    const std::string name(3000, 'a');
    CHECK(!matches("re:(a*)*(a*)*(a|a)*(a*)*b", name));
    CHECK(!matches("re:(((((((((a*)*)*)*)*)*)*)*)*)*c", name));
    CHECK(!matches("re:(a|a){200}(a?){200}(.|a){200}b", name));
}

TEST_CASE("module_pattern_counts_the_steps_that_it_compiles_to") {
    const auto steps = [](const std::string& text) { return ModulePattern(text, "list").steps(); };
    CHECK(steps("lm_head") == 0);
    CHECK(steps("re:") == 1);  // the match
    CHECK(steps("re:abc$") == 5);
    CHECK(steps("re:a*") == 4);
    CHECK(steps("re:(b{1000}){3}") == 3001);
}
