// The filters of Jinja, `x | trim` and the like (jinja2's filters.py; tojson is that of
// transformers): here those of one value, a text or a number; jinja_sequence_filters.cpp has those
// of many.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <unordered_map>

#include "tokenizer/jinja_builtins.h"
#include "tokenizer/jinja_format.h"
#include "tokenizer/jinja_json.h"
#include "tokenizer/jinja_runtime.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaValue::Kind;
using Bound = JinjaBoundArguments;
using Runtime = JinjaRuntime;
using Args = const JinjaArguments&;

[[noreturn]] void fault(const std::string& message) {
    throw JinjaFault(message);
}

/// A string filter's input: str(value), escaped text still marked.
Value soft_str(const Value& value) {
    return value.is_string() ? value : Value(value.str());
}

Value like(const Value& text, std::string made) {
    return Value(std::move(made), text.is_markup());
}

// --- strings ---

Value filter_trim(Runtime&, const Value& input, Args arguments) {
    const Bound bound("trim", arguments, {"chars"});
    const Value text = soft_str(input);
    return like(text,
                std::string(python_strip(text.text(), StripSide::both, bound.optional_text(0))));
}

template <std::string (*Function)(std::string_view)>
Value filter_text(Runtime&, const Value& input, Args arguments) {
    const Bound bound("the filter", arguments, {});
    const Value text = soft_str(input);
    return like(text, Function(text.text()));
}

/// Jinja's title: words start behind white space and - ( { [ <, unlike Python's.
std::string title_words(std::string_view text) {
    std::string out;
    std::u32string word;
    const auto flush = [&] {
        if (word.empty()) return;
        out += python_upper(encode_utf8(std::u32string_view(word).substr(0, 1)));
        out += python_lower(encode_utf8(std::u32string_view(word).substr(1)));
        word.clear();
    };
    for (const char32_t c : decode_utf8(text)) {
        if (python_is_space(c) ||
            std::u32string_view(U"-({[<").find(c) != std::u32string_view::npos) {
            flush();
            append_utf8(out, c);
        } else {
            word += c;
        }
    }
    flush();
    return out;
}

Value filter_replace(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
    const std::string text = input.str();
    runtime.charge(static_cast<int64_t>(text.size()) / 64);
    const int64_t count = bound.get(2) != nullptr ? bound.integer(2, -1) : -1;
    return Value(jinja_replace(text, bound.at(0).str(), bound.at(1).str(), count));
}

Value filter_format(Runtime&, const Value& input, Args arguments) {
    if (!arguments.positional.empty() && !arguments.named.empty()) {
        fault("format can't handle positional and keyword arguments at the same time");
    }
    const Value text = soft_str(input);
    if (arguments.named.empty()) {
        return like(text, jinja_percent_format(text.text(), Value::tuple(arguments.positional)));
    }
    std::vector<std::pair<Value, Value>> named;
    for (const auto& [name, value] : arguments.named) named.emplace_back(Value(name), value);
    return like(text, jinja_percent_format(text.text(), Value::dict(std::move(named))));
}

Value filter_indent(Runtime&, const Value& input, Args arguments) {
    const Bound bound("indent", arguments, {"width", "first", "blank"});
    if (input.is_undefined()) fault(input.undefined_message());
    if (!input.is_string()) fault("indent: expected a string, found '" + input.type_name() + "'");
    std::string margin = "    ";
    if (bound.has(0) && bound.at(0).is_string()) {
        margin = bound.at(0).text();
    } else if (bound.has(0)) {
        const int64_t width = std::max<int64_t>(bound.integer(0, 4), 0);
        if (width > JinjaLimits::weight) fault("indent: the width is too large");
        margin = std::string(static_cast<size_t>(width), ' ');
    }
    const bool blank_lines = bound.truthy(2, false);
    const std::vector<std::string> lines = python_split_lines(input.text() + "\n", false);
    std::string out = bound.truthy(1, false) ? margin : "";
    for (size_t i = 0; i < lines.size(); ++i) {
        if (i > 0) out += "\n" + (blank_lines || !lines[i].empty() ? margin : "");
        out += lines[i];
        if (static_cast<int64_t>(out.size()) > JinjaLimits::weight)
            fault("a value grows beyond 64 MiB");
    }
    return like(input, std::move(out));
}

