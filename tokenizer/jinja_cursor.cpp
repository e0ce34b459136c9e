#include "tokenizer/jinja_cursor.h"

#include <algorithm>

#include "tokenizer/jinja_value.h"
#include "tokenizer/python_text.h"

namespace mllama {

const JinjaToken& JinjaCursor::following() const {
    return tokens_[std::min(position_ + 1, tokens_.size() - 1)];
}

JinjaToken JinjaCursor::take() {
    JinjaToken token = current();
    if (token.kind != JinjaTokenKind::end) ++position_;
    return token;
}

bool JinjaCursor::at_any_symbol(Names symbols) const {
    return std::any_of(symbols.begin(), symbols.end(),
                       [&](std::string_view symbol) { return at_symbol(symbol); });
}

bool JinjaCursor::skip_symbol(std::string_view text) {
    const bool there = at_symbol(text);
    if (there) take();
    return there;
}

bool JinjaCursor::skip_name(std::string_view text) {
    const bool there = at_name(text);
    if (there) take();
    return there;
}

void JinjaCursor::expect_symbol(std::string_view text) {
    if (!skip_symbol(text)) fail_expected("'" + std::string(text) + "'");
}

void JinjaCursor::expect_name(std::string_view text) {
    if (!skip_name(text)) fail_expected("'" + std::string(text) + "'");
}

std::string JinjaCursor::expect_any_name() {
    if (current().kind != JinjaTokenKind::name) fail_expected("a name");
    return take().text;
}

void JinjaCursor::expect(JinjaTokenKind kind, const std::string& what) {
    if (current().kind != kind) fail_expected(what);
    take();
}

void JinjaCursor::fail_expected(const std::string& what) const {
    fail_at(current().line, "expected " + what + ", found " + describe(current()));
}

std::string JinjaCursor::describe(const JinjaToken& token) {
    switch (token.kind) {
        case JinjaTokenKind::data:
            return "text";
        case JinjaTokenKind::variable_begin:
            return "'{{'";
        case JinjaTokenKind::variable_end:
            return "'}}'";
        case JinjaTokenKind::block_begin:
            return "'{%'";
        case JinjaTokenKind::block_end:
            return "'%}'";
        case JinjaTokenKind::string:
            return "the string " + python_repr(token.text);
        case JinjaTokenKind::end:
            return "the end of the template";
        default:
            return "'" + token.text + "'";
    }
}

JinjaCursor::Nesting::Nesting(JinjaCursor& cursor) : cursor_(cursor) {
    if (++cursor.nesting_ > JinjaLimits::parse_depth) {
        fail_at(cursor.current().line,
                "nested more than " + std::to_string(JinjaLimits::parse_depth) + " deep");
    }
}

}  // namespace mllama
