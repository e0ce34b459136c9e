// Formatting of values: see the header.
#include "tokenizer/jinja_format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "tokenizer/jinja_runtime.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaValue::Kind;

constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxPrecision = 1000;

/// [[fill]align][sign][#][0][width][grouping][.precision][type]: what both ways of formatting boil
/// down to.
struct Spec {
    char32_t fill = U' ';
    char align = '\0';  ///< < > ^ =
    char sign = '-';    ///< - + or space; - shows nothing on numbers that are not negative
    bool alternate = false;
    int64_t width = 0;
    char grouping = '\0';  ///< , or _
    int64_t precision = -1;
    char type = '\0';
};

[[noreturn]] void fault(const std::string& message) {
    throw JinjaFault(message);
}

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/// The number at `i`, which moves behind it; -1 if there is none.
int64_t read_number(const std::string& text, size_t& i, int64_t limit) {
    if (i >= text.size() || !is_digit(text[i])) return -1;
    int64_t value = 0;
    for (; i < text.size() && is_digit(text[i]); ++i) {
        value = value * 10 + (text[i] - '0');
        if (value > limit) fault("a width or precision in a format is too large");
    }
    return value;
}

std::string pad(const std::string& sign, const std::string& body, const Spec& spec,
                char default_align) {
    const char align = spec.align != '\0' ? spec.align : default_align;
    const int64_t length = count_code_points(sign) + count_code_points(body);
    const int64_t missing = std::max<int64_t>(spec.width - length, 0);
    const int64_t before = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
    std::string left, right;
    for (int64_t i = 0; i < before; ++i) append_utf8(left, spec.fill);
    for (int64_t i = before; i < missing; ++i) append_utf8(right, spec.fill);
    return align == '=' ? sign + left + body : left + sign + body + right;
}

std::string group_digits(const std::string& digits, char separator, size_t size) {
    std::string out;
    for (size_t i = 0; i < digits.size(); ++i) {
        if (i > 0 && (digits.size() - i) % size == 0) out += separator;
        out += digits[i];
    }
    return out;
}

/// Digits in groups; zeros that fill the width are grouped, too.
std::string group_number(const std::string& body, const std::string& sign, const Spec& spec) {
    if (spec.grouping == '\0') return body;
    const bool decimal =
        spec.type != 'x' && spec.type != 'X' && spec.type != 'o' && spec.type != 'b';
    const size_t size = decimal ? 3 : 4;
    size_t end = 0;
    while (end < body.size() && (decimal ? is_digit(body[end]) : body[end] != '.')) ++end;
    std::string digits = body.substr(0, end);
    const std::string rest = body.substr(end);
    const bool fills = spec.fill == U'0' && spec.align == '=';
    std::string grouped = group_digits(digits, spec.grouping, size);
    while (fills && static_cast<int64_t>(sign.size() + grouped.size() + rest.size()) < spec.width) {
        digits.insert(digits.begin(), '0');
        grouped = group_digits(digits, spec.grouping, size);
    }
    return grouped + rest;
}

std::string format_string(const std::string& text, const Spec& spec) {
    const size_t end = spec.precision >= 0 ? byte_offset(text, spec.precision) : text.size();
    return pad("", text.substr(0, end), spec, '<');
}

std::string sign_of(bool negative, const Spec& spec) {
    if (negative) return "-";
    return spec.sign == '-' ? "" : std::string(1, spec.sign);
}

std::string integer_digits(uint64_t magnitude, int base, bool upper) {
    char digits[64];
    const auto end = std::to_chars(digits, digits + sizeof digits, magnitude, base);
    const std::string text(digits, end.ptr);
    return upper ? python_upper(text) : text;
}

std::string format_integer(int64_t value, const Spec& spec) {
    if (spec.type == 'c') {
        if (value < 0 || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
            fault("%c arg not in range(0x110000)");
        }
        std::string character;
        append_utf8(character, static_cast<char32_t>(value));
        return pad("", character, spec, '<');
    }
    const bool negative = value < 0;
    const uint64_t magnitude =
        negative ? ~static_cast<uint64_t>(value) + 1 : static_cast<uint64_t>(value);
    std::string sign = sign_of(negative, spec);
    std::string digits;
    switch (spec.type) {
        case 'x':
        case 'X':
            digits = integer_digits(magnitude, 16, spec.type == 'X');
            break;
        case 'o':
            digits = integer_digits(magnitude, 8, false);
            break;
        case 'b':
            digits = integer_digits(magnitude, 2, false);
            break;
        default:
            digits = std::to_string(magnitude);
    }
    if (spec.alternate &&
        (spec.type == 'x' || spec.type == 'X' || spec.type == 'o' || spec.type == 'b')) {
        sign += std::string("0") + spec.type;
    }
    return pad(sign, group_number(digits, sign, spec), spec, '>');
}

