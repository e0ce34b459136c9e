// The tokenizer of Llama 3: byte-level byte pair encoding, read from a published tokenizer.json.
//
//   encode: text - added_tokens cut out - pretokenize: pieces - byte_level: symbols - merges - ids
//   decode: ids - vocabulary: spellings - byte_level: bytes - unicode: UTF-8, lossy - text
//
// Same ids and same text as the tokenizers library 0.22.2 (Tokenizer.encode, Tokenizer.decode).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer_json.h"

namespace mllama {

struct EncodeOptions {
    /// Special tokens written out in the text become their ids; false: they are mere text.
    bool parse_special = true;
    /// The post-processor's tokens are put around the result (<|begin_of_text|> before it). A text
    /// that brings its own would have two: who assembles a prompt decides.
    bool add_special = false;
};

/// Immutable once loaded: all const members may be called from several threads at a time.
class Tokenizer {
  public:
    /// Reads a tokenizer.json. Error: names the file and what of it is broken or not implemented.
    static Tokenizer load(const std::string& path);
    /// The same from memory; `name` stands for the file in messages.
    static Tokenizer parse(std::string_view json, const std::string& name);

    /// The ids of a text. Error: invalid UTF-8 (names the byte offset), a text of 2 GiB or more.
    [[nodiscard]] std::vector<int32_t> encode(std::string_view text,
                                              const EncodeOptions& options = {}) const;

    /// The text of ids; bytes that are not UTF-8 become U+FFFD. Error: an id without a token.
    [[nodiscard]] std::string decode(std::span<const int32_t> ids, bool skip_special) const;

    /// Appends the bytes of one token, which may begin or end within a character. Error: as decode.
    void append_bytes(int32_t id, std::string& out) const;

    /// The id of a token by its spelling: an added token's content, or a byte-level form ("Ġthe").
    [[nodiscard]] std::optional<int32_t> id_of(std::string_view token) const;
    /// The spelling of an id. Error: an id without a token (names it).
    [[nodiscard]] std::string_view token(int32_t id) const;
    [[nodiscard]] bool is_special(int32_t id) const;
    /// The largest id + 1, added tokens included.
    [[nodiscard]] int32_t vocab_size() const { return vocab_size_; }
    /// The first id that the post-processor puts before a text.
    [[nodiscard]] std::optional<int32_t> bos_id() const;
    [[nodiscard]] const std::vector<AddedToken>& added_tokens() const {
        return parts_.added.tokens();
    }

  private:
    class Encoder;  // the working memory of one call of encode

    explicit Tokenizer(TokenizerDescription parts);

    TokenizerDescription parts_;
    std::array<int32_t, 256> byte_ids_;  // of the one-byte tokens; -1: the vocabulary has none
    int32_t vocab_size_ = 0;
};

/// Decoding as the ids come: the texts are whole characters, and together decode() of all ids.
class StreamDecoder {
  public:
    /// Keeps a reference to the tokenizer.
    StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
        : tokenizer_(&tokenizer), skip_special_(skip_special) {}

    /// The text that this id completes, empty within a character. Error: as Tokenizer::decode.
    std::string push(int32_t id);
    /// What an unfinished character at the end decodes to: U+FFFD, or nothing. Then starts afresh.
    std::string finish();

  private:
    const Tokenizer* tokenizer_;
    bool skip_special_;
    std::string pending_;  // bytes of an unfinished character, at most three between calls
};

}  // namespace mllama
