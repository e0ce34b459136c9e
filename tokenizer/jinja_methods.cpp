// The methods of Python's str, list, tuple and dict that templates call: "a b".split(), d.get("x").
#include <algorithm>
#include <limits>

#include "tokenizer/jinja_builtins.h"
#include "tokenizer/jinja_format.h"
#include "tokenizer/jinja_runtime.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaValue::Kind;
using Bound = JinjaBoundArguments;
using Method = Value (*)(JinjaRuntime&, const Value& self, const JinjaArguments&);
using Methods = std::unordered_map<std::string, Method>;

[[noreturn]] void fault(const std::string& message) {
    throw JinjaFault(message);
}

/// A string made from `self`: escaped text stays marked as such.
Value like(const Value& self, std::string text) {
    return Value(std::move(text), self.is_markup());
}

Value list_like(const Value& self, const std::vector<std::string>& parts) {
    std::vector<Value> items;
    items.reserve(parts.size());
    for (const std::string& part : parts) items.push_back(like(self, part));
    return Value::list(std::move(items));
}

// --- str: parts of it ---

Value strip(const Value& self, const JinjaArguments& arguments, const char* name, StripSide side) {
    const Bound bound(name, arguments, {""});
    return like(self, std::string(python_strip(self.text(), side, bound.optional_text(0))));
}

Value split(JinjaRuntime& runtime, const Value& self, const JinjaArguments& arguments,
            bool from_right) {
    const Bound bound(from_right ? "rsplit" : "split", arguments, {"sep", "maxsplit"});
    const std::optional<std::string> separator = bound.optional_text(0);
    if (separator && separator->empty()) fault("empty separator");
    runtime.charge(self.weight() / 16);
    return list_like(self, python_split(self.text(), separator, bound.integer(1, -1), from_right));
}

Value partition(const Value& self, const JinjaArguments& arguments, bool from_right) {
    const Bound bound(from_right ? "rpartition" : "partition", arguments, {""}, 1);
    const std::string separator = bound.text(0, "");
    if (separator.empty()) fault("empty separator");
    const std::string& text = self.text();
    const size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == std::string::npos) {
        return from_right ? Value::tuple({Value(""), Value(""), self})
                          : Value::tuple({self, Value(""), Value("")});
    }
    return Value::tuple({like(self, text.substr(0, at)), Value(separator),
                         like(self, text.substr(at + separator.size()))});
}

/// self[start:end] for the methods that search a part of a string; positions are code points.
struct Part {
    std::string_view text;
    int64_t start;  ///< of `text` in the whole
    bool exists;    ///< false if start is behind the end: nothing is found there, not even ""
};

Part part_of(const Value& self, const Bound& bound) {
    const int64_t length = self.length().value_or(0);
    const auto clip = [&](size_t index, int64_t fallback) {
        if (bound.get(index) == nullptr) return fallback;
        const int64_t value = bound.integer(index, 0);
        if (value < 0) return value < -length ? 0 : value + length;
        return std::min(value, length + 1);
    };
    const int64_t start = clip(1, 0);
    const int64_t end = std::min(clip(2, length), length);
    if (start > end) return {"", start, false};
    const std::string& text = self.text();
    const size_t first = byte_offset(text, start);
    const size_t last = byte_offset(text, end);
    return {std::string_view(text).substr(first, last - first), start, true};
}

/// The position of the argument in `self`, or -1.
int64_t find_position(JinjaRuntime& runtime, const Value& self, const JinjaArguments& arguments,
                      const char* name, bool last) {
    const Bound bound(name, arguments, {"", "", ""}, 1);
    const std::string wanted = bound.text(0, "");
    runtime.charge(self.weight() / 64);
    const Part part = part_of(self, bound);
    const size_t at = last ? part.text.rfind(wanted) : part.text.find(wanted);
    if (!part.exists || at == std::string_view::npos) return -1;
    return part.start + count_code_points(part.text.substr(0, at));
}