/// The digits of |value| by C's printf, which rounds correctly, as Python does.
std::string real_digits(double magnitude, char type, int64_t precision, bool alternate) {
    const char format[] = {'%',
                           alternate ? '#' : '.',
                           alternate ? '.' : '*',
                           alternate ? '*' : type,
                           alternate ? type : '\0',
                           '\0'};
    const int length = std::snprintf(nullptr, 0, format, static_cast<int>(precision), magnitude);
    std::string out(static_cast<size_t>(length) + 1, '\0');
    std::snprintf(out.data(), out.size(), format, static_cast<int>(precision), magnitude);
    out.pop_back();
    return out;
}

/// A float without a type: as repr, or with a precision as 'g' that keeps a ".0".
std::string plain_real_digits(double magnitude, const Spec& spec) {
    if (spec.precision < 0) return python_repr(magnitude);
    const int64_t precision = std::max<int64_t>(spec.precision, 1);
    std::string digits = real_digits(magnitude, 'g', precision, false);
    const bool has_exponent = digits.find('e') != std::string::npos;
    if (has_exponent || digits.find('.') != std::string::npos) return digits;
    // "12345" to five digits would leave no digit behind the point: that is written with exponent.
    if (static_cast<int64_t>(digits.size()) >= precision && magnitude >= 1) {
        digits = real_digits(magnitude, 'e', precision - 1, false);
        const size_t e = digits.find('e');
        std::string mantissa = digits.substr(0, e);
        if (mantissa.find('.') != std::string::npos) {
            mantissa.erase(mantissa.find_last_not_of('0') + 1);
            if (mantissa.back() == '.') mantissa.pop_back();
        }
        return mantissa + digits.substr(e);
    }
    return digits + ".0";
}

std::string format_real(double value, const Spec& spec) {
    const bool upper = spec.type == 'E' || spec.type == 'F' || spec.type == 'G';
    const std::string sign = sign_of(std::signbit(value) && !std::isnan(value), spec);
    const double magnitude = std::fabs(value);
    std::string digits;
    if (std::isnan(value)) {
        digits = upper ? "NAN" : "nan";
    } else if (std::isinf(value)) {
        digits = upper ? "INF" : "inf";
    } else if (spec.type == '\0') {
        digits = plain_real_digits(magnitude, spec);
    } else if (spec.type == '%') {
        digits = real_digits(magnitude * 100, 'f', spec.precision < 0 ? 6 : spec.precision, false);
    } else {
        const char type = spec.type == 'n' ? 'g' : spec.type;
        digits =
            real_digits(magnitude, type, spec.precision < 0 ? 6 : spec.precision, spec.alternate);
    }
    if (std::isfinite(value)) digits = group_number(digits, sign, spec);
    if (spec.type == '%') digits += '%';
    return pad(sign, digits, spec, '>');
}

// --- "%d" % value ---

/// Hands out the values on the right of the %.
class PercentOperand {
  public:
    explicit PercentOperand(const Value& operand) : operand_(operand) {}

    const Value& next() {
        if (operand_.is(Kind::tuple)) {
            if (used_ == operand_.items().size()) fault("not enough arguments for format string");
            return operand_.items()[used_++];
        }
        if (used_++ > 0) fault("not enough arguments for format string");
        return operand_;
    }

    const Value& named(const std::string& name) {
        if (!operand_.is(Kind::dict)) fault("format requires a mapping");
        used_ = 1;
        const Value* value = operand_.dict().find(Value(name));
        if (value == nullptr) fault("the format names '" + name + "', which is not given");
        return *value;
    }