Value filter_center(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("center", arguments, {"width"});
    const Value text = soft_str(input);
    const Value center = *find_jinja_method(text, "center");
    return runtime.call(center, {{Value(bound.integer(0, 80))}, {}});
}

Value filter_truncate(Runtime&, const Value& input, Args arguments) {
    const Bound bound("truncate", arguments, {"length", "killwords", "end", "leeway"});
    const int64_t length = bound.integer(0, 255);
    const std::string end = bound.text(2, "...");
    const int64_t leeway = bound.get(3) != nullptr ? bound.integer(3, 5) : 5;
    if (input.is_undefined()) return input;
    if (!input.is_string()) fault("truncate: expected a string, found '" + input.type_name() + "'");
    const int64_t kept = length - count_code_points(end);
    if (kept < 0) fault("truncate: the length is less than that of the end");
    if (leeway < 0) fault("truncate: the leeway is negative");
    if (length >= input.length().value_or(0) - leeway) return input;
    std::string text = input.text().substr(0, byte_offset(input.text(), kept));
    if (!bound.truthy(1, false)) text = text.substr(0, text.rfind(' '));
    return like(input, text + end);
}

Value filter_wordcount(Runtime&, const Value& input, Args arguments) {
    const Bound bound("wordcount", arguments, {});
    int64_t words = 0;
    bool inside = false;
    for (const char32_t c : decode_utf8(input.str())) {
        const bool is_word =
            c == U'_' || python_is_alpha(c) || python_is_digit(c) || python_is_numeric(c);
        if (is_word && !inside) ++words;
        inside = is_word;
    }
    return words;
}

Value filter_escape(Runtime&, const Value& input, Args arguments) {
    const Bound bound("escape", arguments, {});
    return input.is_markup() ? input : Value(jinja_escape(input.str()), true);
}

Value filter_forceescape(Runtime&, const Value& input, Args arguments) {
    const Bound bound("forceescape", arguments, {});
    return Value(jinja_escape(input.str()), true);
}

Value filter_safe(Runtime&, const Value& input, Args arguments) {
    const Bound bound("safe", arguments, {});
    return Value(input.str(), true);
}

Value filter_string(Runtime&, const Value& input, Args arguments) {
    const Bound bound("string", arguments, {});
    return soft_str(input);
}

/// urllib.parse.quote of str(value).
std::string quote_url(const Value& value, const std::string& safe, bool plus_for_space) {
    std::string out;
    for (const char c : value.str()) {
        const bool kept = std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                          std::string_view("_.-~").find(c) != std::string_view::npos ||
                          safe.find(c) != std::string::npos;
        if (kept) {
            out += c;
        } else if (c == ' ' && plus_for_space) {
            out += '+';
        } else {
            char code[4];
            std::snprintf(code, sizeof code, "%%%02X",
                          static_cast<unsigned>(static_cast<unsigned char>(c)));
            out += code;
        }
    }
    return out;
}

Value filter_urlencode(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("urlencode", arguments, {});
    std::vector<Value> pairs;
    if (input.is(Kind::dict)) {
        pairs.reserve(input.dict().items.size());
        for (const auto& [key, value] : input.dict().items) {
            pairs.push_back(Value::tuple({key, value}));
        }
    } else if (!input.is_sequence() && !input.as<JinjaIterator>()) {
        return Value(quote_url(input, "/", false));
    } else {
        pairs = runtime.iterate(input);
    }
    std::string out;
    for (const Value& pair : pairs) {
        const std::vector<Value> parts = runtime.iterate(pair);
        if (parts.size() != 2) fault("urlencode takes pairs of key and value");
        out += (out.empty() ? "" : "&") + quote_url(parts[0], "", true) + "=" +
               quote_url(parts[1], "", true);
    }
    return Value(std::move(out));
}

