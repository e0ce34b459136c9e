// The tokens of a Jinja template: see the header.
#include "tokenizer/jinja_lexer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Kind = JinjaTokenKind;

bool is_ascii_digit(char c) {
    return c >= '0' && c <= '9';
}

/// Every line end as "\n", and the last one of the source gone.
std::string normalize_source(std::string_view source) {
    std::string out;
    out.reserve(source.size());
    for (size_t i = 0; i < source.size(); ++i) {
        if (source[i] == '\r') {
            out += '\n';
            if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
        } else {
            out += source[i];
        }
    }
    if (!out.empty() && out.back() == '\n') out.pop_back();
    return out;
}

class Lexer {
  public:
    explicit Lexer(std::string_view source) : source_(normalize_source(source)) {}

    std::vector<JinjaToken> run() {
        while (position_ < source_.size()) read_data_and_tag();
        add(Kind::end, "");
        return std::move(tokens_);
    }

  private:
    // --- small steps over the source ---

    std::string_view rest() const { return std::string_view(source_).substr(position_); }

    bool at(std::string_view text) const { return rest().substr(0, text.size()) == text; }

    /// Moves to `end`, counting lines.
    void advance_to(size_t end) {
        line_ +=
            static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(position_),
                                        source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
        position_ = end;
    }

    void advance(size_t bytes) { advance_to(position_ + bytes); }

    /// Bytes of white space at `begin`.
    size_t space_length(size_t begin) const {
        const std::string_view text = std::string_view(source_).substr(begin);
        return text.size() - python_strip(text, StripSide::left).size();
    }

    void add(Kind kind, std::string text) {
        tokens_.push_back(JinjaToken{kind, line_, std::move(text), 0, 0});
    }

    [[noreturn]] void fail(const std::string& message) const {
        throw JinjaSyntaxFault{message, line_};
    }

    // --- text between tags ---

    /// Text up to the next tag, then the tag.
    void read_data_and_tag() {
        size_t tag = position_;
        for (;; ++tag) {
            tag = source_.find('{', tag);
            if (tag == std::string::npos || tag + 1 == source_.size()) {
                tag = std::string::npos;
                break;
            }
            const char next = source_[tag + 1];
            if (next == '%' || next == '{' || next == '#') break;
        }
        if (tag == std::string::npos) {
            add_data(rest());
            advance_to(source_.size());
            return;
        }
        const char type = source_[tag + 1];
        read_data(tag, type != '{');
        if (const std::optional<size_t> raw = raw_begin_length(); type == '%' && raw) {
            end_tag(*raw);
            read_raw();
            return;
        }
        const bool has_sign = position_ + 2 < source_.size() &&
                              (source_[position_ + 2] == '-' || source_[position_ + 2] == '+');
        if (type == '#') {
            advance(has_sign ? 3 : 2);
            skip_comment();
            return;
        }
        add(type == '%' ? Kind::block_begin : Kind::variable_begin, "");
        advance(has_sign ? 3 : 2);
        line_starting_ = false;
        read_tag(type == '%');
    }

    /// The text before a tag that starts at `tag`, without what white space control removes.
    void read_data(size_t tag, bool lstrip) {
        const std::string_view text = std::string_view(source_).substr(position_, tag - position_);
        const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
        add_data(strip_before_tag(text, sign, lstrip));
        advance_to(tag);
    }

    std::string_view strip_before_tag(std::string_view text, char sign, bool lstrip) const {
        if (sign == '-') return python_strip(text, StripSide::right);
        if (sign == '+' || !lstrip) return text;
        const size_t newline = text.rfind('\n');
        const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
        if (line_begin == 0 && !line_starting_) return text;
        const bool blank = python_strip(text.substr(line_begin), StripSide::left).empty();
        return blank ? text.substr(0, line_begin) : text;
    }

    void add_data(std::string_view text) {
        if (!text.empty()) add(Kind::data, std::string(text));
    }

    // --- comments and raw blocks ---

    /// The length of the end of a tag at `begin`, white space control included: "-%}" with the
    /// white space behind it, "+%}", or "%}" with the newline behind it. Nothing if there is none.
    std::optional<size_t> tag_end_length(size_t begin, std::string_view end,
                                         bool trim_newline) const {
        const std::string_view text = std::string_view(source_).substr(begin);
        if (text.empty()) return std::nullopt;
        if (text[0] == '-' && text.substr(1, 2) == end) return 3 + space_length(begin + 3);
        if (text[0] == '+' && text.substr(1, 2) == end && trim_newline) return 3;
        if (text.substr(0, 2) != end) return std::nullopt;
        return trim_newline && text.size() > 2 && text[2] == '\n' ? 3 : 2;
    }