Value index_of(JinjaRuntime& runtime, const Value& self, const JinjaArguments& arguments,
               bool last) {
    const int64_t at = find_position(runtime, self, arguments, last ? "rindex" : "index", last);
    if (at < 0) fault("substring not found");
    return at;
}

Value count_in(JinjaRuntime& runtime, const Value& self, const JinjaArguments& arguments) {
    const Bound bound("count", arguments, {"", "", ""}, 1);
    const std::string wanted = bound.text(0, "");
    runtime.charge(self.weight() / 64);
    const Part part = part_of(self, bound);
    if (!part.exists) return int64_t{0};
    if (wanted.empty()) return count_code_points(part.text) + 1;
    int64_t count = 0;
    for (size_t at = part.text.find(wanted); at != std::string_view::npos;
         at = part.text.find(wanted, at + wanted.size())) {
        ++count;
    }
    return count;
}

/// startswith and endswith: one string or a tuple of them.
Value has_affix(const Value& self, const JinjaArguments& arguments, bool at_start) {
    const char* name = at_start ? "startswith" : "endswith";
    const Bound bound(name, arguments, {"", "", ""}, 1);
    const Part part = part_of(self, bound);
    const auto matches = [&](const Value& affix) {
        if (affix.is_undefined()) fault(affix.undefined_message());
        if (!affix.is_string()) {
            fault(std::string(name) + " first arg must be str or a tuple of str, not " +
                  affix.type_name());
        }
        const std::string& text = affix.text();
        if (!part.exists || text.size() > part.text.size()) return false;
        return part.text.substr(at_start ? 0 : part.text.size() - text.size(), text.size()) == text;
    };
    const Value& affix = bound.at(0);
    if (!affix.is(Kind::tuple)) return matches(affix);
    return std::any_of(affix.items().begin(), affix.items().end(), matches);
}

// --- str: another text ---

Value replace(const Value& self, const JinjaArguments& arguments) {
    const Bound bound("replace", arguments, {"", "", ""}, 2);
    return like(self, jinja_replace(self.text(), bound.text(0, ""), bound.text(1, ""),
                                    bound.integer(2, -1)));
}

Value join(JinjaRuntime& runtime, const Value& self, const JinjaArguments& arguments) {
    const Bound bound("join", arguments, {""}, 1);
    std::string out;
    bool first = true;
    for (const Value& item : runtime.iterate(bound.at(0))) {
        if (!item.is_string())
            fault("sequence item: expected str instance, " + item.type_name() + " found");
        if (!first) out += self.text();
        first = false;
        out += item.text();
        if (static_cast<int64_t>(out.size()) > JinjaLimits::weight)
            fault("a value grows beyond 64 MiB");
    }
    return like(self, std::move(out));
}

/// center, ljust, rjust: `before` is the share of the padding that goes in front, of 2.
Value justify(const Value& self, const JinjaArguments& arguments, const char* name, int before) {
    const Bound bound(name, arguments, {"", ""}, 1);
    const std::string fill = bound.text(1, " ");
    if (count_code_points(fill) != 1)
        fault("The fill character must be exactly one character long");
    const int64_t width = bound.integer(0, 0);
    if (width > JinjaLimits::weight / 4) fault("a value grows beyond 64 MiB");
    const int64_t missing = std::max<int64_t>(width - self.length().value_or(0), 0);
    // Python puts the odd one in front if the width is odd, too.
    const int64_t left = before == 1   ? missing / 2 + (missing & width & 1)
                         : before == 2 ? missing
                                       : 0;
    std::string out;
    for (int64_t i = 0; i < left; ++i) out += fill;
    out += self.text();
    for (int64_t i = left; i < missing; ++i) out += fill;
    return like(self, std::move(out));
}

