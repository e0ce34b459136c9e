#include "tokenizer/jinja_json.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "io/json.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaValue::Kind;

Value convert_json(const OrderedJson& json, int depth) {
    check_jinja_depth(depth);
    switch (json.type()) {
        case OrderedJson::value_t::null:
            return Value();
        case OrderedJson::value_t::boolean:
            return json.get<bool>();
        case OrderedJson::value_t::number_integer:
            return json.get<int64_t>();
        case OrderedJson::value_t::number_unsigned:
            if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
                throw JinjaFault("the integer " + std::to_string(json.get<uint64_t>()) +
                                 " has more than 64 bits with its sign");
            }
            return json.get<int64_t>();
        case OrderedJson::value_t::number_float:
            return json.get<double>();
        case OrderedJson::value_t::string: {
            const auto& text = json.get_ref<const std::string&>();
            if (!is_valid_utf8(text)) throw JinjaFault("a string is not valid UTF-8");
            return text;
        }
        case OrderedJson::value_t::array: {
            std::vector<Value> items;
            items.reserve(json.size());
            for (const OrderedJson& item : json) items.push_back(convert_json(item, depth + 1));
            return Value::list(std::move(items));
        }
        case OrderedJson::value_t::object: {
            std::vector<std::pair<Value, Value>> items;
            items.reserve(json.size());
            for (const auto& [key, item] : json.items()) {
                if (!is_valid_utf8(key)) throw JinjaFault("a key is not valid UTF-8");
                items.emplace_back(Value(key), convert_json(item, depth + 1));
            }
            return Value::dict(std::move(items));
        }
        default:
            throw JinjaFault("binary JSON values have no meaning in a template");
    }
}

void append_json_string(std::string& out, const std::string& text, bool ensure_ascii) {
    const auto escape = [&](char32_t unit) {
        out += "\\u";
        for (int shift = 12; shift >= 0; shift -= 4)
            out += "0123456789abcdef"[(unit >> shift) & 0xF];
    };
    out += '"';
    for (const char32_t c : decode_utf8(text)) {
        switch (c) {
            case U'"':
                out += "\\\"";
                break;
            case U'\\':
                out += "\\\\";
                break;
            case U'\n':
                out += "\\n";
                break;
            case U'\r':
                out += "\\r";
                break;
            case U'\t':
                out += "\\t";
                break;
            case U'\f':
                out += "\\f";
                break;
            case U'\b':
                out += "\\b";
                break;
            default:
                if (c < 0x20 || (ensure_ascii && c > 0x7E && c < 0x10000)) {
                    escape(c);
                } else if (ensure_ascii && c >= 0x10000) {
                    escape(0xD800 + ((c - 0x10000) >> 10));
                    escape(0xDC00 + ((c - 0x10000) & 0x3FF));
                } else {
                    append_utf8(out, c);
                }
        }
    }
    out += '"';
}

std::string json_number(const Value& value) {
    if (value.is(Kind::boolean)) return value.boolean() ? "true" : "false";
    if (value.is(Kind::integer)) return std::to_string(value.integer());
    const double real = value.real();
    if (std::isnan(real)) return "NaN";
    if (std::isinf(real)) return real > 0 ? "Infinity" : "-Infinity";
    return python_repr(real);
}

/// Writes JSON as Python's json.dumps does.
class JsonWriter {
  public:
    explicit JsonWriter(const JinjaJsonStyle& style) : style_(style) {}

    std::string write(const Value& value) {
        append(value, 0);
        return std::move(out_);
    }

  private:
    void append(const Value& value, int level) {
        check_jinja_weight(static_cast<int64_t>(out_.size()));
        if (value.is(Kind::none)) {
            out_ += "null";
        } else if (value.is_number()) {
            out_ += json_number(value);
        } else if (value.is_string()) {
            append_json_string(out_, value.text(), style_.ensure_ascii);
        } else if (value.is_sequence()) {
            append_sequence(value.items(), level);
        } else if (value.is(Kind::dict)) {
            append_dict(value.dict(), level);
        } else {
            throw JinjaFault("Object of type " + value.type_name() + " is not JSON serializable");
        }
    }

    void append_sequence(const std::vector<Value>& items, int level) {
        if (items.empty()) {
            out_ += "[]";
            return;
        }
        out_ += '[';
        for (size_t i = 0; i < items.size(); ++i) {
            if (i > 0) out_ += style_.item_separator;
            break_line(level + 1);
            append(items[i], level + 1);
        }
        break_line(level);
        out_ += ']';
    }

    void append_dict(const Value::Dict& dict, int level) {
        if (dict.items.empty()) {
            out_ += "{}";
            return;
        }
        std::vector<const std::pair<Value, Value>*> items;
        for (const auto& item : dict.items) items.push_back(&item);
        if (style_.sort_keys) {
            std::stable_sort(items.begin(), items.end(),
                             [](const auto* a, const auto* b) { return a->first.less(b->first); });
        }
        out_ += '{';
        for (size_t i = 0; i < items.size(); ++i) {
            if (i > 0) out_ += style_.item_separator;
            break_line(level + 1);
            append_json_string(out_, key_text(items[i]->first), style_.ensure_ascii);
            out_ += style_.key_separator;
            append(items[i]->second, level + 1);
        }
        break_line(level);
        out_ += '}';
    }

    static std::string key_text(const Value& key) {
        if (key.is_string()) return key.text();
        if (key.is(Kind::none)) return "null";
        if (key.is_number()) return json_number(key);
        throw JinjaFault("keys must be str, int, float, bool or None, not " + key.type_name());
    }

    void break_line(int level) {
        if (!style_.indent) return;
        out_ += '\n';
        for (int i = 0; i < level; ++i) out_ += *style_.indent;
        check_jinja_weight(static_cast<int64_t>(out_.size()));
    }

    const JinjaJsonStyle& style_;
    std::string out_;
};

}  // namespace

JinjaValue jinja_from_json(const nlohmann::ordered_json& json) {
    return convert_json(json, 0);
}

std::string jinja_to_json(const JinjaValue& value, const JinjaJsonStyle& style) {
    return JsonWriter(style).write(value);
}

}  // namespace mllama
