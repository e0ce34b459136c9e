// The values of a Jinja template: see the header.
#include "tokenizer/jinja_value.h"

#include <algorithm>
#include <functional>

#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaValue::Kind;

constexpr auto kElementBytes = static_cast<int64_t>(sizeof(JinjaValue));

bool numbers_equal(const Value& a, const Value& b) {
    if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
    return a.real() == b.real();
}

/// True for the same object, which Python compares before anything else inside containers.
bool same_or_equal(const Value& a, const Value& b) {
    if (a.identity() != nullptr && a.identity() == b.identity()) return true;
    return a.equals(b);
}

bool sequences_equal(const std::vector<Value>& a, const std::vector<Value>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_or_equal);
}

bool dicts_equal(const Value::Dict& a, const Value::Dict& b) {
    if (a.items.size() != b.items.size()) return false;
    return std::all_of(a.items.begin(), a.items.end(), [&](const auto& item) {
        const Value* other = b.find(item.first);
        return other != nullptr && same_or_equal(item.second, *other);
    });
}

bool ranges_equal(const Value::Range& a, const Value::Range& b) {
    if (a.length != b.length) return false;
    if (a.length == 0) return true;
    return a.start == b.start && (a.length == 1 || a.step == b.step);
}

bool sequence_less(const std::vector<Value>& a, const std::vector<Value>& b) {
    const size_t shared = std::min(a.size(), b.size());
    for (size_t i = 0; i < shared; ++i) {
        if (!same_or_equal(a[i], b[i])) return a[i].less(b[i]);
    }
    return a.size() < b.size();
}

}  // namespace

void check_jinja_weight(int64_t weight) {
    if (weight > JinjaLimits::weight) throw JinjaFault("a value grows beyond 64 MiB");
}

void check_jinja_depth(int depth) {
    if (depth > JinjaLimits::container_depth) {
        throw JinjaFault("containers are nested more than " +
                         std::to_string(JinjaLimits::container_depth) + " deep");
    }
}

// --- JinjaObject ---

JinjaValue JinjaObject::call(JinjaRuntime&, JinjaArguments) {
    throw JinjaFault("'" + type_name() + "' object is not callable");
}

std::optional<JinjaValue> JinjaObject::attribute(JinjaRuntime&, const std::string&) {
    return std::nullopt;
}

std::optional<std::vector<JinjaValue>> JinjaObject::iterate() {
    return std::nullopt;
}

std::optional<int64_t> JinjaObject::length() const {
    return std::nullopt;
}

std::optional<std::vector<JinjaValue>> JinjaIterator::iterate() {
    std::vector<JinjaValue> rest(items_.begin() + static_cast<std::ptrdiff_t>(position_),
                                 items_.end());
    position_ = items_.size();
    return rest;
}

int64_t JinjaIterator::bytes() const {
    return 64 + kElementBytes * static_cast<int64_t>(items_.size());
}

std::optional<JinjaValue> JinjaIterator::next() {
    if (position_ == items_.size()) return std::nullopt;
    return items_[position_++];
}

void JinjaDictView::append_repr(std::string& out, int depth) const {
    out += type_ + "(";
    list_.append_repr(out, depth);
    out += ")";
}

// --- making values ---

JinjaValue::JinjaValue(std::string text, bool markup) : kind_(Kind::string) {
    check_jinja_weight(static_cast<int64_t>(text.size()));
    data_ = std::make_shared<const String>(String{std::move(text), markup});
}

JinjaValue::JinjaValue(std::shared_ptr<JinjaObject> object)
    : kind_(Kind::object), data_(std::move(object)) {}

JinjaValue JinjaValue::undefined(std::string message) {
    JinjaValue value;
    value.kind_ = Kind::undefined;
    value.data_ = std::make_shared<const Undefined>(Undefined{std::move(message)});
    return value;
}

JinjaValue JinjaValue::sequence(Kind kind, std::vector<JinjaValue> items) {
    Sequence made;
    for (const JinjaValue& item : items) {
        made.weight += kElementBytes + item.weight();
        made.depth = std::max(made.depth, item.depth() + 1);
        check_jinja_weight(made.weight);
    }
    check_jinja_depth(made.depth);
    made.items = std::move(items);
    JinjaValue value;
    value.kind_ = kind;
    value.data_ = std::make_shared<const Sequence>(std::move(made));
    return value;
}

JinjaValue JinjaValue::list(std::vector<JinjaValue> items) {
    return sequence(Kind::list, std::move(items));
}

JinjaValue JinjaValue::tuple(std::vector<JinjaValue> items) {
    return sequence(Kind::tuple, std::move(items));
}

JinjaValue JinjaValue::dict(std::vector<std::pair<JinjaValue, JinjaValue>> items) {
    Dict made;
    for (auto& [key, item] : items) {
        const auto [place, is_new] = made.index.emplace(key, made.items.size());
        if (is_new) {
            made.items.emplace_back(std::move(key), std::move(item));
        } else {
            made.items[place->second].second = std::move(item);
        }
    }
    for (const auto& [key, item] : made.items) {
        made.weight += 4 * kElementBytes + key.weight() + item.weight();
        made.depth = std::max({made.depth, key.depth() + 1, item.depth() + 1});
        check_jinja_weight(made.weight);
    }
    check_jinja_depth(made.depth);
    JinjaValue value;
    value.kind_ = Kind::dict;
    value.data_ = std::make_shared<const Dict>(std::move(made));
    return value;
}