Value zero_fill(const Value& self, const JinjaArguments& arguments) {
    const Bound bound("zfill", arguments, {""}, 1);
    const int64_t width = bound.integer(0, 0);
    if (width > JinjaLimits::weight) fault("a value grows beyond 64 MiB");
    const int64_t missing = std::max<int64_t>(width - self.length().value_or(0), 0);
    std::string out = self.text();
    const bool has_sign = !out.empty() && (out[0] == '+' || out[0] == '-');
    out.insert(has_sign ? 1 : 0, static_cast<size_t>(missing), '0');
    return like(self, std::move(out));
}

Value remove_affix(const Value& self, const JinjaArguments& arguments, bool prefix) {
    const Bound bound(prefix ? "removeprefix" : "removesuffix", arguments, {""}, 1);
    const std::string affix = bound.text(0, "");
    const std::string& text = self.text();
    const size_t rest = text.size() - std::min(affix.size(), text.size());
    if (prefix && text.compare(0, affix.size(), affix) == 0)
        return like(self, text.substr(affix.size()));
    if (!prefix && text.compare(rest, std::string::npos, affix) == 0)
        return like(self, text.substr(0, rest));
    return self;
}

Value expand_tabs(const Value& self, const JinjaArguments& arguments) {
    const Bound bound("expandtabs", arguments, {"tabsize"});
    const int64_t size = bound.integer(0, 8);
    if (size > 1024) fault("expandtabs: a tab of more than 1024 columns");
    std::string out;
    int64_t column = 0;
    for (const char32_t c : decode_utf8(self.text())) {
        if (c == U'\t') {
            const int64_t spaces = size > 0 ? size - column % size : 0;
            out.append(static_cast<size_t>(spaces), ' ');
            column += spaces;
        } else {
            append_utf8(out, c);
            column = c == U'\n' || c == U'\r' ? 0 : column + 1;
        }
        if (static_cast<int64_t>(out.size()) > JinjaLimits::weight)
            fault("a value grows beyond 64 MiB");
    }
    return like(self, std::move(out));
}

using Args = const JinjaArguments&;

/// A method without arguments that makes another text.
template <std::string (*Function)(std::string_view)>
Value changed_text(JinjaRuntime&, const Value& self, Args arguments) {
    const Bound bound("the method", arguments, {});
    return like(self, Function(self.text()));
}

/// A method without arguments that asks something about the whole text.
template <bool (*Function)(std::string_view)>
Value text_is(JinjaRuntime&, const Value& self, Args arguments) {
    const Bound bound("the method", arguments, {});
    return Function(self.text());
}

/// A method without arguments that is true if every character passes.
template <bool (*Predicate)(char32_t), bool IfEmpty = false>
Value every_character(JinjaRuntime&, const Value& self, Args arguments) {
    const Bound bound("the method", arguments, {});
    const std::u32string characters = decode_utf8(self.text());
    if (characters.empty()) return IfEmpty;
    return std::all_of(characters.begin(), characters.end(), Predicate);
}

bool is_alphanumeric(char32_t c) {
    return python_is_alpha(c) || python_is_digit(c) || python_is_numeric(c);
}

bool is_ascii(char32_t c) {
    return c < 0x80;
}

bool is_identifier(std::string_view text) {
    const std::u32string characters = decode_utf8(text);
    return !characters.empty() && python_is_identifier_start(characters[0]) &&
           std::all_of(characters.begin(), characters.end(), python_is_identifier_part);
}

