// Added tokens (special ones such as <|eot_id|> among them): found in a text before anything else
// sees it. Reference: tokenizers tokenizer/added_vocabulary.rs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mllama {

/// An entry of tokenizer.json's `added_tokens`.
struct AddedToken {
    std::string content;
    int32_t id = 0;
    bool special =
        false;  ///< left out by decoding with skip_special; text under parse_special = false
    bool lstrip = false;       ///< takes the white space before it along
    bool rstrip = false;       ///< takes the white space after it along
    bool single_word = false;  ///< only where no word character touches it
    bool normalized =
        false;  ///< looked for after the tokens that are not, in what those leave over

    bool operator==(const AddedToken&) const = default;
};

/// A stretch of a text: an added token, or text between added tokens.
struct TextPart {
    static constexpr int32_t plain = -1;
    std::string_view text;  ///< empty for an added token
    int32_t id = plain;     ///< of an added token
};

/// The added tokens of a tokenizer. Matching is leftmost, of those the longest, then goes on behind
/// the match; time is the text's length times, at worst, the longest token's.
class AddedTokens {
  public:
    static constexpr size_t max_content = 4096;  ///< bytes of a token: bounds the matching time

    AddedTokens() = default;
    /// Contents are not empty, distinct, at most max_content bytes; ids are distinct.
    explicit AddedTokens(std::vector<AddedToken> tokens);

    /// Cuts a UTF-8 text into parts; plain ones are not empty. (Where a token that takes white
    /// space along meets one that begins with white space, a stretch can be in two parts: so it is
    /// in the reference.) parse_special = false: special tokens are text; added tokens that are not
    /// special are still found.
    [[nodiscard]] std::vector<TextPart> split(std::string_view text, bool parse_special) const;

    [[nodiscard]] const std::vector<AddedToken>& tokens() const { return tokens_; }
    /// The token with this id or content, or null.
    [[nodiscard]] const AddedToken* by_id(int32_t id) const;
    [[nodiscard]] const AddedToken* by_content(std::string_view content) const;

  private:
    static constexpr uint32_t none = UINT32_MAX;

    /// A byte trie, children as linked lists; node 0 is the root.
    struct Node {
        uint32_t first_child = none;
        uint32_t next_sibling = none;
        uint32_t token = none;  // index into tokens_, where a content ends
        char byte = 0;
    };
    using Trie = std::vector<Node>;
    struct Match {
        const AddedToken* token = nullptr;
        size_t begin = 0, end = 0;
    };

    static uint32_t child(const Trie& trie, uint32_t node, char byte);
    static void insert(Trie& trie, std::string_view content, uint32_t token);
    [[nodiscard]] Match find(const Trie& trie, std::string_view text, size_t from) const;
    void split_part(const Trie& trie, std::string_view text, bool parse_special,
                    std::vector<TextPart>& out) const;

    std::vector<AddedToken> tokens_;
    std::vector<uint32_t> by_id_, by_content_;  // indices into tokens_, sorted
    Trie literal_, normalized_;
};

}  // namespace mllama