JinjaValue JinjaValue::range(int64_t start, int64_t stop, int64_t step) {
    if (step == 0) throw JinjaFault("range() arg 3 must not be zero");
    // In 128 bits nothing overflows.
    const __int128 distance =
        step > 0 ? static_cast<__int128>(stop) - start : static_cast<__int128>(start) - stop;
    const __int128 size = step > 0 ? static_cast<__int128>(step) : -static_cast<__int128>(step);
    const __int128 length = distance > 0 ? (distance + size - 1) / size : 0;
    if (length > JinjaLimits::range_length) {
        throw JinjaFault("Range too big. The sandbox blocks ranges larger than " +
                         std::to_string(JinjaLimits::range_length) + " items");
    }
    JinjaValue value;
    value.kind_ = Kind::range;
    value.data_ =
        std::make_shared<const Range>(Range{start, stop, step, static_cast<int64_t>(length)});
    return value;
}

// --- reading values ---

int64_t JinjaValue::integer() const {
    return kind_ == Kind::boolean ? static_cast<int64_t>(boolean()) : std::get<int64_t>(data_);
}

double JinjaValue::real() const {
    return kind_ == Kind::real ? std::get<double>(data_) : static_cast<double>(integer());
}

const std::string& JinjaValue::text() const {
    return std::get<std::shared_ptr<const String>>(data_)->text;
}

bool JinjaValue::is_markup() const {
    return is_string() && std::get<std::shared_ptr<const String>>(data_)->markup;
}

const std::vector<JinjaValue>& JinjaValue::items() const {
    return std::get<std::shared_ptr<const Sequence>>(data_)->items;
}

const JinjaValue::Dict& JinjaValue::dict() const {
    return *std::get<std::shared_ptr<const Dict>>(data_);
}

const std::shared_ptr<JinjaObject>& JinjaValue::object() const {
    return std::get<std::shared_ptr<JinjaObject>>(data_);
}

const std::string& JinjaValue::undefined_message() const {
    return std::get<std::shared_ptr<const Undefined>>(data_)->message;
}

const void* JinjaValue::identity() const {
    return std::visit(
        [](const auto& content) -> const void* {
            if constexpr (requires { content.get(); }) {
                return content.get();
            } else {
                return nullptr;
            }
        },
        data_);
}

bool JinjaValue::truthy() const {
    switch (kind_) {
        case Kind::undefined:
        case Kind::none:
            return false;
        case Kind::boolean:
        case Kind::integer:
            return integer() != 0;
        case Kind::real:
            return real() != 0;
        case Kind::object:
            return object()->length().value_or(1) != 0;
        default:
            return length() != 0;
    }
}

std::string JinjaValue::type_name() const {
    switch (kind_) {
        case Kind::undefined:
            return "Undefined";
        case Kind::none:
            return "NoneType";
        case Kind::boolean:
            return "bool";
        case Kind::integer:
            return "int";
        case Kind::real:
            return "float";
        case Kind::string:
            return is_markup() ? "Markup" : "str";
        case Kind::list:
            return "list";
        case Kind::tuple:
            return "tuple";
        case Kind::dict:
            return "dict";
        case Kind::range:
            return "range";
        case Kind::object:
            return object()->type_name();
    }
    return {};
}

std::string JinjaValue::str() const {
    if (is_string()) return text();
    return is_undefined() ? std::string() : repr();
}

std::string JinjaValue::repr() const {
    std::string out;
    append_repr(out);
    return out;
}

void JinjaValue::append_repr(std::string& out, int depth) const {
    check_jinja_depth(depth);
    check_jinja_weight(static_cast<int64_t>(out.size()));
    switch (kind_) {
        case Kind::undefined:
            out += "Undefined";
            return;
        case Kind::none:
            out += "None";
            return;
        case Kind::boolean:
            out += boolean() ? "True" : "False";
            return;
        case Kind::integer:
            out += std::to_string(integer());
            return;
        case Kind::real:
            out += python_repr(real());
            return;
        case Kind::string:
            out += is_markup() ? "Markup(" + python_repr(text()) + ")" : python_repr(text());
            return;
        case Kind::list:
        case Kind::tuple: {
            const bool is_list = kind_ == Kind::list;
            out += is_list ? '[' : '(';
            for (size_t i = 0; i < items().size(); ++i) {
                if (i > 0) out += ", ";
                items()[i].append_repr(out, depth + 1);
            }
            if (!is_list && items().size() == 1) out += ',';
            out += is_list ? ']' : ')';
            return;
        }
        case Kind::dict: {
            out += '{';
            bool first = true;
            for (const auto& [key, item] : dict().items) {
                if (!first) out += ", ";
                first = false;
                key.append_repr(out, depth + 1);
                out += ": ";
                item.append_repr(out, depth + 1);
            }
            out += '}';
            return;
        }
        case Kind::range: {
            const Range& r = range();
            out += "range(" + std::to_string(r.start) + ", " + std::to_string(r.stop);
            out += r.step == 1 ? ")" : ", " + std::to_string(r.step) + ")";
            return;
        }
        case Kind::object:
            object()->append_repr(out, depth);
            return;
    }
}

