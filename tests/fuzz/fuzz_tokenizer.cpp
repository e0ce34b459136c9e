// libFuzzer program for tokenizer/: no input may crash it, and what must hold of every text does.
// First byte even: the rest is a tokenizer.json. Odd: a text for a small tokenizer that is built
// in.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "tokenizer/bpe.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/unicode.h"

using namespace mllama;

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

Json added(const char* content, int id, bool special) {
    return {{"content", content},    {"id", id},        {"special", special},
            {"lstrip", false},       {"rstrip", false}, {"single_word", false},
            {"normalized", !special}};
}

/// A token for every byte, a few merges, a few added tokens.
Tokenizer small_tokenizer() {
    Json vocabulary = Json::object();
    for (int byte = 0; byte < 256; ++byte)
        vocabulary[std::string(byte_level_char(static_cast<unsigned char>(byte)))] = byte;
    Json merges = Json::array();
    int next = 256;
    for (const auto& [left, right] : std::vector<std::pair<std::string, std::string>>{{"a", "b"},
                                                                                      {"b", "a"},
                                                                                      {"ab", "a"},
                                                                                      {"a", "a"},
                                                                                      {"aa", "aa"},
                                                                                      {"ab", "ab"},
                                                                                      {"'", "s"},
                                                                                      {"1", "2"}}) {
        vocabulary[left + right] = next++;
        merges.push_back({left, right});
    }
    const Json split = {{"type", "Split"},
                        {"pattern", {{"Regex", std::string(llama3_pattern)}}},
                        {"behavior", "Isolated"},
                        {"invert", false}};
    const Json bytes = {{"type", "ByteLevel"},
                        {"add_prefix_space", false},
                        {"trim_offsets", true},
                        {"use_regex", false}};
    const Json document = {
        {"version", "1.0"},
        {"added_tokens",
         {added("<|a|>", next, true), added("<|a", next + 1, true), added("ba", 257, false)}},
        {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}}},
        {"decoder", bytes},
        {"model",
         {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}, {"ignore_merges", true}}}};
    return Tokenizer::parse(document.dump(), "built in");
}

void check_text(const Tokenizer& tokenizer, std::string_view text) {
    if (find_invalid_utf8(text) != std::string_view::npos) {
        std::string valid;
        append_utf8_lossy(text, true, valid);
        require(find_invalid_utf8(valid) == std::string_view::npos);
        try {
            (void)tokenizer.encode(text);
            std::abort();
        } catch (const Error&) {
        }
        check_text(tokenizer, valid);
        return;
    }
    std::string joined;
    for (const std::string_view piece : pre_tokenize(text)) {
        require(!piece.empty());
        joined += piece;
    }
    require(joined == text);
    for (const bool parse_special : {false, true}) {
        const std::vector<int32_t> ids = tokenizer.encode(text, {.parse_special = parse_special});
        require(tokenizer.decode(ids, false) == text);
        for (const bool skip : {false, true}) {
            StreamDecoder decoder(tokenizer, skip);
            std::string streamed;
            for (const int32_t id : ids) streamed += decoder.push(id);
            require(streamed + decoder.finish() == tokenizer.decode(ids, skip));
        }
    }
}

/// Any bytes as ids: streaming and whole decoding agree, whatever characters they break.
void check_ids(const Tokenizer& tokenizer, std::string_view bytes) {
    std::vector<int32_t> ids;
    StreamDecoder decoder(tokenizer, false);
    std::string streamed;
    for (const char byte : bytes) {
        ids.push_back(static_cast<unsigned char>(byte));
        const std::string piece = decoder.push(ids.back());
        require(find_invalid_utf8(piece) == std::string_view::npos);
        streamed += piece;
    }
    require(streamed + decoder.finish() == tokenizer.decode(ids, false));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
    static const Tokenizer tokenizer = small_tokenizer();
    if (data[0] % 2 == 1) {
        check_text(tokenizer, rest);
        check_ids(tokenizer, rest);
        return 0;
    }
    try {
        const Tokenizer parsed = Tokenizer::parse(rest, "input");
        const std::vector<int32_t> ids =
            parsed.encode("It's 12 <|a|> lakes\n\n  and\t1 boat \xE6\xB9\x96");
        (void)parsed.decode(ids, true);
    } catch (const Error&) {
    }
    return 0;
}
