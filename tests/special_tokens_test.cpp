// The special tokens that a checkpoint's files name.
#include "tokenizer/special_tokens.h"

#include <doctest/doctest.h>

#include "io/json.h"
#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

TEST_CASE("special_tokens_are_strings_or_objects") {
    const TemporaryDirectory folder;
    CHECK(read_special_tokens(folder.path()).empty());
    folder.write("tokenizer_config.json",
                 R"({"bos_token": "<b>", "eos_token": {"content": "<e>", "lstrip": false},
                     "unk_token": null, "pad_token": "", "model_max_length": 5,
                     "extra_special_tokens": {"image_token": "<i>"}})");
    CHECK(read_special_tokens(folder.path()) == SpecialTokens{{"bos_token", "<b>"},
                                                              {"eos_token", "<e>"},
                                                              {"pad_token", ""},
                                                              {"image_token", "<i>"}});
}

TEST_CASE("special_tokens_map_counts_where_no_added_tokens_are_listed") {
    const TemporaryDirectory folder;
    folder.write("special_tokens_map.json", R"({"bos_token": "<map>"})");
    CHECK(read_special_tokens(folder.path()).at("bos_token") == "<map>");
    folder.write("tokenizer_config.json", R"({"bos_token": "<b>"})");
    CHECK(read_special_tokens(folder.path()).at("bos_token") == "<map>");
    folder.write("tokenizer_config.json", R"({"bos_token": "<b>", "added_tokens_decoder": {}})");
    CHECK(read_special_tokens(folder.path()).at("bos_token") == "<b>");
}

TEST_CASE("special_tokens_of_a_wrong_type_are_named") {
    const TemporaryDirectory folder;
    for (const char* const value : {"5", "[\"<b>\"]", "{}", "true", "{\"content\": null}"}) {
        CAPTURE(value);
        folder.write("tokenizer_config.json", std::string("{\"bos_token\": ") + value + "}");
        CHECK(holds_all(error_of([&] { return read_special_tokens(folder.path()); }),
                        {"/tokenizer_config.json: bos_token: expected a token as a string"}));
    }
    folder.write("tokenizer_config.json", R"({"extra_special_tokens": {"image_token": 3}})");
    CHECK(holds_all(error_of([&] { return read_special_tokens(folder.path()); }),
                    {"tokenizer_config.json: image_token: expected a token"}));
    folder.write("tokenizer_config.json", "[]");
    CHECK(holds_all(error_of([&] { return read_special_tokens(folder.path()); }),
                    {"tokenizer_config.json: expected a JSON object"}));
}
