// The global functions of templates, and how arguments reach functions: see the header.
#include "tokenizer/jinja_builtins.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "tokenizer/jinja_runtime.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaValue::Kind;

[[noreturn]] void fault(const std::string& message) {
    throw JinjaFault(message);
}

class NativeFunction : public JinjaObject {
  public:
    NativeFunction(std::string name, JinjaNative native)
        : name_(std::move(name)), native_(std::move(native)) {}
    std::string type_name() const override { return "function"; }
    void append_repr(std::string& out, int) const override { out += "<function " + name_ + ">"; }
    bool is_callable() const override { return true; }
    Value call(JinjaRuntime& runtime, JinjaArguments arguments) override {
        return native_(runtime, arguments);
    }

  private:
    std::string name_;
    JinjaNative native_;
};

/// cycler("odd", "even"): next() walks through the values again and again.
class Cycler : public JinjaObject {
  public:
    explicit Cycler(std::vector<Value> values) : values_(std::move(values)) {}
    std::string type_name() const override { return "Cycler"; }
    void append_repr(std::string& out, int) const override { out += "<Cycler object>"; }

    std::optional<Value> attribute(JinjaRuntime&, const std::string& name) override {
        if (name == "current") return values_[*position_];
        if (name == "next") {
            return make_jinja_function("next", [values = values_, position = position_](
                                                   JinjaRuntime&, const JinjaArguments&) {
                const size_t now = std::exchange(*position, (*position + 1) % values.size());
                return values[now];
            });
        }
        if (name == "reset") {
            return make_jinja_function(
                "reset", [position = position_](JinjaRuntime&, const JinjaArguments&) {
                    *position = 0;
                    return Value();
                });
        }
        return std::nullopt;
    }

  private:
    std::vector<Value> values_;
    std::shared_ptr<size_t> position_ = std::make_shared<size_t>(0);
};

/// joiner(", "): nothing at the first call, the separator at every other.
class Joiner : public JinjaObject {
  public:
    explicit Joiner(Value separator) : separator_(std::move(separator)) {}
    std::string type_name() const override { return "Joiner"; }
    void append_repr(std::string& out, int) const override { out += "<Joiner object>"; }
    bool is_callable() const override { return true; }
    Value call(JinjaRuntime&, JinjaArguments) override {
        return std::exchange(used_, true) ? separator_ : Value("");
    }

  private:
    Value separator_;
    bool used_ = false;
};

Value make_range(JinjaRuntime&, const JinjaArguments& arguments) {
    const JinjaBoundArguments bound("range", arguments, {"", "", ""}, 1);
    if (!bound.has(1)) return Value::range(0, bound.integer(0, 0), 1);
    return Value::range(bound.integer(0, 0), bound.integer(1, 0), bound.integer(2, 1));
}

/// dict(mapping or pairs, name=value, ...)
Value make_dict(JinjaRuntime& runtime, const JinjaArguments& arguments) {
    std::vector<std::pair<Value, Value>> items;
    if (arguments.positional.size() > 1) fault("dict expected at most 1 argument");
    if (!arguments.positional.empty()) {
        const Value& source = arguments.positional[0];
        if (source.is(Kind::dict)) {
            runtime.charge(source.length().value_or(0));
            items = source.dict().items;
        } else {
            for (const Value& pair : runtime.iterate(source)) {
                const std::vector<Value> parts = runtime.iterate(pair);
                if (parts.size() != 2) fault("dict() takes pairs of key and value");
                items.emplace_back(parts[0], parts[1]);
            }
        }
    }
    for (const auto& [name, value] : arguments.named) items.emplace_back(Value(name), value);
    return Value::dict(std::move(items));
}

Value make_namespace(JinjaRuntime& runtime, const JinjaArguments& arguments) {
    auto made = std::make_shared<JinjaNamespace>(make_dict(runtime, arguments));
    runtime.keep(made);
    return Value(std::move(made));
}