    void end_tag(size_t length) {
        line_starting_ = source_[position_ + length - 1] == '\n';
        advance(length);
    }

    void skip_comment() {
        for (size_t end = position_; end < source_.size(); ++end) {
            if (const std::optional<size_t> length = tag_end_length(end, "#}", true)) {
                advance_to(end);
                end_tag(*length);
                return;
            }
        }
        fail("the comment does not end");
    }

    /// The length of "{% raw %}" at the position.
    std::optional<size_t> raw_begin_length() const {
        size_t i = position_ + 2;
        if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) ++i;
        i += space_length(std::min(i, source_.size()));
        if (source_.compare(i, 3, "raw") != 0) return std::nullopt;
        i += 3;
        i += space_length(i);
        if (source_.compare(i, 3, "-%}") == 0) return i + 3 + space_length(i + 3) - position_;
        if (source_.compare(i, 2, "%}") == 0) return i + 2 - position_;
        return std::nullopt;
    }

    void read_raw() {
        for (size_t tag = source_.find("{%", position_); tag != std::string::npos;
             tag = source_.find("{%", tag + 1)) {
            size_t i = tag + 2;
            if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) ++i;
            i += space_length(std::min(i, source_.size()));
            if (source_.compare(i, 6, "endraw") != 0) continue;
            i += 6;
            i += space_length(i);
            const std::optional<size_t> end = tag_end_length(i, "%}", true);
            if (!end) continue;
            read_data(tag, true);
            advance_to(i);
            end_tag(*end);
            return;
        }
        fail("the raw block does not end");
    }

    // --- inside a tag ---

    void read_tag(bool is_block) {
        std::vector<char> open;  // the brackets that are to be closed, innermost last
        const std::string_view end = is_block ? "%}" : "}}";
        while (true) {
            if (position_ == source_.size())
                return;  // the parser finds the end where a tag goes on
            if (open.empty()) {
                if (const std::optional<size_t> length = tag_end_length(position_, end, is_block)) {
                    add(is_block ? Kind::block_end : Kind::variable_end, "");
                    end_tag(*length);
                    return;
                }
            }
            if (const size_t space = space_length(position_); space > 0) {
                advance(space);
            } else {
                read_token(open);
            }
        }
    }

    void read_token(std::vector<char>& open) {
        const char c = source_[position_];
        if (is_ascii_digit(c)) {
            read_number();
        } else if (c == '\'' || c == '"') {
            read_string(c);
        } else if (!read_symbol(open)) {
            read_name();
        }
    }

    /// Digits with single underscores between them, from `begin`; the end.
    template <class IsDigit>
    size_t digits_end(size_t begin, IsDigit is_digit) const {
        size_t i = begin;
        while (i < source_.size()) {
            if (is_digit(source_[i])) {
                ++i;
            } else if (source_[i] == '_' && i > begin && i + 1 < source_.size() &&
                       is_digit(source_[i + 1])) {
                i += 2;
            } else {
                break;
            }
        }
        return i;
    }

    /// The end of a float at the position, or nothing.
    std::optional<size_t> float_end() const {
        if (position_ > 0 && source_[position_ - 1] == '.') return std::nullopt;  // a.1.2
        size_t end = digits_end(position_, is_ascii_digit);
        bool is_float = false;
        if (end + 1 < source_.size() && source_[end] == '.' && is_ascii_digit(source_[end + 1])) {
            end = digits_end(end + 1, is_ascii_digit);
            is_float = true;
        }
        if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
            size_t exponent = end + 1;
            if (exponent < source_.size() &&
                (source_[exponent] == '+' || source_[exponent] == '-')) {
                ++exponent;
            }
            if (exponent < source_.size() && is_ascii_digit(source_[exponent])) {
                end = digits_end(exponent, is_ascii_digit);
                is_float = true;
            }
        }
        return is_float ? std::optional(end) : std::nullopt;
    }

    /// The end of an integer at the position: 0x1F, 0b1, 0o7, 12, 0. A second number starts where a
    /// zero is followed by other digits.
    size_t integer_end() const {
        const auto is_hex = [](char c) {
            return is_ascii_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
        };
        const auto is_octal = [](char c) { return c >= '0' && c <= '7'; };
        const auto is_binary = [](char c) { return c == '0' || c == '1'; };
        const auto is_zero = [](char c) { return c == '0'; };
        if (source_[position_] != '0') return digits_end(position_, is_ascii_digit);
        const char letter = position_ + 1 < source_.size() ? source_[position_ + 1] | 0x20 : '\0';
        size_t begin = position_ + 2;
        if (begin < source_.size() && source_[begin] == '_') ++begin;
        size_t end = begin;
        if (letter == 'x') end = digits_end(begin, is_hex);
        if (letter == 'o') end = digits_end(begin, is_octal);
        if (letter == 'b') end = digits_end(begin, is_binary);
        return end > begin ? end : digits_end(position_, is_zero);
    }

    void read_number() {
        const std::optional<size_t> end_of_float = float_end();
        const size_t end = end_of_float ? *end_of_float : integer_end();
        const std::string text = source_.substr(position_, end - position_);
        add(end_of_float ? Kind::real : Kind::integer, text);
        if (end_of_float) {
            tokens_.back().real = parse_python_float(text).value_or(0);
        } else {
            const std::optional<int64_t> value = parse_python_int(text, 0);
            if (!value) fail("the integer " + text + " has more than 64 bits");
            tokens_.back().integer = *value;
        }
        advance_to(end);
    }

    void read_string(char quote) {
        size_t end = position_ + 1;
        while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
        if (end >= source_.size()) fail("a string does not end");
        add(Kind::string, unescape(source_.substr(position_ + 1, end - position_ - 1)));
        advance_to(end + 1);
    }

    /// The value of a literal, whose escapes are those of Python's.
    std::string unescape(const std::string& literal) const {
        std::string out;
        for (size_t i = 0; i < literal.size();) {
            if (literal[i] != '\\') {
                out += literal[i++];
                continue;
            }
            const char kind = literal[i + 1];
            static constexpr std::string_view kSimple = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
            size_t simple = 0;
            while (simple < kSimple.size() && kSimple[simple] != kind) simple += 2;
            if (simple < kSimple.size()) {
                out += kSimple[simple + 1];
                i += 2;
            } else if (kind == '\n') {
                i += 2;  // a continued line
            } else if (kind >= '0' && kind <= '7') {
                i += 1;
                char32_t value = 0;
                for (int n = 0;
                     n < 3 && i < literal.size() && literal[i] >= '0' && literal[i] <= '7'; ++n) {
                    value = value * 8 + static_cast<char32_t>(literal[i++] - '0');
                }
                append_utf8(out, value);
            } else if (kind == 'x' || kind == 'u' || kind == 'U') {
                const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : 8;
                append_utf8(out, hex_escape(literal, i + 2, digits));
                i += 2 + digits;
            } else if (kind == 'N') {
                fail("\\N{...} in a string is not supported");
            } else {
                out += literal[i++];  // Python keeps the backslash of an unknown escape
            }
        }
        return out;
    }

    char32_t hex_escape(const std::string& literal, size_t begin, size_t digits) const {
        const std::string hex = literal.substr(begin, digits);
        const bool valid = hex.size() == digits &&
                           hex.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
        const auto value = valid ? static_cast<char32_t>(std::stoul(hex, nullptr, 16)) : 0;
        if (!valid || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
            fail("invalid escape in a string: \\" + literal.substr(begin - 1, digits + 1));
        }
        return value;
    }

    bool read_symbol(std::vector<char>& open) {
        static constexpr std::string_view kSymbols[] = {
            "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
            "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
        const auto* found = std::find_if(std::begin(kSymbols), std::end(kSymbols),
                                         [&](std::string_view symbol) { return at(symbol); });
        if (found == std::end(kSymbols)) return false;
        balance((*found)[0], open);
        add(Kind::symbol, std::string(*found));
        advance(found->size());
        return true;
    }

    void balance(char symbol, std::vector<char>& open) const {
        if (symbol == '(') open.push_back(')');
        if (symbol == '[') open.push_back(']');
        if (symbol == '{') open.push_back('}');
        if (symbol != ')' && symbol != ']' && symbol != '}') return;
        const auto quoted = [](char c) { return std::string("'") + c + "'"; };
        if (open.empty()) fail("unexpected " + quoted(symbol));
        if (open.back() != symbol) {
            fail("unexpected " + quoted(symbol) + ", expected " + quoted(open.back()));
        }
        open.pop_back();
    }

    void read_name() {
        size_t end = position_;
        for (size_t next = end; next < source_.size(); end = next) {
            const char32_t c = next_code_point(source_, next);
            const bool fits =
                end == position_ ? python_is_identifier_start(c) : python_is_identifier_part(c);
            if (!fits) break;
        }
        if (end == position_) {
            const std::string_view c = rest().substr(0, byte_offset(rest(), 1));
            fail("unexpected character " + python_repr(c));
        }
        add(Kind::name, source_.substr(position_, end - position_));
        advance_to(end);
    }

    std::string source_;
    size_t position_ = 0;  ///< in bytes
    int line_ = 1;
    bool line_starting_ = true;  ///< the text that comes now stands at the start of a line
    std::vector<JinjaToken> tokens_;
};

}  // namespace

std::vector<JinjaToken> jinja_tokenize(std::string_view source) {
    return Lexer(source).run();
}

}  // namespace mllama