bool JinjaValue::equals(const JinjaValue& other) const {
    if (is_number() && other.is_number()) return numbers_equal(*this, other);
    if (kind_ != other.kind_) return false;
    switch (kind_) {
        case Kind::undefined:
        case Kind::none:
            return true;
        case Kind::string:
            return text() == other.text();
        case Kind::list:
        case Kind::tuple:
            return sequences_equal(items(), other.items());
        case Kind::dict:
            return dicts_equal(dict(), other.dict());
        case Kind::range:
            return ranges_equal(range(), other.range());
        default:
            return identity() == other.identity();
    }
}

bool JinjaValue::less(const JinjaValue& other) const {
    if (is_integral() && other.is_integral()) return integer() < other.integer();
    if (is_number() && other.is_number()) return real() < other.real();
    // Bytes of UTF-8 sort as their code points do.
    if (is_string() && other.is_string()) return text() < other.text();
    if (is_sequence() && kind_ == other.kind_) return sequence_less(items(), other.items());
    if (is_undefined()) throw JinjaFault(undefined_message());
    if (other.is_undefined()) throw JinjaFault(other.undefined_message());
    throw JinjaFault("'<' not supported between instances of '" + type_name() + "' and '" +
                     other.type_name() + "'");
}

bool JinjaValue::hashable() const {
    if (kind_ == Kind::list || kind_ == Kind::dict) return false;
    if (kind_ != Kind::tuple) return true;
    return std::all_of(items().begin(), items().end(),
                       [](const JinjaValue& item) { return item.hashable(); });
}

size_t JinjaValue::hash() const {
    switch (kind_) {
        case Kind::boolean:
        case Kind::integer:
        case Kind::real:
            return std::hash<double>()(real());
        case Kind::string:
            return std::hash<std::string>()(text());
        case Kind::tuple: {
            size_t combined = items().size();
            for (const JinjaValue& item : items()) combined = combined * 1000003 ^ item.hash();
            return combined;
        }
        case Kind::list:
        case Kind::dict:
            throw JinjaFault("unhashable type: '" + type_name() + "'");
        case Kind::object:
            return std::hash<const void*>()(identity());
        case Kind::range:
            return static_cast<size_t>(range().length);
        default:
            return 0;
    }
}

std::optional<int64_t> JinjaValue::length() const {
    switch (kind_) {
        case Kind::undefined:
            return 0;
        case Kind::string:
            return count_code_points(text());
        case Kind::list:
        case Kind::tuple:
            return static_cast<int64_t>(items().size());
        case Kind::dict:
            return static_cast<int64_t>(dict().items.size());
        case Kind::range:
            return range().length;
        case Kind::object:
            return object()->length();
        default:
            return std::nullopt;
    }
}

std::optional<std::vector<JinjaValue>> JinjaValue::iterate() const {
    std::vector<JinjaValue> out;
    switch (kind_) {
        case Kind::undefined:
            return out;
        case Kind::string:
            for (const char32_t c : decode_utf8(text())) {
                out.emplace_back(encode_utf8(std::u32string_view(&c, 1)));
            }
            return out;
        case Kind::list:
        case Kind::tuple:
            return items();
        case Kind::dict:
            for (const auto& item : dict().items) out.push_back(item.first);
            return out;
        case Kind::range:
            for (int64_t i = 0; i < range().length; ++i) {
                out.emplace_back(range().start + i * range().step);
            }
            return out;
        case Kind::object:
            return object()->iterate();
        default:
            return std::nullopt;
    }
}

int64_t JinjaValue::weight() const {
    switch (kind_) {
        case Kind::string:
            return static_cast<int64_t>(text().size());
        case Kind::list:
        case Kind::tuple:
            return std::get<std::shared_ptr<const Sequence>>(data_)->weight;
        case Kind::dict:
            return dict().weight;
        default:
            return 0;
    }
}

int64_t JinjaValue::shallow_bytes() const {
    switch (kind_) {
        case Kind::string:
            return 64 + static_cast<int64_t>(text().size());
        case Kind::list:
        case Kind::tuple:
            return 64 + kElementBytes * static_cast<int64_t>(items().size());
        case Kind::dict:
            return 128 + 4 * kElementBytes * static_cast<int64_t>(dict().items.size());
        case Kind::object:
            return object()->bytes();
        default:
            return 64;
    }
}

int JinjaValue::depth() const {
    if (is_sequence()) return std::get<std::shared_ptr<const Sequence>>(data_)->depth;
    return kind_ == Kind::dict ? dict().depth : 0;
}

const JinjaValue* JinjaValue::Dict::find(const JinjaValue& key) const {
    const auto found = index.find(key);
    return found == index.end() ? nullptr : &items[found->second].second;
}

}  // namespace mllama