const Methods& string_methods() {
    static const Methods kMethods = {
        {"strip", [](JinjaRuntime&, const Value& s,
                     Args a) { return strip(s, a, "strip", StripSide::both); }},
        {"lstrip", [](JinjaRuntime&, const Value& s,
                      Args a) { return strip(s, a, "lstrip", StripSide::left); }},
        {"rstrip", [](JinjaRuntime&, const Value& s,
                      Args a) { return strip(s, a, "rstrip", StripSide::right); }},
        {"split", [](JinjaRuntime& r, const Value& s, Args a) { return split(r, s, a, false); }},
        {"rsplit", [](JinjaRuntime& r, const Value& s, Args a) { return split(r, s, a, true); }},
        {"splitlines",
         [](JinjaRuntime&, const Value& s, Args a) {
             const Bound bound("splitlines", a, {"keepends"});
             return list_like(s, python_split_lines(s.text(), bound.truthy(0, false)));
         }},
        {"partition", [](JinjaRuntime&, const Value& s, Args a) { return partition(s, a, false); }},
        {"rpartition", [](JinjaRuntime&, const Value& s, Args a) { return partition(s, a, true); }},
        {"startswith", [](JinjaRuntime&, const Value& s, Args a) { return has_affix(s, a, true); }},
        {"endswith", [](JinjaRuntime&, const Value& s, Args a) { return has_affix(s, a, false); }},
        {"find", [](JinjaRuntime& r, const Value& s,
                    Args a) { return Value(find_position(r, s, a, "find", false)); }},
        {"rfind", [](JinjaRuntime& r, const Value& s,
                     Args a) { return Value(find_position(r, s, a, "rfind", true)); }},
        {"index", [](JinjaRuntime& r, const Value& s, Args a) { return index_of(r, s, a, false); }},
        {"rindex", [](JinjaRuntime& r, const Value& s, Args a) { return index_of(r, s, a, true); }},
        {"count", count_in},
        {"replace", [](JinjaRuntime&, const Value& s, Args a) { return replace(s, a); }},
        {"join", join},
        {"upper", changed_text<python_upper>},
        {"lower", changed_text<python_lower>},
        {"title", changed_text<python_title>},
        {"capitalize", changed_text<python_capitalize>},
        {"swapcase", changed_text<python_swapcase>},
        {"center",
         [](JinjaRuntime&, const Value& s, Args a) { return justify(s, a, "center", 1); }},
        {"ljust", [](JinjaRuntime&, const Value& s, Args a) { return justify(s, a, "ljust", 0); }},
        {"rjust", [](JinjaRuntime&, const Value& s, Args a) { return justify(s, a, "rjust", 2); }},
        {"zfill", [](JinjaRuntime&, const Value& s, Args a) { return zero_fill(s, a); }},
        {"removeprefix",
         [](JinjaRuntime&, const Value& s, Args a) { return remove_affix(s, a, true); }},
        {"removesuffix",
         [](JinjaRuntime&, const Value& s, Args a) { return remove_affix(s, a, false); }},
        {"expandtabs", [](JinjaRuntime&, const Value& s, Args a) { return expand_tabs(s, a); }},
        {"format", [](JinjaRuntime& r, const Value& s,
                      Args a) { return like(s, jinja_str_format(r, s.text(), a)); }},
        {"isalpha", every_character<python_is_alpha>},
        {"isdigit", every_character<python_is_digit>},
        {"isdecimal", every_character<python_is_decimal>},
        {"isnumeric", every_character<python_is_numeric>},
        {"isalnum", every_character<is_alphanumeric>},
        {"isspace", every_character<python_is_space>},
        {"isascii", every_character<is_ascii, true>},
        {"isprintable", every_character<python_is_printable, true>},
        {"isidentifier", text_is<is_identifier>},
        {"isupper", text_is<python_string_is_upper>},
        {"islower", text_is<python_string_is_lower>},
        {"istitle", text_is<python_string_is_title>},
    };
    return kMethods;
}

// --- list and tuple ---

Value sequence_index(JinjaRuntime& runtime, const Value& self, Args arguments) {
    const Bound bound("index", arguments, {"", "", ""}, 1);
    const auto size = static_cast<int64_t>(self.items().size());
    const auto clip = [&](int64_t value) {
        return std::clamp(value < 0 ? value + size : value, int64_t{0}, size);
    };
    const int64_t end = clip(bound.integer(2, size));
    for (int64_t i = clip(bound.integer(1, 0)); i < end; ++i) {
        const Value& item = self.items()[static_cast<size_t>(i)];
        runtime.charge(1 + item.weight() / 64);
        if (item.equals(bound.at(0))) return i;
    }
    fault(bound.at(0).repr() + " is not in " + self.type_name());
}