// --- numbers ---

Value filter_int(Runtime&, const Value& input, Args arguments) {
    const Bound bound("int", arguments, {"default", "base"});
    Value fallback = bound.has(0) ? bound.at(0) : Value(int64_t{0});
    const int64_t base = bound.integer(1, 10);
    if (base != 0 && (base < 2 || base > 36)) fault("int: the base must be from 2 to 36, or 0");
    if (input.is_undefined()) fault(input.undefined_message());
    if (input.is_integral()) return input.integer();
    std::optional<double> real;
    if (input.is_string()) {
        if (const auto value = parse_python_int(input.text(), static_cast<int>(base)))
            return *value;
        real = parse_python_float(input.text());  // "42.23"|int is 42
    } else if (input.is(Kind::real)) {
        real = input.real();
        if (std::isinf(*real)) fault("cannot convert float infinity to integer");
    }
    if (!real || !std::isfinite(*real)) return fallback;
    if (std::fabs(*real) >= 9.2e18) fault("int: the number has more than 64 bits");
    return static_cast<int64_t>(*real);
}

Value filter_float(Runtime&, const Value& input, Args arguments) {
    const Bound bound("float", arguments, {"default"});
    Value fallback = bound.has(0) ? bound.at(0) : Value(0.0);
    if (input.is_undefined()) fault(input.undefined_message());
    if (input.is_number()) return input.real();
    if (!input.is_string()) return fallback;
    const std::optional<double> value = parse_python_float(input.text());
    return value ? Value(*value) : fallback;
}

Value filter_abs(Runtime&, const Value& input, Args arguments) {
    const Bound bound("abs", arguments, {});
    if (!input.is_number()) fault("bad operand type for abs(): '" + input.type_name() + "'");
    if (!input.is_integral()) return std::fabs(input.real());
    if (input.integer() == std::numeric_limits<int64_t>::min())
        fault("an integer grows beyond 64 bits");
    return std::abs(input.integer());
}

/// Python's round(value, digits) of a float: halves go to the even neighbour, and what is a half is
/// decided on the exact value, which printf does.
double round_real(double value, int64_t digits) {
    if (!std::isfinite(value) || digits > 323) return value;
    if (digits < -308) return std::copysign(0.0, value);
    if (digits < 0) {
        const double unit = std::pow(10.0, static_cast<double>(-digits));
        return std::nearbyint(value / unit) * unit;
    }
    const int length = std::snprintf(nullptr, 0, "%.*f", static_cast<int>(digits), value);
    std::string text(static_cast<size_t>(length) + 1, '\0');
    std::snprintf(text.data(), text.size(), "%.*f", static_cast<int>(digits), value);
    text.pop_back();
    return parse_python_float(text).value_or(value);
}

/// Python's round(value, -places) of an int.
int64_t round_integer(int64_t value, int64_t places) {
    if (places > 18) return 0;
    int64_t unit = 1;
    for (int64_t i = 0; i < places; ++i) unit *= 10;
    int64_t rest = value % unit;
    if (rest < 0) rest += unit;
    int64_t floor = 0;
    if (__builtin_sub_overflow(value, rest, &floor)) fault("an integer grows beyond 64 bits");
    const bool odd = (floor / unit) % 2 != 0;
    const bool up = rest > unit - rest || (rest == unit - rest && odd);
    if (up && __builtin_add_overflow(floor, unit, &floor)) fault("an integer grows beyond 64 bits");
    return floor;
}

