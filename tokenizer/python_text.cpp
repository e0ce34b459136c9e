// Python's str, int and float over UTF-8: see the header.
#include "tokenizer/python_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "tokenizer/python_text_tables.h"

namespace mllama {
namespace {

bool is_continuation(char byte) {
    return (static_cast<uint8_t>(byte) & 0xC0) == 0x80;
}

utf8proc_category_t category(char32_t c) {
    return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

template <size_t Count>
bool in_ranges(const CodePointRange (&ranges)[Count], char32_t c) {
    return std::any_of(std::begin(ranges), std::end(ranges), [c](const CodePointRange& range) {
        return range.first <= c && c <= range.last;
    });
}

template <size_t Count>
const CaseExpansion* find_expansion(const CaseExpansion (&table)[Count], char32_t c) {
    const auto found = std::lower_bound(
        std::begin(table), std::end(table), c,
        [](const CaseExpansion& entry, char32_t value) { return entry.from < value; });
    return found != std::end(table) && found->from == c ? found : nullptr;
}

void append_upper(std::u32string& out, char32_t c) {
    if (const CaseExpansion* expansion = find_expansion(kUpperExpansions, c)) {
        out += expansion->to;
    } else {
        out += static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)));
    }
}

void append_title(std::u32string& out, char32_t c) {
    if (const CaseExpansion* expansion = find_expansion(kTitleExpansions, c)) {
        out += expansion->to;
    } else {
        out += static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)));
    }
}

/// Unicode's Cased and Case_Ignorable, as far as the rule of the final sigma needs them.
bool is_cased(char32_t c) {
    return python_is_upper(c) || python_is_lower(c) || python_is_title(c);
}

bool is_case_ignorable(char32_t c) {
    switch (category(c)) {
        case UTF8PROC_CATEGORY_MN:
        case UTF8PROC_CATEGORY_ME:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_LM:
        case UTF8PROC_CATEGORY_SK:
            return true;
        default:
            return std::u32string_view(
                       U"'.:\u00b7\u0387\u055f\u05f4\u2018\u2019\u2024\u2027"
                       U"\ufe13\ufe52\ufe55\uff07\uff0e\uff1a")
                       .find(c) != std::u32string_view::npos;
    }
}

/// A capital sigma that ends a word becomes the final form: after a cased character, not before one
/// (case-ignorable characters between do not count).
bool is_final_sigma(std::u32string_view text, size_t position) {
    size_t before = position;
    while (before > 0 && is_case_ignorable(text[before - 1])) --before;
    if (before == 0 || !is_cased(text[before - 1])) return false;
    size_t after = position + 1;
    while (after < text.size() && is_case_ignorable(text[after])) ++after;
    return after == text.size() || !is_cased(text[after]);
}

void append_lower(std::u32string& out, std::u32string_view text, size_t position) {
    const char32_t c = text[position];
    if (c == U'\u03a3') {
        out += is_final_sigma(text, position) ? U'\u03c2' : U'\u03c3';
    } else if (c == U'\u0130') {
        out += U"i\u0307";  // the only lower case of two characters
    } else {
        out += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
    }
}

bool is_line_end(char32_t c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

/// Splits at runs of white space, from the left.
std::vector<std::string> split_at_space(std::string_view text, int64_t limit) {
    std::vector<std::string> parts;
    std::string_view rest = python_strip(text, StripSide::left);
    while (!rest.empty()) {
        if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
            parts.emplace_back(rest);
            break;
        }
        size_t end = 0;
        for (size_t next = 0; next < rest.size(); end = next) {
            if (python_is_space(next_code_point(rest, next))) break;
        }
        parts.emplace_back(rest.substr(0, end));
        rest = python_strip(rest.substr(end), StripSide::left);
    }
    return parts;
}