    void check_all_used() const {
        const bool is_tuple = operand_.is(Kind::tuple);
        // Whatever has items could be used by %(name)s.
        const bool may_be_unused = operand_.is(Kind::dict) || operand_.is(Kind::list) ||
                                   operand_.is(Kind::range) || operand_.is_undefined();
        if (is_tuple ? used_ < operand_.items().size() : used_ == 0 && !may_be_unused) {
            fault("not all arguments converted during string formatting");
        }
    }

  private:
    const Value& operand_;
    size_t used_ = 0;
};

int64_t star_or_number(const std::string& format, size_t& i, PercentOperand& operand,
                       int64_t limit) {
    if (i < format.size() && format[i] == '*') {
        ++i;
        const Value& value = operand.next();
        if (!value.is_integral()) fault("* wants int");
        if (std::abs(value.integer()) > limit)
            fault("a width or precision in a format is too large");
        return value.integer();
    }
    return read_number(format, i, limit);
}

std::string percent_integer(const Value& value, Spec spec) {
    if (!value.is_number()) {
        fault(std::string("%") + spec.type + " format: a real number is required, not " +
              value.type_name());
    }
    if (spec.type != 'd' && spec.type != 'i' && spec.type != 'u' && !value.is_integral()) {
        fault(std::string("%") + spec.type + " format: an integer is required, not " +
              value.type_name());
    }
    int64_t integer = 0;
    if (value.is_integral()) {
        integer = value.integer();
    } else {
        const double real = std::trunc(value.real());
        if (!(std::fabs(real) < 9.2e18)) fault("%d of a number beyond 64 bits");
        integer = static_cast<int64_t>(real);
    }
    // The precision is a minimum of digits.
    const int64_t digits = spec.precision;
    spec.precision = -1;
    if (digits < 0) return format_integer(integer, spec);
    Spec bare = spec;
    bare.width = 0;
    std::string text = format_integer(integer, bare);
    const size_t at = text.find_first_of("0123456789abcdefABCDEF");
    const size_t begin = spec.alternate && spec.type != 'd' ? at + 2 : at;
    while (static_cast<int64_t>(text.size() - begin) < digits) text.insert(begin, "0");
    return pad(text.substr(0, begin), text.substr(begin), spec, '>');
}

std::string convert_percent(char type, const Value& value, Spec spec) {
    spec.type = type;
    switch (type) {
        case 's':
        case 'r':
        case 'a': {
            if (spec.align == '=') spec.align = '>', spec.fill = U' ';
            if (spec.align == '\0') spec.align = '>';
            return format_string(type == 's' ? value.str() : value.repr(), spec);
        }
        case 'c':
            if (spec.align == '\0' || spec.align == '=') spec.align = '>', spec.fill = U' ';
            if (value.is_string() && value.length() == 1) return pad("", value.text(), spec, '>');
            if (!value.is_integral()) fault("%c requires int or char");
            return format_integer(value.integer(), spec);
        case 'd':
        case 'i':
        case 'u':
        case 'o':
        case 'x':
        case 'X':
            return percent_integer(value, spec);
        case 'e':
        case 'E':
        case 'f':
        case 'F':
        case 'g':
        case 'G':
            if (!value.is_number()) fault("must be real number, not " + value.type_name());
            return format_real(value.real(), spec);
        default:
            fault(std::string("unsupported format character '") + type + "'");
    }
}

// --- "{}".format(value) ---

Spec parse_spec(const std::string& text) {
    Spec spec;
    const std::u32string characters = decode_utf8(text);
    const auto is_align = [](char32_t c) {
        return c == U'<' || c == U'>' || c == U'^' || c == U'=';
    };
    size_t i = 0;
    if (characters.size() > 1 && is_align(characters[1])) {
        spec.fill = characters[0];
        spec.align = static_cast<char>(characters[1]);
        i = byte_offset(text, 2);
    } else if (!characters.empty() && is_align(characters[0])) {
        spec.align = text[0];
        i = 1;
    }
    const auto skip = [&](char c) { return i < text.size() && text[i] == c ? (++i, true) : false; };
    for (const char sign : {'+', '-', ' '}) {
        if (skip(sign)) {
            spec.sign = sign;
            break;
        }
    }
    spec.alternate = skip('#');
    if (skip('0') && spec.align == '\0') {
        spec.fill = U'0';
        spec.align = '=';
    }
    spec.width = std::max<int64_t>(read_number(text, i, kMaxWidth), 0);
    for (const char grouping : {',', '_'}) {
        if (skip(grouping)) spec.grouping = grouping;
    }
    if (skip('.')) {
        spec.precision = read_number(text, i, kMaxPrecision);
        if (spec.precision < 0) fault("Format specifier missing precision");
    }
    if (i < text.size()) spec.type = text[i++];
    if (i != text.size()) fault("Invalid format specifier '" + text + "'");
    return spec;
}