Value make_cycler(JinjaRuntime&, const JinjaArguments& arguments) {
    if (!arguments.named.empty()) fault("cycler() takes no keyword arguments");
    if (arguments.positional.empty()) fault("at least one item has to be provided");
    return Value(std::make_shared<Cycler>(arguments.positional));
}

Value make_joiner(JinjaRuntime&, const JinjaArguments& arguments) {
    const JinjaBoundArguments bound("joiner", arguments, {"sep"});
    return Value(std::make_shared<Joiner>(bound.has(0) ? bound.at(0) : Value(", ")));
}

Value raise_exception(JinjaRuntime&, const JinjaArguments& arguments) {
    const JinjaBoundArguments bound("raise_exception", arguments, {"message"}, 1);
    fault(bound.at(0).str());
}

/// datetime.now().strftime(format): the C library's, with Python's %f, %z and %Z of a naive time.
std::string format_time(const std::string& format, std::time_t now) {
    std::string c_format;
    for (size_t i = 0; i < format.size(); ++i) {
        const char next = i + 1 < format.size() ? format[i + 1] : '\0';
        if (format[i] == '%' && (next == 'f' || next == 'z' || next == 'Z' || next == '%')) {
            if (next == 'f') c_format += "000000";
            if (next == '%') c_format += "%%";
            ++i;
        } else {
            c_format += format[i];
        }
    }
    if (c_format.empty()) return {};
    std::tm parts{};
    localtime_r(&now, &parts);
    // A character in front tells an empty result from a buffer that is too small.
    const std::string marked = "." + c_format;
    std::string out(256 + 64 * marked.size(), '\0');
    const size_t length = std::strftime(out.data(), out.size(), marked.c_str(), &parts);
    if (length == 0) fault("strftime_now: the result of the format is too long");
    return out.substr(1, length - 1);
}

JinjaNative make_strftime_now(std::optional<std::time_t> now) {
    return [now](JinjaRuntime&, const JinjaArguments& arguments) {
        const JinjaBoundArguments bound("strftime_now", arguments, {"format"}, 1);
        const std::string format = bound.text(0, "");
        if (format.size() > 4096) fault("strftime_now: the format is too long");
        std::string out = format_time(format, now.value_or(std::time(nullptr)));
        if (!is_valid_utf8(out)) fault("strftime_now: the result is not valid UTF-8");
        return Value(std::move(out));
    };
}

}  // namespace

std::unordered_map<std::string, JinjaValue> jinja_functions(std::optional<std::time_t> now) {
    const auto function = [](const char* name, JinjaNative native) {
        return std::pair<const std::string, Value>(name,
                                                   make_jinja_function(name, std::move(native)));
    };
    return {function("range", make_range),
            function("dict", make_dict),
            function("namespace", make_namespace),
            function("cycler", make_cycler),
            function("joiner", make_joiner),
            function("raise_exception", raise_exception),
            function("strftime_now", make_strftime_now(now))};
}

JinjaValue make_jinja_function(std::string name, JinjaNative native) {
    return Value(std::make_shared<NativeFunction>(std::move(name), std::move(native)));
}

// --- JinjaBoundArguments ---

JinjaBoundArguments::JinjaBoundArguments(const std::string& function,
                                         const JinjaArguments& arguments,
                                         std::initializer_list<const char*> parameters,
                                         size_t required)
    : function_(function), values_(parameters.size()) {
    if (arguments.positional.size() > parameters.size()) {
        fault(function + " takes at most " + std::to_string(parameters.size()) + " arguments, " +
              std::to_string(arguments.positional.size()) + " given");
    }
    std::copy(arguments.positional.begin(), arguments.positional.end(), values_.begin());
    for (const auto& given : arguments.named) {
        const std::string& name = given.first;
        const auto* found = std::find_if(parameters.begin(), parameters.end(),
                                         [&](const char* p) { return !name.empty() && name == p; });
        if (found == parameters.end()) {
            fault(
                std::string(function).append(" got an unexpected keyword argument '").append(name) +
                "'");
        }
        auto& slot = values_[static_cast<size_t>(found - parameters.begin())];
        if (slot) {
            fault(std::string(function).append(" got multiple values for argument '").append(name) +
                  "'");
        }
        slot = given.second;
    }
    for (size_t i = 0; i < required; ++i) {
        if (values_[i]) continue;
        const std::string name = parameters.begin()[i];
        fault(function + " misses its argument " +
              (name.empty() ? std::to_string(i + 1) : "'" + name + "'"));
    }
}