/// Splits at runs of white space, from the right; parts from left to right.
std::vector<std::string> rsplit_at_space(std::string_view text, int64_t limit) {
    std::vector<std::string> parts;
    std::string_view rest = python_strip(text, StripSide::right);
    while (!rest.empty()) {
        if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
            parts.emplace_back(rest);
            break;
        }
        size_t begin = rest.size();
        while (begin > 0) {
            size_t previous = begin - 1;
            while (is_continuation(rest[previous])) --previous;
            size_t byte = previous;
            if (python_is_space(next_code_point(rest, byte))) break;
            begin = previous;
        }
        parts.emplace_back(rest.substr(begin));
        rest = python_strip(rest.substr(0, begin), StripSide::right);
    }
    std::reverse(parts.begin(), parts.end());
    return parts;
}

void append_hex_escape(std::string& out, char kind, char32_t c, int digits) {
    out += '\\';
    out += kind;
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) {
        out += "0123456789abcdef"[(c >> shift) & 0xF];
    }
}

/// Removes single underscores between digits; false if one stands elsewhere.
bool remove_underscores(std::string& digits) {
    std::string out;
    for (size_t i = 0; i < digits.size(); ++i) {
        if (digits[i] != '_') {
            out += digits[i];
            continue;
        }
        const auto is_digit = [](char c) {
            return std::isalnum(static_cast<unsigned char>(c)) != 0;
        };
        if (i == 0 || i + 1 == digits.size() || !is_digit(digits[i - 1]) ||
            !is_digit(digits[i + 1])) {
            return false;
        }
    }
    digits = out;
    return true;
}

/// The text of a number: stripped, with decimal digits of other scripts as ASCII; nothing if
/// another character stands in it.
std::optional<std::string> ascii_number(std::string_view text) {
    std::string out;
    for (const char32_t c : decode_utf8(python_strip(text, StripSide::both))) {
        if (c < 0x80) {
            out += static_cast<char>(c);
        } else if (python_is_decimal(c)) {
            // Decimal digits of a script are ten in a row; find the zero.
            char32_t zero = c;
            while (c - zero < 9 && python_is_decimal(zero - 1)) --zero;
            // Rows of digits may touch (mathematical digits): they start at multiples from the
            // first.
            if (c >= 0x1D7CE && c <= 0x1D7FF) zero = 0x1D7CE + (c - 0x1D7CE) / 10 * 10;
            out += static_cast<char>('0' + (c - zero));
        } else {
            return std::nullopt;
        }
    }
    return out;
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
    const auto* data = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    auto left = static_cast<utf8proc_ssize_t>(text.size());
    while (left > 0) {
        utf8proc_int32_t c = 0;
        const utf8proc_ssize_t taken = utf8proc_iterate(data, left, &c);
        if (taken <= 0) return false;
        data += taken;
        left -= taken;
    }
    return true;
}

int64_t count_code_points(std::string_view text) {
    return std::count_if(text.begin(), text.end(),
                         [](char byte) { return !is_continuation(byte); });
}

char32_t next_code_point(std::string_view text, size_t& byte) {
    const auto lead = static_cast<uint8_t>(text[byte++]);
    if (lead < 0x80) return lead;
    const int continuations = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    char32_t c = lead & (0x3F >> continuations);
    for (int i = 0; i < continuations; ++i) {
        c = c << 6 | (static_cast<uint8_t>(text[byte++]) & 0x3F);
    }
    return c;
}

std::u32string decode_utf8(std::string_view text) {
    std::u32string out;
    out.reserve(text.size());
    for (size_t byte = 0; byte < text.size();) out += next_code_point(text, byte);
    return out;
}

void append_utf8(std::string& text, char32_t c) {
    const auto put = [&](char32_t unit) { text += static_cast<char>(unit); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0 | c >> 6);
        put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        put(0xE0 | c >> 12);
        put(0x80 | (c >> 6 & 0x3F));
        put(0x80 | (c & 0x3F));
    } else {
        put(0xF0 | c >> 18);
        put(0x80 | (c >> 12 & 0x3F));
        put(0x80 | (c >> 6 & 0x3F));
        put(0x80 | (c & 0x3F));
    }
}

std::string encode_utf8(std::u32string_view text) {
    std::string out;
    out.reserve(text.size());
    for (const char32_t c : text) append_utf8(out, c);
    return out;
}