Value sequence_count(JinjaRuntime& runtime, const Value& self, Args arguments) {
    const Bound bound("count", arguments, {""}, 1);
    runtime.charge(1 + self.weight() / 64);
    return std::count_if(self.items().begin(), self.items().end(),
                         [&](const Value& item) { return item.equals(bound.at(0)); });
}

Value copy(JinjaRuntime&, const Value& self, Args arguments) {
    const Bound bound("copy", arguments, {});
    return self;  // nothing can change either of the two
}

const Methods& list_methods() {
    static const Methods kMethods = {
        {"index", sequence_index}, {"count", sequence_count}, {"copy", copy}};
    return kMethods;
}

const Methods& tuple_methods() {
    static const Methods kMethods = {{"index", sequence_index}, {"count", sequence_count}};
    return kMethods;
}

// --- dict ---

Value dict_get(JinjaRuntime&, const Value& self, Args arguments) {
    const Bound bound("get", arguments, {"", ""}, 1);
    if (const Value* found = self.dict().find(bound.at(0))) return *found;
    return bound.has(1) ? bound.at(1) : Value();
}

template <class Pick>
Value dict_view(JinjaRuntime& runtime, const Value& self, Args arguments, const char* method,
                const char* type, Pick pick) {
    const Bound bound(method, arguments, {});
    runtime.charge(1 + self.length().value_or(0));
    std::vector<Value> items;
    for (const auto& item : self.dict().items) items.push_back(pick(item));
    return Value(std::make_shared<JinjaDictView>(type, Value::list(std::move(items))));
}

const Methods& dict_methods() {
    static const Methods kMethods = {
        {"get", dict_get},
        {"copy", copy},
        {"keys",
         [](JinjaRuntime& r, const Value& s, Args a) {
             return dict_view(r, s, a, "keys", "dict_keys",
                              [](const auto& item) { return item.first; });
         }},
        {"values",
         [](JinjaRuntime& r, const Value& s, Args a) {
             return dict_view(r, s, a, "values", "dict_values",
                              [](const auto& item) { return item.second; });
         }},
        {"items",
         [](JinjaRuntime& r, const Value& s, Args a) {
             return dict_view(r, s, a, "items", "dict_items", [](const auto& item) {
                 return Value::tuple({item.first, item.second});
             });
         }},
    };
    return kMethods;
}

// --- what the sandbox refuses ---

bool changes(const Value& value, const std::string& name) {
    static const std::initializer_list<const char*> kOfLists = {
        "append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"};
    static const std::initializer_list<const char*> kOfDicts = {"clear", "pop", "popitem",
                                                                "setdefault", "update"};
    const auto has = [&](const std::initializer_list<const char*>& names) {
        return std::any_of(names.begin(), names.end(),
                           [&](const char* known) { return name == known; });
    };
    return (value.is(Kind::list) && has(kOfLists)) || (value.is(Kind::dict) && has(kOfDicts));
}

}  // namespace

std::optional<JinjaValue> find_jinja_method(const JinjaValue& value, const std::string& name) {
    const bool dunder = name.size() > 4 && name.compare(0, 2, "__") == 0 &&
                        name.compare(name.size() - 2, 2, "__") == 0;
    if (changes(value, name) || (dunder && !value.is(Kind::dict))) {
        return Value::undefined("access to attribute " + python_repr(name) + " of '" +
                                value.type_name() + "' object is unsafe.");
    }
    const Methods* methods = value.is_string()       ? &string_methods()
                             : value.is(Kind::list)  ? &list_methods()
                             : value.is(Kind::tuple) ? &tuple_methods()
                             : value.is(Kind::dict)  ? &dict_methods()
                                                     : nullptr;
    if (methods == nullptr) return std::nullopt;
    const auto found = methods->find(name);
    if (found == methods->end()) return std::nullopt;
    return make_jinja_function(name, [self = value, method = found->second](
                                         JinjaRuntime& runtime, const JinjaArguments& arguments) {
        return method(runtime, self, arguments);
    });
}

}  // namespace mllama