std::string format_value(const Value& value, const std::string& spec_text) {
    if (spec_text.empty()) return value.str();
    const Spec spec = parse_spec(spec_text);
    const auto type_in = [&](const char* types) {
        return std::string(types).find(spec.type) != std::string::npos;
    };
    if (value.is_string() && (spec.type == '\0' || spec.type == 's')) {
        if (spec.align == '=' && spec_text[0] == '=') {
            fault("'=' alignment not allowed in string format specifier");
        }
        if (spec.sign != '-') fault("Sign not allowed in string format specifier");
        if (spec.grouping != '\0') fault("Cannot specify ',' or '_' with 's'.");
        if (spec.alternate) fault("Alternate form (#) not allowed in string format specifier");
        Spec text_spec = spec;
        if (spec.align == '=') text_spec.align = '<';  // "05" fills a string on the right
        return format_string(value.text(), text_spec);
    }
    if (value.is_integral() && (spec.type == '\0' || type_in("bcdoxXn"))) {
        if (spec.precision >= 0) fault("Precision not allowed in integer format specifier");
        return format_integer(value.integer(), spec);
    }
    if (value.is_number() && (spec.type == '\0' || type_in("eEfFgGn%"))) {
        return format_real(value.real(), spec);
    }
    if (value.is_number() || value.is_string()) {
        fault(std::string("Unknown format code '") + spec.type + "' for object of type '" +
              value.type_name() + "'");
    }
    fault("unsupported format string passed to " + value.type_name() + ".__format__");
}

class StrFormatter {
  public:
    StrFormatter(JinjaRuntime& runtime, const JinjaArguments& arguments)
        : runtime_(runtime), arguments_(arguments) {}

    std::string format(const std::string& text, int nesting) {
        if (nesting > 2) fault("Max string recursion exceeded");
        std::string out;
        for (size_t i = 0; i < text.size();) {
            const char c = text[i];
            const bool doubled = i + 1 < text.size() && text[i + 1] == c;
            if ((c == '{' || c == '}') && doubled) {
                out += c;
                i += 2;
            } else if (c == '}') {
                fault("Single '}' encountered in format string");
            } else if (c == '{') {
                const size_t end = field_end(text, i + 1);
                out += format_field(text.substr(i + 1, end - i - 1), nesting);
                i = end + 1;
            } else {
                out += c;
                ++i;
            }
            if (static_cast<int64_t>(out.size()) > JinjaLimits::weight) {
                fault("a formatted string grows beyond 64 MiB");
            }
        }
        return out;
    }

  private:
    /// The } that ends the field which begins at `begin`.
    static size_t field_end(const std::string& text, size_t begin) {
        int open = 1;
        for (size_t i = begin; i < text.size(); ++i) {
            if (text[i] == '{') ++open;
            if (text[i] == '}' && --open == 0) return i;
        }
        fault("expected '}' before end of string");
    }

    /// name!conversion:spec
    std::string format_field(const std::string& field, int nesting) {
        size_t name_end = 0;
        for (bool in_brackets = false; name_end < field.size(); ++name_end) {
            const char c = field[name_end];
            if (c == '[') in_brackets = true;
            if (c == ']') in_brackets = false;
            if (!in_brackets && (c == '!' || c == ':')) break;
        }
        Value value = look_up(field.substr(0, name_end));
        size_t i = name_end;
        if (i < field.size() && field[i] == '!') {
            const char conversion = i + 1 < field.size() ? field[i + 1] : '\0';
            if (conversion != 'r' && conversion != 's' && conversion != 'a') {
                fault("unknown conversion in a format field: '" + field + "'");
            }
            value = Value(conversion == 's' ? value.str() : value.repr());
            i += 2;
            if (i < field.size() && field[i] != ':')
                fault("expected ':' after conversion specifier");
        }
        const std::string spec = i < field.size() ? format(field.substr(i + 1), nesting + 1) : "";
        return format_value(value, spec);
    }