Value filter_round(Runtime&, const Value& input, Args arguments) {
    const Bound bound("round", arguments, {"precision", "method"});
    const int64_t precision = bound.integer(0, 0);
    const std::string method = bound.text(1, "common");
    if (input.is_undefined()) fault(input.undefined_message());
    if (!input.is_number()) fault("round: expected a number, found '" + input.type_name() + "'");
    if (method == "common") {
        if (!input.is_integral()) return round_real(input.real(), precision);
        return precision >= 0 ? input.integer() : round_integer(input.integer(), -precision);
    }
    if (method != "ceil" && method != "floor") fault("method must be common, ceil or floor");
    if (std::abs(precision) > 300) fault("round: the precision is too large");
    const double scale = std::pow(10.0, static_cast<double>(precision));
    const double scaled = input.real() * scale;
    if (!std::isfinite(scaled)) fault("round: the number is too large");
    return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale;
}

// --- any value ---

Value filter_default(Runtime&, const Value& input, Args arguments) {
    const Bound bound("default", arguments, {"default_value", "boolean"});
    const bool replaced = input.is_undefined() || (bound.truthy(1, false) && !input.truthy());
    if (!replaced) return input;
    return bound.has(0) ? bound.at(0) : Value("");
}

Value filter_length(Runtime&, const Value& input, Args arguments) {
    const Bound bound("length", arguments, {});
    const std::optional<int64_t> length = input.length();
    if (!length) fault("object of type '" + input.type_name() + "' has no len()");
    return *length;
}

Value filter_tojson(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
    JinjaJsonStyle style;
    style.ensure_ascii = bound.truthy(0, false);
    style.sort_keys = bound.truthy(3, false);
    if (const Value* indent = bound.get(1)) {
        if (indent->is_string()) {
            style.indent = indent->text();
        } else {
            const int64_t width = std::max<int64_t>(bound.integer(1, 0), 0);
            if (width > 1024) fault("tojson: an indent of more than 1024");
            style.indent = std::string(static_cast<size_t>(width), ' ');
        }
        style.item_separator = ",";
    }
    if (const Value* separators = bound.get(2)) {
        const std::vector<Value> pair = runtime.iterate(*separators);
        if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
            fault("tojson: separators must be a pair of strings");
        }
        style.item_separator = pair[0].text();
        style.key_separator = pair[1].text();
    }
    runtime.charge(input.weight() / 64);
    return Value(jinja_to_json(input, style));
}

Value filter_attr(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("attr", arguments, {"name"}, 1);
    const std::string name = bound.text(0, "");
    const Value missing = Value::undefined("'" + input.type_name() + " object' has no attribute " +
                                           python_repr(name));
    if (input.is_undefined()) fault(input.undefined_message());
    if (input.is(Kind::object)) return input.object()->attribute(runtime, name).value_or(missing);
    return find_jinja_method(input, name).value_or(missing);
}

}  // namespace

JinjaFilter find_jinja_filter(const std::string& name) {
    static const std::unordered_map<std::string, JinjaFilter> kFilters = {
        {"abs", filter_abs},
        {"attr", filter_attr},
        {"capitalize", filter_text<python_capitalize>},
        {"center", filter_center},
        {"count", filter_length},
        {"d", filter_default},
        {"default", filter_default},
        {"e", filter_escape},
        {"escape", filter_escape},
        {"float", filter_float},
        {"forceescape", filter_forceescape},
        {"format", filter_format},
        {"indent", filter_indent},
        {"int", filter_int},
        {"length", filter_length},
        {"lower", filter_text<python_lower>},
        {"replace", filter_replace},
        {"round", filter_round},
        {"safe", filter_safe},
        {"string", filter_string},
        {"title", filter_text<title_words>},
        {"tojson", filter_tojson},
        {"trim", filter_trim},
        {"truncate", filter_truncate},
        {"upper", filter_text<python_upper>},
        {"urlencode", filter_urlencode},
        {"wordcount", filter_wordcount},
    };
    const auto found = kFilters.find(name);
    return found == kFilters.end() ? find_jinja_sequence_filter(name) : found->second;
}

}  // namespace mllama