size_t byte_offset(std::string_view text, int64_t index) {
    size_t byte = 0;
    for (; index > 0 && byte < text.size(); --index) {
        ++byte;
        while (byte < text.size() && is_continuation(text[byte])) ++byte;
    }
    return byte;
}

bool python_is_space(char32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

bool python_is_printable(char32_t c) {
    if (c == U' ') return true;
    switch (category(c)) {
        case UTF8PROC_CATEGORY_CC:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_CS:
        case UTF8PROC_CATEGORY_CO:
        case UTF8PROC_CATEGORY_CN:
        case UTF8PROC_CATEGORY_ZL:
        case UTF8PROC_CATEGORY_ZP:
        case UTF8PROC_CATEGORY_ZS:
            return false;
        default:
            return true;
    }
}

bool python_is_alpha(char32_t c) {
    const utf8proc_category_t kind = category(c);
    return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool python_is_decimal(char32_t c) {
    return category(c) == UTF8PROC_CATEGORY_ND;
}

bool python_is_digit(char32_t c) {
    return python_is_decimal(c) || in_ranges(kDigitRanges, c);
}

bool python_is_numeric(char32_t c) {
    const utf8proc_category_t kind = category(c);
    return (kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO) ||
           in_ranges(kNumericRanges, c);
}

bool python_is_upper(char32_t c) {
    return category(c) == UTF8PROC_CATEGORY_LU || in_ranges(kOtherUpperRanges, c);
}

bool python_is_lower(char32_t c) {
    return category(c) == UTF8PROC_CATEGORY_LL || in_ranges(kOtherLowerRanges, c);
}

bool python_is_title(char32_t c) {
    return category(c) == UTF8PROC_CATEGORY_LT;
}

bool python_is_identifier_start(char32_t c) {
    return c == U'_' || python_is_alpha(c) || category(c) == UTF8PROC_CATEGORY_NL;
}

bool python_is_identifier_part(char32_t c) {
    switch (category(c)) {
        case UTF8PROC_CATEGORY_MN:
        case UTF8PROC_CATEGORY_MC:
        case UTF8PROC_CATEGORY_ND:
        case UTF8PROC_CATEGORY_PC:
            return true;
        default:
            return c == U'\u00b7' || c == U'\u0387' || python_is_identifier_start(c);
    }
}

std::string python_upper(std::string_view text) {
    std::u32string out;
    for (const char32_t c : decode_utf8(text)) append_upper(out, c);
    return encode_utf8(out);
}

std::string python_lower(std::string_view text) {
    const std::u32string characters = decode_utf8(text);
    std::u32string out;
    for (size_t i = 0; i < characters.size(); ++i) append_lower(out, characters, i);
    return encode_utf8(out);
}

std::string python_swapcase(std::string_view text) {
    const std::u32string characters = decode_utf8(text);
    std::u32string out;
    for (size_t i = 0; i < characters.size(); ++i) {
        if (python_is_upper(characters[i])) {
            append_lower(out, characters, i);
        } else if (python_is_lower(characters[i])) {
            append_upper(out, characters[i]);
        } else {
            out += characters[i];
        }
    }
    return encode_utf8(out);
}

std::string python_capitalize(std::string_view text) {
    const std::u32string characters = decode_utf8(text);
    std::u32string out;
    for (size_t i = 0; i < characters.size(); ++i) {
        if (i == 0) {
            append_title(out, characters[i]);
        } else {
            append_lower(out, characters, i);
        }
    }
    return encode_utf8(out);
}

std::string python_title(std::string_view text) {
    const std::u32string characters = decode_utf8(text);
    std::u32string out;
    bool inside_word = false;
    for (size_t i = 0; i < characters.size(); ++i) {
        if (inside_word) {
            append_lower(out, characters, i);
        } else {
            append_title(out, characters[i]);
        }
        inside_word = is_cased(characters[i]);
    }
    return encode_utf8(out);
}

bool python_string_is_lower(std::string_view text) {
    bool any = false;
    for (const char32_t c : decode_utf8(text)) {
        if (python_is_upper(c) || python_is_title(c)) return false;
        any = any || python_is_lower(c);
    }
    return any;
}

bool python_string_is_upper(std::string_view text) {
    bool any = false;
    for (const char32_t c : decode_utf8(text)) {
        if (python_is_lower(c) || python_is_title(c)) return false;
        any = any || python_is_upper(c);
    }
    return any;
}

bool python_string_is_title(std::string_view text) {
    bool any = false;
    bool inside_word = false;
    for (const char32_t c : decode_utf8(text)) {
        const bool starts = python_is_upper(c) || python_is_title(c);
        if (starts == inside_word && is_cased(c)) return false;
        inside_word = is_cased(c);
        any = any || inside_word;
    }
    return any;
}

std::string_view python_strip(std::string_view text, StripSide side,
                              const std::optional<std::string>& chars) {
    const std::u32string set = chars ? decode_utf8(*chars) : std::u32string();
    const auto strips = [&](char32_t c) {
        return chars ? set.find(c) != std::u32string::npos : python_is_space(c);
    };
    size_t begin = 0;
    size_t end = text.size();
    if (side != StripSide::right) {
        for (size_t next = begin; next < end; begin = next) {
            if (!strips(next_code_point(text, next))) break;
        }
    }
    if (side != StripSide::left) {
        while (end > begin) {
            size_t last = end - 1;
            while (is_continuation(text[last])) --last;
            size_t byte = last;
            if (!strips(next_code_point(text, byte))) break;
            end = last;
        }
    }
    return text.substr(begin, end - begin);
}

std::vector<std::string> python_split(std::string_view text,
                                      const std::optional<std::string>& separator, int64_t limit,
                                      bool from_right) {
    if (!separator) return from_right ? rsplit_at_space(text, limit) : split_at_space(text, limit);
    std::vector<std::string> parts;
    const auto may_split = [&] { return limit < 0 || static_cast<int64_t>(parts.size()) < limit; };
    if (from_right) {
        while (may_split()) {
            const size_t at = text.rfind(*separator);
            if (at == std::string_view::npos) break;
            parts.emplace_back(text.substr(at + separator->size()));
            text = text.substr(0, at);
        }
        parts.emplace_back(text);
        std::reverse(parts.begin(), parts.end());
    } else {
        while (may_split()) {
            const size_t at = text.find(*separator);
            if (at == std::string_view::npos) break;
            parts.emplace_back(text.substr(0, at));
            text = text.substr(at + separator->size());
        }
        parts.emplace_back(text);
    }
    return parts;
}

std::vector<std::string> python_split_lines(std::string_view text, bool keep_ends) {
    std::vector<std::string> lines;
    size_t begin = 0;
    for (size_t byte = 0; byte < text.size();) {
        const size_t end = byte;
        const char32_t c = next_code_point(text, byte);
        if (!is_line_end(c)) continue;
        if (c == U'\r' && byte < text.size() && text[byte] == '\n') ++byte;
        lines.emplace_back(text.substr(begin, (keep_ends ? byte : end) - begin));
        begin = byte;
    }
    if (begin < text.size()) lines.emplace_back(text.substr(begin));
    return lines;
}

std::string python_repr(std::string_view text) {
    const bool has_single = text.find('\'') != std::string_view::npos;
    const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
    std::string out(1, quote);
    for (size_t byte = 0; byte < text.size();) {
        const char32_t c = next_code_point(text, byte);
        if (c == static_cast<char32_t>(quote) || c == U'\\') {
            out += '\\';
            out += static_cast<char>(c);
        } else if (c == U'\n') {
            out += "\\n";
        } else if (c == U'\r') {
            out += "\\r";
        } else if (c == U'\t') {
            out += "\\t";
        } else if (python_is_printable(c)) {
            append_utf8(out, c);
        } else if (c < 0x100) {
            append_hex_escape(out, 'x', c, 2);
        } else if (c < 0x10000) {
            append_hex_escape(out, 'u', c, 4);
        } else {
            append_hex_escape(out, 'U', c, 8);
        }
    }
    return out + quote;
}

std::string python_repr(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
    char buffer[64];
    const auto end =
        std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
    // d.ddde[+-]xx: the shortest digits. Python writes them plainly for exponents from -4 to 15.
    const std::string scientific(buffer, end.ptr);
    const size_t e = scientific.find('e');
    const int exponent = std::stoi(scientific.substr(e + 1));
    const std::string sign = scientific[0] == '-' ? "-" : "";
    std::string digits;
    for (const char c : scientific.substr(0, e)) {
        if (c != '-' && c != '.') digits += c;
    }
    const auto count = static_cast<int>(digits.size());
    if (exponent < -4 || exponent >= 16) {
        if (count > 1) digits.insert(1, ".");
        const std::string magnitude = std::to_string(std::abs(exponent));
        return sign + digits + (exponent < 0 ? "e-" : "e+") + (magnitude.size() < 2 ? "0" : "") +
               magnitude;
    }
    if (exponent < 0)
        return sign + "0." + std::string(static_cast<size_t>(-exponent) - 1, '0') + digits;
    if (count <= exponent + 1) {
        return sign + digits + std::string(static_cast<size_t>(exponent) + 1 - digits.size(), '0') +
               ".0";
    }
    return sign + digits.insert(static_cast<size_t>(exponent) + 1, ".");
}

std::optional<int64_t> parse_python_int(std::string_view text, int base) {
    std::optional<std::string> number = ascii_number(text);
    if (!number) return std::nullopt;
    std::string digits = *number;
    bool negative = false;
    if (!digits.empty() && (digits[0] == '+' || digits[0] == '-')) {
        negative = digits[0] == '-';
        digits.erase(0, 1);
    }
    const auto has_prefix = [&](char letter) {
        return digits.size() > 1 && digits[0] == '0' && (digits[1] | 0x20) == letter;
    };
    bool prefixed = false;
    for (const auto& [letter, letter_base] : {std::pair{'x', 16}, {'o', 8}, {'b', 2}}) {
        if (has_prefix(letter) && (base == 0 || base == letter_base)) {
            base = letter_base;
            digits.erase(0, 2);
            if (!digits.empty() && digits[0] == '_') digits.erase(0, 1);
            prefixed = true;
            break;
        }
    }
    if (!remove_underscores(digits) || digits.empty()) return std::nullopt;
    if (base == 0) {
        base = 10;
        const bool zero = digits.find_first_not_of('0') == std::string::npos;
        if (!prefixed && digits[0] == '0' && !zero) return std::nullopt;
    }
    uint64_t value = 0;
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (end.ec != std::errc() || end.ptr != digits.data() + digits.size()) return std::nullopt;
    const uint64_t limit =
        static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) + (negative ? 1 : 0);
    if (value > limit) return std::nullopt;
    return static_cast<int64_t>(negative ? ~value + 1 : value);
}

std::optional<double> parse_python_float(std::string_view text) {
    std::optional<std::string> number = ascii_number(text);
    if (!number || number->empty() || !remove_underscores(*number)) return std::nullopt;
    std::string_view body = *number;
    const bool negative = body[0] == '-';
    if (body[0] == '+' || body[0] == '-') body.remove_prefix(1);
    if (body.empty()) return std::nullopt;
    const std::string lower = python_lower(body);
    if (lower == "inf" || lower == "infinity") return negative ? -INFINITY : INFINITY;
    if (lower == "nan") return std::numeric_limits<double>::quiet_NaN();
    // from_chars would also take "inf" and "nan(...)": only digits, point and exponent may follow.
    if (lower.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
    if (body[0] == '+' || body[0] == '-') return std::nullopt;
    double value = 0;
    const auto end = std::from_chars(body.data(), body.data() + body.size(), value);
    if (end.ptr != body.data() + body.size()) return std::nullopt;
    if (end.ec == std::errc::result_out_of_range) {
        // Too large is infinite in Python, too small is zero.
        const size_t e = lower.find('e');
        const bool small = e != std::string::npos && lower.find('-', e) != std::string::npos;
        value = small ? 0.0 : INFINITY;
    } else if (end.ec != std::errc()) {
        return std::nullopt;
    }
    return negative ? -value : value;
}

}  // namespace mllama
