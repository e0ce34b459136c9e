// The whole tokenizer against the tokenizers library (tests/goldens/make_tokenizer_goldens.py), and
// bad input.
#include <doctest/doctest.h>

#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "io/json.h"
#include "tokenizer/bpe.h"
#include "tokenizer/unicode.h"

using namespace mllama;

namespace {

using Ids = std::vector<int32_t>;

std::string golden(const std::string& file) {
    return std::string(MLLAMA_TEST_DATA) + "/goldens/tokenizer/" + file;
}

const Tokenizer& llama() {
    static const Tokenizer tokenizer = Tokenizer::load(golden("llama.json"));
    return tokenizer;
}

const Tokenizer& flags() {
    static const Tokenizer tokenizer = Tokenizer::load(golden("flags.json"));
    return tokenizer;
}

/// Calls `row` with each line of a golden file; returns how many there are.
size_t for_each_row(const std::string& file, const std::function<void(const Json&)>& row) {
    std::istringstream lines(read_file(golden(file)));
    size_t count = 0;
    for (std::string line; std::getline(lines, line); ++count) row(parse_json(line, file));
    return count;
}

Ids encode_as_text(const Tokenizer& tokenizer, std::string_view text) {
    return tokenizer.encode(text, {.parse_special = false});
}

std::string decode_streaming(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
    StreamDecoder decoder(tokenizer, skip_special);
    std::string text;
    for (const int32_t id : ids) {
        const std::string piece = decoder.push(id);
        REQUIRE(find_invalid_utf8(piece) == std::string_view::npos);
        text += piece;
    }
    return text + decoder.finish();
}

/// The message of the Error that parsing the document gives; empty if there is none.
std::string parse_failure(const std::string& text) {
    try {
        (void)Tokenizer::parse(text, "tokenizer.json");
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

Json llama_document() {
    static const Json document = read_json_file(golden("llama.json"));
    return document;
}

/// parse_failure of the small Llama tokenizer with one change.
std::string failure_with(const std::function<void(Json&)>& change) {
    Json document = llama_document();
    change(document);
    return parse_failure(document.dump());
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("encode_20500_strings_in_24_scripts_matches_the_library") {
    size_t wrong = 0;
    const size_t count = for_each_row("strings.jsonl", [&](const Json& row) {
        const auto text = row[0].get<std::string>();
        const Ids expected = Json(row.begin() + 1, row.end()).get<Ids>();
        if (llama().encode(text) == expected) return;
        INFO("text: ", text);
        CHECK(++wrong == 0);
    });
    CHECK(count == 20500);
}

TEST_CASE("encode_with_flagged_added_tokens_matches_the_library") {
    const size_t count = for_each_row("flags.jsonl", [&](const Json& row) {
        const auto text = row[0].get<std::string>();
        INFO("text: ", text);
        CHECK(flags().encode(text) == row[1].get<Ids>());
        CHECK(encode_as_text(flags(), text) == row[2].get<Ids>());
    });
    CHECK(count == 3000);
}

TEST_CASE("decode_whole_and_streaming_match_the_library") {
    const size_t count = for_each_row("decode.jsonl", [&](const Json& row) {
        const Ids ids = row[0].get<Ids>();
        INFO("ids: ", row[0].dump());
        CHECK(llama().decode(ids, false) == row[1].get<std::string>());
        CHECK(llama().decode(ids, true) == row[2].get<std::string>());
        CHECK(decode_streaming(llama(), ids, false) == row[1].get<std::string>());
        CHECK(decode_streaming(llama(), ids, true) == row[2].get<std::string>());
    });
    CHECK(count == 2000);
}

TEST_CASE("decode_undoes_encode_for_every_golden_string") {
    for_each_row("strings.jsonl", [&](const Json& row) {
        const auto text = row[0].get<std::string>();
        if (llama().decode(llama().encode(text), false) != text) FAIL(text);
        if (llama().decode(encode_as_text(llama(), text), false) != text) FAIL(text);
    });
}

TEST_CASE("both_notations_of_merges_give_the_same_tokenizer") {
    Json document = llama_document();
    for (Json& merge : document["model"]["merges"]) {
        const auto spelled = merge.get<std::string>();
        const size_t space = spelled.find(' ');
        merge = {spelled.substr(0, space), spelled.substr(space + 1)};
    }
    const Tokenizer pairs = Tokenizer::parse(document.dump(), "pairs");
    for_each_row("strings.jsonl", [&](const Json& row) {
        const auto text = row[0].get<std::string>();
        if (pairs.encode(text) != llama().encode(text)) FAIL(text);
    });
}

TEST_CASE("ignore_merges_takes_a_token_whole_that_no_merge_makes") {
    Json document = llama_document();
    document["model"]["ignore_merges"] = false;
    const Tokenizer merging = Tokenizer::parse(document.dump(), "merging");
    const auto whole = llama().id_of("print");
    REQUIRE(whole);
    CHECK(llama().encode("print") == Ids{*whole});
    CHECK(merging.encode("print").size() > 1);
    CHECK(llama().encode("prints").front() != *whole);  // only whole pieces
}

TEST_CASE("encode_add_special_puts_the_template_around_whatever_the_text_holds") {
    const int32_t bos = llama().bos_id().value();
    CHECK(llama().token(bos) == "<|begin_of_text|>");
    CHECK(llama().encode("", {.add_special = true}) == Ids{bos});
    CHECK(llama().encode("<|begin_of_text|>", {.add_special = true}) == Ids{bos, bos});
    CHECK(llama().encode("<|begin_of_text|>") == Ids{bos});
    CHECK(!flags().bos_id());
    CHECK(flags().encode("a", {.add_special = true}) == flags().encode("a"));
}

TEST_CASE("template_with_tokens_on_both_sides_is_applied") {
    Json document = llama_document();
    Json& step = document["post_processor"]["processors"][1];
    const Json token = step["single"][0];
    step["single"] = {token, token, step["single"][1], token};
    const Tokenizer tokenizer = Tokenizer::parse(document.dump(), "both");
    const int32_t bos = llama().bos_id().value();
    const int32_t a = llama().encode("a").front();
    CHECK(tokenizer.encode("a", {.add_special = true}) == Ids{bos, bos, a, bos});
    CHECK(tokenizer.encode("a") == Ids{a});
}

TEST_CASE("lookups_by_spelling_and_id") {
    const Tokenizer& tokenizer = llama();
    CHECK(tokenizer.vocab_size() == 2414);
    CHECK(tokenizer.added_tokens().size() == 14);
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
        CHECK(tokenizer.id_of(tokenizer.token(id)) == id);
    CHECK(tokenizer.is_special(tokenizer.id_of("<|image|>").value()));
    CHECK(!tokenizer.is_special(0));
    CHECK(!tokenizer.is_special(-1));
    CHECK(!tokenizer.id_of("<|no such token|>"));
    CHECK(!flags().is_special(flags().id_of("boat").value()));
}

TEST_CASE("decode_of_an_id_that_is_none_names_it") {
    for (const int32_t id : {-1, llama().vocab_size(), INT32_MAX, INT32_MIN}) {
        CHECK_THROWS_WITH_AS(llama().decode(Ids{0, id}, false),
                             doctest::Contains(std::to_string(id).c_str()), Error);
        CHECK_THROWS_AS(StreamDecoder(llama(), true).push(id), Error);
    }
}

TEST_CASE("encode_of_invalid_utf8_names_the_offset") {
    CHECK_THROWS_WITH_AS(llama().encode("abc\xFF"), doctest::Contains("offset 3"), Error);
    CHECK_THROWS_WITH_AS(llama().encode("abcd\xE6\xB9"), doctest::Contains("offset 4"), Error);
}

TEST_CASE("stream_decoder_holds_back_half_a_character_and_starts_afresh_after_finish") {
    const Ids ids = encode_as_text(flags(), "\xF0\x9F\xAB\xA0");  // 🫠: a token a byte
    REQUIRE(ids.size() >= 2);
    StreamDecoder decoder(flags(), false);
    for (size_t i = 0; i + 1 < ids.size(); ++i) CHECK(decoder.push(ids[i]).empty());
    CHECK(decoder.push(ids.back()) == "\xF0\x9F\xAB\xA0");
    CHECK(decoder.finish().empty());
    CHECK(decoder.push(ids.front()).empty());
    CHECK(decoder.finish() == "\xEF\xBF\xBD");
    CHECK(decoder.finish().empty());
}

TEST_CASE("stream_decoder_passes_over_special_tokens_within_a_character") {
    Ids ids = encode_as_text(llama(), "\xF0\x9F\xAB\xA0");
    REQUIRE(ids.size() >= 2);
    ids.insert(ids.begin() + 1, llama().id_of("<|eot_id|>").value());
    CHECK(decode_streaming(llama(), ids, true) == "\xF0\x9F\xAB\xA0");
    CHECK(decode_streaming(llama(), ids, false) == llama().decode(ids, false));
}

TEST_CASE("encode_a_megabyte_in_one_piece_takes_no_quadratic_time") {
    for (const std::string_view unit : {"a", " ", "!?", "\n", "ab", "<|image|", "\xE6\xB9\x96"}) {
        std::string text;
        while (text.size() < (1 << 20)) text += unit;
        CHECK(llama().decode(llama().encode(text), false) == text);
    }
}

TEST_CASE("encode_from_several_threads_gives_the_same_ids") {
    std::string text;
    for_each_row("strings.jsonl", [&](const Json& row) { text += row[0].get<std::string>(); });
    const Ids expected = llama().encode(text);
    std::vector<Ids> found(4);
    std::vector<std::thread> threads;
    for (Ids& ids : found) threads.emplace_back([&] { ids = llama().encode(text); });
    for (std::thread& thread : threads) thread.join();
    for (const Ids& ids : found) CHECK(ids == expected);
}

TEST_CASE("a_vocabulary_without_a_byte_leaves_it_out_as_the_library_does") {
    Json document = llama_document();
    document["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 2}};
    document["model"]["merges"] = {"a b"};
    document["added_tokens"] = Json::array();
    document["post_processor"] = nullptr;
    CHECK(Tokenizer::parse(document.dump(), "three tokens").encode("a c b, ab abb") ==
          Ids{0, 1, 2, 2, 1});
    document["model"]["unk_token"] = "a";  // now they would be unknown: not implemented
    CHECK(contains(parse_failure(document.dump()), "model.unk_token: expected null"));
}

TEST_CASE("settings_that_change_no_ids_are_accepted") {
    CHECK(failure_with([](Json& d) { d["truncation"] = {{"max_length", 8}}; }).empty());
    CHECK(failure_with([](Json& d) { d["padding"] = {{"strategy", "BatchLongest"}}; }).empty());
    CHECK(failure_with([](Json& d) { d["post_processor"] = nullptr; }).empty());
    CHECK(failure_with([](Json& d) {
              d["post_processor"] = d["post_processor"]["processors"][1];
          }).empty());
    CHECK(failure_with([](Json& d) { d["model"]["dropout"] = 0.0; }).empty());
    CHECK(failure_with([](Json& d) {
              d["model"]["unk_token"] = "a";
          }).empty());  // every byte has a token
    CHECK(failure_with([](Json& d) { d["model"]["continuing_subword_prefix"] = ""; }).empty());
    CHECK(failure_with([](Json& d) { d["model"].erase("type"); }).empty());
    CHECK(failure_with([](Json& d) { d["model"].erase("ignore_merges"); }).empty());
    CHECK(failure_with([](Json& d) { d["added_tokens"] = nullptr; }).empty());
    CHECK(failure_with([](Json& d) {
              d["something else"] = {{"a", {1, 2, {{"b", nullptr}}}}};
          }).empty());
}

TEST_CASE("a_part_that_is_not_implemented_is_an_error_that_names_it") {
    struct Case {
        std::string part;  // what the message must name
        std::function<void(Json&)> change;
    };
    const Json nfc = {{"type", "NFC"}};
    const std::vector<Case> cases = {
        {"tokenizer.json: version: expected \"1.0\"", [](Json& d) { d["version"] = "2.0"; }},
        {"tokenizer.json: normalizer: expected null", [&](Json& d) { d["normalizer"] = nfc; }},
        {"pre_tokenizer", [](Json& d) { d["pre_tokenizer"] = nullptr; }},
        {"pre_tokenizer.type",
         [](Json& d) {
             d["pre_tokenizer"] = {{"type", "Whitespace"}};
         }},
        {"pre_tokenizer.pretokenizers",
         [](Json& d) { d["pre_tokenizer"]["pretokenizers"].erase(0); }},
        {"pre_tokenizer.pretokenizers[0].type",
         [](Json& d) { d["pre_tokenizer"]["pretokenizers"][0]["type"] = "Digits"; }},
        {"pre_tokenizer.pretokenizers[0].pattern",
         [](Json& d) { d["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\s+"; }},
        {"pre_tokenizer.pretokenizers[0].pattern",
         [](Json& d) {
             d["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", " "}};
         }},
        {"pre_tokenizer.pretokenizers[0].behavior",
         [](Json& d) { d["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }},
        {"pre_tokenizer.pretokenizers[0].invert",
         [](Json& d) { d["pre_tokenizer"]["pretokenizers"][0]["invert"] = true; }},
        {"pre_tokenizer.pretokenizers[1].use_regex",
         [](Json& d) { d["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; }},
        {"pre_tokenizer.pretokenizers[1].use_regex",
         [](Json& d) { d["pre_tokenizer"]["pretokenizers"][1].erase("use_regex"); }},
        {"pre_tokenizer.pretokenizers[1].add_prefix_space",
         [](Json& d) { d["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; }},
        {"decoder", [](Json& d) { d["decoder"] = nullptr; }},
        {"decoder.type", [](Json& d) { d["decoder"]["type"] = "Metaspace"; }},
        {"post_processor",
         [](Json& d) {
             d["post_processor"] = {{"type", "RobertaProcessing"}};
         }},
        {"post_processor",
         [](Json& d) {
             d["post_processor"]["processors"].push_back(d["post_processor"]["processors"][1]);
         }},
        {"post_processor.single",
         [](Json& d) { d["post_processor"]["processors"][1]["single"].erase(1); }},
        {"post_processor.single",
         [](Json& d) {
             d["post_processor"]["processors"][1]["single"][1]["Sequence"]["id"] = "B";
         }},
        {"<|begin_of_text|>",
         [](Json& d) { d["post_processor"]["processors"][1]["special_tokens"].clear(); }},
        {"model.type: expected \"BPE\", found \"Unigram\"",
         [](Json& d) { d["model"]["type"] = "Unigram"; }},
        {"model.dropout", [](Json& d) { d["model"]["dropout"] = 0.1; }},
        {"model.continuing_subword_prefix",
         [](Json& d) { d["model"]["continuing_subword_prefix"] = "##"; }},
        {"model.end_of_word_suffix", [](Json& d) { d["model"]["end_of_word_suffix"] = "</w>"; }},
        {"model.ignore_merges", [](Json& d) { d["model"]["ignore_merges"] = "yes"; }},
        {"model.vocab", [](Json& d) { d["model"].erase("vocab"); }},
        {"model.vocab",
         [](Json& d) {
             d["model"]["vocab"] = {1, 2};
         }},
        {"model.vocab: token \"zz\": expected an id, found -1",
         [](Json& d) { d["model"]["vocab"]["zz"] = -1; }},
        {"model.vocab: token \"zz\"", [](Json& d) { d["model"]["vocab"]["zz"] = 4294967296; }},
        {"model.vocab: token \"zz\"", [](Json& d) { d["model"]["vocab"]["zz"] = "7"; }},
        {"model.vocab: token \"zz\"",
         [](Json& d) {
             d["model"]["vocab"]["zz"] = {{"id", 7}};
         }},
        {"model.vocab: token \"zz\" with id 5", [](Json& d) { d["model"]["vocab"]["zz"] = 5; }},
        {"model.merges", [](Json& d) { d["model"].erase("merges"); }},
        {"merge 1: expected two tokens", [](Json& d) { d["model"]["merges"][0] = "abc"; }},
        {"merge 1: expected two tokens", [](Json& d) { d["model"]["merges"][0] = "a b c"; }},
        {"merge 2: expected a string", [](Json& d) { d["model"]["merges"][1] = 3; }},
        {"merge 2: expected a string",
         [](Json& d) {
             d["model"]["merges"][1] = {{"a", "b"}};
         }},
        {"merge 2: expected two strings, found one",
         [](Json& d) { d["model"]["merges"][1] = {"a"}; }},
        {"merge 2: expected two strings, found more",
         [](Json& d) {
             d["model"]["merges"][1] = {"a", "b", "c"};
         }},
        {"merge 2: expected tokens of model.vocab, found \"zzz\"",
         [](Json& d) { d["model"]["merges"][1] = "a zzz"; }},
        {"added_tokens", [](Json& d) { d["added_tokens"] = "none"; }},
        {"added_tokens[1].special", [](Json& d) { d["added_tokens"][1].erase("special"); }},
        {"added_tokens[0].content", [](Json& d) { d["added_tokens"][0]["content"] = 7; }},
        {"added_tokens[0].id", [](Json& d) { d["added_tokens"][0]["id"] = 1.5; }},
        {"added_tokens[13]: token \"<|image|>\": expected id 2413, found 2500",
         [](Json& d) { d["added_tokens"][13]["id"] = 2500; }},
        {"at most 4096 bytes, found 5000",
         [](Json& d) { d["added_tokens"][0]["content"] = std::string(5000, 'x'); }},
        {"the file: expected an object", [](Json& d) { d = Json::array(); }},
        {"model: expected an object", [](Json& d) { d.erase("model"); }},
    };
    for (const Case& c : cases) {
        const std::string message = failure_with(c.change);
        INFO(c.part, " <> ", message);
        CHECK(contains(message, "tokenizer.json: "));
        CHECK(contains(message, c.part));
        CHECK(!contains(message, "\n"));
    }
}

TEST_CASE("a_token_or_part_that_is_there_twice_is_an_error") {
    CHECK(contains(failure_with([](Json& d) {
                       d["added_tokens"].push_back(d["added_tokens"][0]);
                       d["added_tokens"][14]["id"] = 2414;
                   }),
                   "<|begin_of_text|>"));
    CHECK(contains(parse_failure(R"({"model": {"vocab": {"a": 0, "a": 1}, "merges": []}})"),
                   "\"a\" with id 1"));
    CHECK(contains(parse_failure(R"({"model": {"vocab": {}, "vocab": {}, "merges": []}})"),
                   "model.vocab is there twice"));
}

TEST_CASE("a_broken_file_is_an_error_wherever_it_is_cut") {
    const std::string text = read_file(golden("llama.json"));
    REQUIRE(parse_failure(text).empty());
    std::mt19937 random(11);
    for (int i = 0; i < 200; ++i) {
        const size_t cut = std::uniform_int_distribution<size_t>(0, text.size() - 3)(random);
        CHECK(contains(parse_failure(text.substr(0, cut)), "tokenizer.json: "));
    }
    CHECK(contains(parse_failure(text.substr(0, 1000)), "not valid JSON"));
    CHECK(contains(parse_failure("{\"a\": \"\xFF\"}"), "not valid JSON"));
    CHECK(contains(parse_failure("1e999"), "not valid JSON"));
    CHECK(contains(parse_failure(std::string(1 << 20, '[')), "at most 64 nested"));
    CHECK_THROWS_WITH_AS(Tokenizer::load(golden("missing.json")), doctest::Contains("missing.json"),
                         Error);
}
