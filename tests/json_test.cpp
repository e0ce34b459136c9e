// JSON errors name the file and the place, and no text is too much for the parser.
#include "io/json.h"

#include <doctest/doctest.h>

#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

TEST_CASE("json_error_names_file_line_and_column") {
    CHECK(error_of([] { parse_json("{\n  \"a\": 1,\n  \"b\" 2\n}", "x.json"); }) ==
          "x.json: not valid JSON at line 3 column 7");
    CHECK(error_of([] { parse_json("[1, 2", "x.json"); }) ==
          "x.json: not valid JSON at line 1 column 6");
    CHECK(error_of([] { parse_json("", "x.json"); }) ==
          "x.json: not valid JSON at line 1 column 1");
    CHECK(holds_all(error_of([] { parse_json("\"\xFF\"", "x.json"); }),
                    {"x.json: not valid JSON at line 1"}));
    CHECK(holds_all(error_of([] { parse_json("1e999", "x.json"); }), {"x.json: not valid JSON"}));
    CHECK(holds_all(error_of([] { parse_json("[NaN]", "x.json"); }), {"line 1 column 2"}));
}

TEST_CASE("json_text_behind_its_end_is_an_error") {
    CHECK(holds_all(error_of([] { parse_json("{} {}", "x"); }), {"line 1 column 4"}));
    CHECK(holds_all(error_of([] { parse_json(std::string_view("{}\n\0garbage", 11), "x"); }),
                    {"line 2 column 1"}));
    CHECK(parse_json(R"(["\u0000"])", "x")[0].get<std::string>() == std::string(1, '\0'));
}

TEST_CASE("json_nested_without_bound_is_an_error") {
    for (const char* open : {"[", "{\"a\":"}) {
        std::string text;
        for (int i = 0; i < 1'000'000; ++i) text += open;
        CHECK(holds_all(error_of([&] { parse_json(text, "x.json"); }),
                        {"x.json: nested deeper than 500"}));
        CHECK(holds_all(error_of([&] { parse_ordered_json(text, "x.json"); }),
                        {"x.json: nested deeper than 500"}));
    }
    CHECK(
        holds_all(error_of([] { parse_json(std::string(501, '[') + std::string(501, ']'), "x"); }),
                  {"column 501"}));
}

TEST_CASE("json_nested_as_far_as_allowed_can_be_used") {
    const Json deep = parse_json(std::string(500, '[') + std::string(500, ']'), "x");
    const Json copy = deep;
    CHECK(copy.dump().size() == 1000);
    // Brackets in strings do not nest.
    const std::string text = "[\"" + std::string(2000, '[') + "\\\"[\\\\\"]";
    CHECK(parse_json(text, "x")[0].get<std::string>().size() == 2003);
}

TEST_CASE("json_order_of_keys") {
    CHECK(parse_ordered_json(R"({"b":1,"a":2})", "x").dump() == R"({"b":1,"a":2})");
    CHECK(parse_json(R"({"b":1,"a":2})", "x").dump() == R"({"a":2,"b":1})");
}

TEST_CASE("json_file_that_cannot_be_read_names_the_reason") {
    const TemporaryDirectory directory;
    CHECK(error_of([&] { read_json_file(directory / "x.json"); }) ==
          (directory / "x.json") + ": cannot be read: No such file or directory");
    CHECK(error_of([&] { read_json_file(directory.path()); }) ==
          directory.path() + ": expected a file, found a directory");
    write_bytes(directory / "x.json", "{\"a\": [1, 2]}");
    CHECK(read_json_file(directory / "x.json")["a"][1] == 2);
    CHECK(read_file(directory / "x.json", 13).size() == 13);
    CHECK(holds_all(error_of([&] { read_file(directory / "x.json", 12); }),
                    {"x.json: larger than the 12 bytes"}));
}
