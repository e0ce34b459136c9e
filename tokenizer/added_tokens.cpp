// The search for added tokens, with the flags' rules as the reference applies them.
#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "tokenizer/unicode.h"

namespace mllama {
namespace {

/// Where the last character of a non-empty UTF-8 text starts.
size_t last_char(std::string_view text) {
    size_t pos = text.size() - 1;
    while (pos > 0 && (static_cast<uint8_t>(text[pos]) & 0xC0) == 0x80) --pos;
    return pos;
}

bool starts_with_word(std::string_view text) {
    return !text.empty() && is_word_char(read_utf8(text, 0).code);
}

bool ends_with_word(std::string_view text) {
    return !text.empty() && is_word_char(read_utf8(text, last_char(text)).code);
}

/// Where the white space at the end of `text` starts.
size_t trailing_space(std::string_view text) {
    while (!text.empty()) {
        const size_t pos = last_char(text);
        if (!is_white_space(read_utf8(text, pos).code)) break;
        text = text.substr(0, pos);
    }
    return text.size();
}

/// The length of the white space at the start of `text`.
size_t leading_space(std::string_view text) {
    size_t pos = 0;
    while (pos < text.size()) {
        const Utf8Step step = read_utf8(text, pos);
        if (!is_white_space(step.code)) break;
        pos += step.length;
    }
    return pos;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    literal_.emplace_back();
    normalized_.emplace_back();
    for (uint32_t i = 0; i < tokens_.size(); ++i) {
        const AddedToken& token = tokens_[i];
        assert(!token.content.empty() && token.content.size() <= max_content);
        insert(token.normalized ? normalized_ : literal_, token.content, i);
    }
    by_id_.resize(tokens_.size());
    std::iota(by_id_.begin(), by_id_.end(), 0U);
    by_content_ = by_id_;
    std::sort(by_id_.begin(), by_id_.end(),
              [&](uint32_t a, uint32_t b) { return tokens_[a].id < tokens_[b].id; });
    std::sort(by_content_.begin(), by_content_.end(),
              [&](uint32_t a, uint32_t b) { return tokens_[a].content < tokens_[b].content; });
}

const AddedToken* AddedTokens::by_id(int32_t id) const {
    const auto found =
        std::lower_bound(by_id_.begin(), by_id_.end(), id,
                         [&](uint32_t index, int32_t value) { return tokens_[index].id < value; });
    return found != by_id_.end() && tokens_[*found].id == id ? &tokens_[*found] : nullptr;
}

const AddedToken* AddedTokens::by_content(std::string_view content) const {
    const auto found = std::lower_bound(
        by_content_.begin(), by_content_.end(), content,
        [&](uint32_t index, std::string_view value) { return tokens_[index].content < value; });
    return found != by_content_.end() && tokens_[*found].content == content ? &tokens_[*found]
                                                                            : nullptr;
}

uint32_t AddedTokens::child(const Trie& trie, uint32_t node, char byte) {
    uint32_t at = trie[node].first_child;
    while (at != none && trie[at].byte != byte) at = trie[at].next_sibling;
    return at;
}

void AddedTokens::insert(Trie& trie, std::string_view content, uint32_t token) {
    uint32_t node = 0;
    for (const char byte : content) {
        uint32_t at = child(trie, node, byte);
        if (at == none) {
            at = static_cast<uint32_t>(trie.size());
            trie.push_back({none, trie[node].first_child, none, byte});
            trie[node].first_child = at;
        }
        node = at;
    }
    trie[node].token = token;
}

/// The leftmost match at or after `from`, of those the longest; token is null if there is none.
AddedTokens::Match AddedTokens::find(const Trie& trie, std::string_view text, size_t from) const {
    for (size_t begin = from; begin < text.size(); ++begin) {
        Match match;
        uint32_t node = child(trie, 0, text[begin]);
        for (size_t pos = begin + 1; node != none; ++pos) {
            if (trie[node].token != none) match = {&tokens_[trie[node].token], begin, pos};
            node = pos < text.size() ? child(trie, node, text[pos]) : none;
        }
        if (match.token != nullptr) return match;
    }
    return {};
}

void AddedTokens::split_part(const Trie& trie, std::string_view text, bool parse_special,
                             std::vector<TextPart>& out) const {
    size_t done = 0;                        // what lies before is in `out`
    size_t space_begin = 0, space_end = 0;  // the stretch of white space that rstrip last measured
    for (Match match = find(trie, text, 0); match.token != nullptr;
         match = find(trie, text, match.end)) {
        const AddedToken& token = *match.token;
        if (token.special && !parse_special) continue;
        size_t begin = match.begin;
        size_t end = match.end;
        if (token.single_word &&
            (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) {
            continue;
        }
        if (token.lstrip)
            begin = begin > done ? done + trailing_space(text.substr(done, begin - done)) : done;
        if (token.rstrip) {
            // Tokens within one stretch of white space must not each measure it again: that would
            // be quadratic.
            if (end < space_begin || end > space_end) {
                space_begin = end;
                space_end = end + leading_space(text.substr(end));
            }
            end = space_end;
        }
        if (begin > done) out.push_back({text.substr(done, begin - done)});
        out.push_back({{}, token.id});
        done = end;
    }
    if (done < text.size()) out.push_back({text.substr(done)});
}

std::vector<TextPart> AddedTokens::split(std::string_view text, bool parse_special) const {
    std::vector<TextPart> parts;
    if (tokens_.empty()) {
        if (!text.empty()) parts.push_back({text});
        return parts;
    }
    split_part(literal_, text, parse_special, parts);
    if (normalized_.size() == 1) return parts;  // the bare root: no such tokens
    std::vector<TextPart> result;
    for (const TextPart& part : parts) {
        if (part.id == TextPart::plain) {
            split_part(normalized_, part.text, parse_special, result);
        } else {
            result.push_back(part);
        }
    }
    return result;
}

}  // namespace mllama