    Value look_up(const std::string& path) {
        const size_t first_end = std::min(path.find_first_of(".["), path.size());
        Value value = argument(path.substr(0, first_end));
        for (size_t i = first_end; i < path.size();) {
            if (path[i] == '.') {
                const size_t end = std::min(path.find_first_of(".[", i + 1), path.size());
                value = runtime_.attribute(value, path.substr(i + 1, end - i - 1));
                i = end;
            } else if (path[i] == '[') {
                const size_t end = path.find(']', i);
                if (end == std::string::npos) fault("Missing ']' in format string");
                const std::string key = path.substr(i + 1, end - i - 1);
                if (key.empty()) fault("Empty attribute in format string");
                const bool number = key.find_first_not_of("0123456789") == std::string::npos;
                const std::optional<int64_t> index =
                    number ? parse_python_int(key, 10) : std::nullopt;
                value = runtime_.item(value, index ? Value(*index) : Value(key));
                i = end + 1;
            } else {
                fault("Only '.' or '[' may follow ']' in format field specifier");
            }
        }
        return value;
    }

    Value argument(const std::string& name) {
        const bool number = name.find_first_not_of("0123456789") == std::string::npos;
        if (!number) {
            for (const auto& [key, value] : arguments_.named) {
                if (key == name) return value;
            }
            fault("the format names '" + name + "', which is not given");
        }
        const bool automatic = name.empty();
        if (automatic ? manual_ : next_ > 0) {
            fault("cannot switch between manual field specification and automatic field numbering");
        }
        if (!automatic) manual_ = true;
        const int64_t index = automatic ? next_++ : parse_python_int(name, 10).value_or(-1);
        if (index < 0 || index >= static_cast<int64_t>(arguments_.positional.size())) {
            fault("Replacement index " + std::to_string(index) +
                  " out of range for positional args tuple");
        }
        return arguments_.positional[static_cast<size_t>(index)];
    }

    JinjaRuntime& runtime_;
    const JinjaArguments& arguments_;
    int64_t next_ = 0;
    bool manual_ = false;
};

}  // namespace

std::string jinja_percent_format(const std::string& format, const JinjaValue& operand) {
    PercentOperand values(operand);
    std::string out;
    for (size_t i = 0; i < format.size();) {
        if (format[i] != '%') {
            out += format[i++];
            continue;
        }
        if (++i >= format.size()) fault("incomplete format");
        const Value* value = nullptr;
        if (format[i] == '(') {
            const size_t end = format.find(')', i);
            if (end == std::string::npos) fault("incomplete format key");
            value = &values.named(format.substr(i + 1, end - i - 1));
            i = end + 1;
        }
        Spec spec;
        bool left = false;
        bool zero = false;
        for (; i < format.size(); ++i) {
            const char flag = format[i];
            if (flag == '-') {
                left = true;
            } else if (flag == '0') {
                zero = true;
            } else if (flag == '+' || (flag == ' ' && spec.sign != '+')) {
                spec.sign = flag;
            } else if (flag == '#') {
                spec.alternate = true;
            } else if (flag != ' ') {
                break;
            }
        }
        const int64_t width = star_or_number(format, i, values, kMaxWidth);
        if (width < -1) left = true;
        spec.width = width == -1 ? 0 : std::abs(width);
        if (i < format.size() && format[i] == '.') {
            ++i;
            spec.precision = std::max<int64_t>(star_or_number(format, i, values, kMaxPrecision), 0);
        }
        if (left) {
            spec.align = '<';
        } else if (zero) {
            spec.align = '=';
            spec.fill = U'0';
        }
        while (i < format.size() && (format[i] == 'h' || format[i] == 'l' || format[i] == 'L')) ++i;
        if (i >= format.size()) fault("incomplete format");
        const char type = format[i++];
        if (type == '%') {
            out += '%';
        } else {
            out += convert_percent(type, value != nullptr ? *value : values.next(), spec);
        }
        if (static_cast<int64_t>(out.size()) > JinjaLimits::weight) {
            fault("a formatted string grows beyond 64 MiB");
        }
    }
    values.check_all_used();
    return out;
}

std::string jinja_str_format(JinjaRuntime& runtime, const std::string& format,
                             const JinjaArguments& arguments) {
    return StrFormatter(runtime, arguments).format(format, 1);
}

}  // namespace mllama
