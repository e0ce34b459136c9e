// Encoding and decoding over the parts that the other files of this folder make.
#include "tokenizer/bpe.h"

#include <algorithm>
#include <bit>

#include "io/json.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/unicode.h"

namespace mllama {

/// One call of encode: appends the ids of pieces to `ids`.
class Tokenizer::Encoder {
  public:
    Encoder(const Tokenizer& tokenizer, size_t text_size)
        : tokenizer_(tokenizer),
          seen_(std::bit_ceil(std::clamp<size_t>(text_size / 16, 16, 1 << 16))) {}

    std::vector<int32_t> ids;

    /// The ids of one pre-token.
    void add(std::string_view piece) {
        Seen& seen = seen_[hash_bytes(piece) >> 20 & (seen_.size() - 1)];
        if (seen.piece == piece) {
            for (size_t i = 0; i < seen.count; ++i) ids.push_back(ids[seen.first + i]);
            return;
        }
        const size_t first = ids.size();
        encode_new(piece);
        seen = {piece, first, ids.size() - first};
    }

  private:
    /// A piece met earlier in the text, and where its ids stand in `ids`. Words repeat: most pieces
    /// are looked up in this table, in which a later piece displaces an earlier one of the same
    /// hash.
    struct Seen {
        std::string_view piece;
        size_t first = 0;
        size_t count = 0;
    };

    void encode_new(std::string_view piece) {
        const TokenizerDescription& parts = tokenizer_.parts_;
        if (parts.ignore_merges) {
            spelling_.clear();
            append_byte_level(piece, spelling_);
            if (const auto id = parts.vocabulary.find(spelling_)) {
                ids.push_back(*id);
                return;
            }
        }
        symbols_.clear();
        for (const char byte : piece) {
            const int32_t id = tokenizer_.byte_ids_[static_cast<unsigned char>(byte)];
            if (id >= 0)
                symbols_.push_back(id);  // a byte without a token is left out, as in the reference
        }
        merger_.merge(parts.merges, symbols_);
        ids.insert(ids.end(), symbols_.begin(), symbols_.end());
    }

    const Tokenizer& tokenizer_;
    std::vector<Seen> seen_;  // a power of two
    std::string spelling_;
    std::vector<int32_t> symbols_;
    Merger merger_;
};

Tokenizer Tokenizer::load(const std::string& path) {
    constexpr int64_t max_bytes = int64_t{128} << 20;  // published files have 9 to 35 million
    return parse(read_file(path, max_bytes), path);
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& name) {
    return Tokenizer(parse_tokenizer_json(json, name));
}

Tokenizer::Tokenizer(TokenizerDescription parts) : parts_(std::move(parts)) {
    for (int byte = 0; byte < 256; ++byte) {
        const auto id = parts_.vocabulary.find(byte_level_char(static_cast<unsigned char>(byte)));
        byte_ids_[static_cast<size_t>(byte)] = id.value_or(-1);
    }
    vocab_size_ = parts_.vocabulary.id_limit();
    for (const AddedToken& token : parts_.added.tokens())
        vocab_size_ = std::max(vocab_size_, token.id + 1);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
    if (text.size() >= size_t{INT32_MAX})
        fail("a text to encode: expected less than 2 GiB, found ", text.size(), " bytes");
    if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
        fail("a text to encode: expected UTF-8, found an invalid byte at offset ", bad);
    }
    Encoder encoder(*this, text.size());
    if (options.add_special) encoder.ids = parts_.prefix;
    for (const TextPart& part : parts_.added.split(text, options.parse_special)) {
        if (part.id != TextPart::plain) {
            encoder.ids.push_back(part.id);
            continue;
        }
        for (size_t begin = 0; begin < part.text.size();) {
            const size_t end = pre_token_end(part.text, begin);
            encoder.add(part.text.substr(begin, end - begin));
            begin = end;
        }
    }
    if (options.add_special)
        encoder.ids.insert(encoder.ids.end(), parts_.suffix.begin(), parts_.suffix.end());
    return std::move(encoder.ids);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
    std::string bytes;
    for (const int32_t id : ids) {
        if (!(skip_special && is_special(id))) append_bytes(id, bytes);
    }
    std::string text;
    append_utf8_lossy(bytes, true, text);
    return text;
}

void Tokenizer::append_bytes(int32_t id, std::string& out) const {
    append_token_bytes(token(id), out);
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
    if (const AddedToken* added = parts_.added.by_content(token)) return added->id;
    return parts_.vocabulary.find(token);
}

std::string_view Tokenizer::token(int32_t id) const {
    if (const auto spelling = parts_.vocabulary.spelling(id)) return *spelling;
    if (const AddedToken* added = parts_.added.by_id(id)) return added->content;
    fail("token id ", id, ": the tokenizer has no such token (its ids are below ", vocab_size_,
         ")");
}

bool Tokenizer::is_special(int32_t id) const {
    const AddedToken* added = parts_.added.by_id(id);
    return added != nullptr && added->special;
}

std::optional<int32_t> Tokenizer::bos_id() const {
    return parts_.prefix.empty() ? std::nullopt : std::optional(parts_.prefix.front());
}

std::string StreamDecoder::push(int32_t id) {
    if (skip_special_ && tokenizer_->is_special(id)) return {};
    tokenizer_->append_bytes(id, pending_);
    std::string text;
    pending_.erase(0, append_utf8_lossy(pending_, false, text));
    return text;
}

std::string StreamDecoder::finish() {
    std::string text;
    append_utf8_lossy(pending_, true, text);
    pending_.clear();
    return text;
}

}  // namespace mllama