const JinjaValue* JinjaBoundArguments::get(size_t index) const {
    const auto& value = values_[index];
    return value && !value->is(Kind::none) ? &*value : nullptr;
}

int64_t JinjaBoundArguments::integer(size_t index, int64_t fallback) const {
    if (!has(index)) return fallback;
    const Value& value = at(index);
    if (value.is_undefined()) fault(value.undefined_message());
    if (!value.is_integral()) {
        fault(function_ + ": '" + value.type_name() +
              "' object cannot be interpreted as an integer");
    }
    return value.integer();
}

bool JinjaBoundArguments::truthy(size_t index, bool fallback) const {
    return has(index) ? at(index).truthy() : fallback;
}

std::string JinjaBoundArguments::text(size_t index, const std::string& fallback) const {
    if (!has(index)) return fallback;
    if (at(index).is_undefined()) fault(at(index).undefined_message());
    if (!at(index).is_string()) {
        fault(function_ + ": expected a string, found '" + at(index).type_name() + "'");
    }
    return at(index).text();
}

std::optional<std::string> JinjaBoundArguments::optional_text(size_t index) const {
    if (get(index) == nullptr) return std::nullopt;
    return text(index, "");
}

// --- JinjaNamespace ---

JinjaNamespace::JinjaNamespace(const JinjaValue& attributes) {
    for (const auto& [name, value] : attributes.dict().items) {
        if (name.is_string()) set(name.text(), value);
    }
}

void JinjaNamespace::append_repr(std::string& out, int depth) const {
    out += "<Namespace {";
    bool first = true;
    for (const auto& [name, value] : attributes_) {
        if (!first) out += ", ";
        first = false;
        name.append_repr(out, depth + 1);
        out += ": ";
        value.append_repr(out, depth + 1);
    }
    out += "}>";
}

std::optional<JinjaValue> JinjaNamespace::attribute(JinjaRuntime&, const std::string& name) {
    const auto found = index_.find(name);
    if (found == index_.end()) return std::nullopt;
    return attributes_[found->second].second;
}

void JinjaNamespace::set(const std::string& name, JinjaValue value) {
    const auto [place, is_new] = index_.emplace(name, attributes_.size());
    if (is_new) {
        attributes_.emplace_back(Value(name), std::move(value));
    } else {
        attributes_[place->second].second = std::move(value);
    }
}

std::vector<std::pair<JinjaValue, JinjaValue>> JinjaNamespace::release() {
    index_.clear();
    return std::exchange(attributes_, {});
}

// --- strings ---

std::string jinja_replace(const std::string& text, const std::string& from, const std::string& to,
                          int64_t count) {
    std::string out;
    size_t begin = 0;
    // An empty `from` stands before every character and at the end.
    for (size_t search = 0; count != 0; --count) {
        const size_t at = text.find(from, search);
        if (at == std::string::npos || (from.empty() && search > text.size())) break;
        out.append(text, begin, at - begin);
        out += to;
        begin = at + from.size();
        search = from.empty()
                     ? at + std::max<size_t>(byte_offset(std::string_view(text).substr(at), 1), 1)
                     : begin;
        if (static_cast<int64_t>(out.size()) > JinjaLimits::weight) {
            fault("replace: the result grows beyond 64 MiB");
        }
    }
    return out.append(text, begin, std::string::npos);
}

std::string jinja_escape(const std::string& text) {
    std::string out;
    for (const char c : text) {
        switch (c) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '\'':
                out += "&#39;";
                break;
            case '"':
                out += "&#34;";
                break;
            default:
                out += c;
        }
    }
    return out;
}

}  // namespace mllama
