// The filters of Jinja that take a sequence apart: sort, join, map, select and the like (jinja2's
// filters.py).
#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

#include "tokenizer/jinja_builtins.h"
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

Value make_iterator(const char* filter, std::vector<Value> items) {
    return Value(
        std::make_shared<JinjaIterator>(std::string("generator ") + filter, std::move(items)));
}

// --- attributes of items ---

/// The path "a.b.0" as keys.
std::vector<Value> attribute_path(const Value& attribute) {
    if (attribute.is(Kind::none)) return {};
    if (!attribute.is_string()) return {attribute};
    std::vector<Value> path;
    for (const std::string& part : python_split(attribute.text(), ".", -1, false)) {
        const bool digits =
            !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
        const std::optional<int64_t> number = digits ? parse_python_int(part, 10) : std::nullopt;
        path.push_back(number ? Value(*number) : Value(part));
    }
    return path;
}

Value follow_path(Runtime& runtime, Value value, const std::vector<Value>& path,
                  const Value* fallback = nullptr) {
    for (const Value& key : path) {
        value = runtime.item(value, key);
        if (fallback != nullptr && value.is_undefined()) value = *fallback;
    }
    return value;
}

Value ignore_case(const Value& value) {
    return value.is_string() ? Value(python_lower(value.text())) : value;
}

/// What items are sorted and compared by: an attribute or the item, without case unless it counts.
class ItemKey {
  public:
    ItemKey(Runtime& runtime, const Value* attribute, bool case_sensitive)
        : runtime_(runtime), case_sensitive_(case_sensitive) {
        if (attribute != nullptr) path_ = attribute_path(*attribute);
    }

    Value operator()(const Value& item) const {
        const Value key = follow_path(runtime_, item, path_);
        runtime_.charge(1 + key.weight() / 64);
        return case_sensitive_ ? key : ignore_case(key);
    }

  private:
    Runtime& runtime_;
    std::vector<Value> path_;
    bool case_sensitive_;
};

// --- sequences ---

/// The items in the order of their keys, stable, also in reverse.
std::vector<Value> sort_by(Runtime& runtime, const std::vector<Value>& items,
                           const std::vector<Value>& keys, bool reverse) {
    std::vector<size_t> order(items.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        runtime.charge(1 + std::min(keys[a].weight(), keys[b].weight()) / 64);
        return reverse ? keys[b].less(keys[a]) : keys[a].less(keys[b]);
    });
    std::vector<Value> sorted;
    sorted.reserve(items.size());
    for (const size_t i : order) sorted.push_back(items[i]);
    return sorted;
}

Value filter_sort(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("sort", arguments, {"reverse", "case_sensitive", "attribute"});
    std::vector<Value> attributes;  // "a,b" sorts by a, then by b
    if (bound.get(2) == nullptr) {
        attributes.emplace_back();
    } else if (bound.at(2).is_string()) {
        for (std::string& part : python_split(bound.at(2).text(), ",", -1, false)) {
            attributes.emplace_back(std::move(part));
        }
    } else {
        attributes.push_back(bound.at(2));
    }
    std::vector<ItemKey> parts;
    parts.reserve(attributes.size());
    for (const Value& attribute : attributes) {
        parts.emplace_back(runtime, &attribute, bound.truthy(1, false));
    }
    const std::vector<Value> items = runtime.iterate(input);
    std::vector<Value> keys;
    keys.reserve(items.size());
    for (const Value& item : items) {
        std::vector<Value> key;
        key.reserve(parts.size());
        for (const ItemKey& part : parts) key.push_back(part(item));
        keys.push_back(Value::list(std::move(key)));
    }
    return Value::list(sort_by(runtime, items, keys, bound.truthy(0, false)));
}

Value filter_dictsort(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("dictsort", arguments, {"case_sensitive", "by", "reverse"});
    if (input.is_undefined()) fault(input.undefined_message());
    if (!input.is(Kind::dict)) fault("'" + input.type_name() + "' object has no attribute 'items'");
    const std::string by = bound.text(1, "key");
    if (by != "key" && by != "value") fault("You can only sort by either \"key\" or \"value\"");
    std::vector<Value> items, keys;
    for (const auto& [key, value] : input.dict().items) {
        items.push_back(Value::tuple({key, value}));
        const Value& sorted_by = by == "key" ? key : value;
        keys.push_back(bound.truthy(0, false) ? sorted_by : ignore_case(sorted_by));
    }
    runtime.charge(static_cast<int64_t>(items.size()));
    return Value::list(sort_by(runtime, items, keys, bound.truthy(2, false)));
}

Value filter_unique(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("unique", arguments, {"case_sensitive", "attribute"});
    const ItemKey key_of(runtime, bound.get(1), bound.truthy(0, false));
    std::unordered_set<Value, Value::Dict::Hash, Value::Dict::Equal> seen;
    std::vector<Value> items;
    for (const Value& item : runtime.iterate(input)) {
        if (seen.insert(key_of(item)).second) items.push_back(item);
    }
    return make_iterator("unique", std::move(items));
}

Value extreme(Runtime& runtime, const Value& input, const char* name, Args arguments,
              bool largest) {
    const Bound bound(name, arguments, {"case_sensitive", "attribute"});
    const ItemKey key_of(runtime, bound.get(1), bound.truthy(0, false));
    const std::vector<Value> items = runtime.iterate(input);
    if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
    size_t best = 0;
    Value best_key = key_of(items[0]);
    for (size_t i = 1; i < items.size(); ++i) {
        Value key = key_of(items[i]);
        if (largest ? best_key.less(key) : key.less(best_key)) {
            best = i;
            best_key = std::move(key);
        }
    }
    return items[best];
}

Value filter_min(Runtime& runtime, const Value& input, Args arguments) {
    return extreme(runtime, input, "min", arguments, false);
}

Value filter_max(Runtime& runtime, const Value& input, Args arguments) {
    return extreme(runtime, input, "max", arguments, true);
}

Value filter_sum(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("sum", arguments, {"attribute", "start"});
    const std::vector<Value> path =
        bound.get(0) != nullptr ? attribute_path(bound.at(0)) : std::vector<Value>();
    Value total = bound.has(1) ? bound.at(1) : Value(int64_t{0});
    if (total.is_string()) fault("sum() can't sum strings [use ''.join(seq) instead]");
    for (const Value& item : runtime.iterate(input)) {
        total = runtime.add(total, follow_path(runtime, item, path));
        runtime.charge(1 + total.shallow_bytes() / 64);
    }
    return total;
}

Value filter_join(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("join", arguments, {"d", "attribute"});
    const std::string separator = bound.has(0) ? bound.at(0).str() : "";
    const std::vector<Value> path =
        bound.get(1) != nullptr ? attribute_path(bound.at(1)) : std::vector<Value>();
    std::string out;
    bool first = true;
    for (const Value& item : runtime.iterate(input)) {
        if (!first) out += separator;
        first = false;
        out += follow_path(runtime, item, path).str();
        if (static_cast<int64_t>(out.size()) > JinjaLimits::weight)
            fault("a value grows beyond 64 MiB");
    }
    return Value(std::move(out));
}

Value filter_list(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("list", arguments, {});
    return Value::list(runtime.iterate(input));
}

Value filter_items(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("items", arguments, {});
    if (input.is_undefined()) return make_iterator("items", {});
    if (!input.is(Kind::dict)) fault("Can only get item pairs from a mapping.");
    runtime.charge(input.length().value_or(0));
    std::vector<Value> pairs;
    pairs.reserve(input.dict().items.size());
    for (const auto& [key, value] : input.dict().items) pairs.push_back(Value::tuple({key, value}));
    return make_iterator("items", std::move(pairs));
}

Value filter_first(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("first", arguments, {});
    const Value none = Value::undefined("No first item, sequence was empty.");
    if (const auto iterator = input.as<JinjaIterator>()) return iterator->next().value_or(none);
    const std::vector<Value> items = runtime.iterate(input);
    return items.empty() ? none : items.front();
}

Value filter_last(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("last", arguments, {});
    if (input.as<JinjaIterator>()) fault("'" + input.type_name() + "' object is not reversible");
    const std::vector<Value> items = runtime.iterate(input);
    return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}

Value filter_reverse(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("reverse", arguments, {});
    if (input.is_string()) {
        std::u32string characters = decode_utf8(input.text());
        std::reverse(characters.begin(), characters.end());
        return Value(encode_utf8(characters), input.is_markup());
    }
    std::vector<Value> items = runtime.iterate(input);
    std::reverse(items.begin(), items.end());
    if (input.as<JinjaIterator>()) return Value::list(std::move(items));
    return make_iterator("reversed", std::move(items));
}

Value filter_batch(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("batch", arguments, {"linecount", "fill_with"}, 1);
    const int64_t size = bound.integer(0, 0);
    if (size > JinjaLimits::range_length) fault("batch: lines of more than 100000 items");
    std::vector<Value> lines, line;
    const auto flush = [&] { lines.push_back(Value::list(std::exchange(line, {}))); };
    for (const Value& item : runtime.iterate(input)) {
        if (static_cast<int64_t>(line.size()) == size) flush();
        line.push_back(item);
    }
    if (!line.empty()) {
        while (bound.get(1) != nullptr && static_cast<int64_t>(line.size()) < size)
            line.push_back(bound.at(1));
        flush();
    }
    return make_iterator("batch", std::move(lines));
}

Value filter_slice(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("slice", arguments, {"slices", "fill_with"}, 1);
    const int64_t slices = bound.integer(0, 0);
    if (slices == 0) fault("integer division or modulo by zero");
    if (slices > JinjaLimits::range_length) fault("slice: more than 100000 slices");
    const std::vector<Value> items = runtime.iterate(input);
    const auto size = static_cast<int64_t>(items.size());
    std::vector<Value> columns;
    for (int64_t i = 0, begin = 0; i < slices; ++i) {
        const bool has_extra = i < size % slices;
        const int64_t end = begin + size / slices + (has_extra ? 1 : 0);
        std::vector<Value> column(items.begin() + begin, items.begin() + end);
        if (bound.get(1) != nullptr && !has_extra) column.push_back(bound.at(1));
        columns.push_back(Value::list(std::move(column)));
        begin = end;
    }
    return make_iterator("slice", std::move(columns));
}

// --- map, select and their kin ---

/// The arguments behind the first `count`.
JinjaArguments rest_of(Args arguments, size_t count) {
    const auto skipped = static_cast<std::ptrdiff_t>(std::min(count, arguments.positional.size()));
    return {{arguments.positional.begin() + skipped, arguments.positional.end()}, arguments.named};
}

std::string name_argument(Args arguments, size_t index, const char* filter) {
    if (!arguments.positional[index].is_string()) {
        fault(std::string(filter) + ": expected the name of a filter or test, found '" +
              arguments.positional[index].type_name() + "'");
    }
    return arguments.positional[index].text();
}

/// map(attribute="name", default=x)
Value map_attribute(Runtime& runtime, const Value& input, Args arguments) {
    const Bound bound("map", arguments, {"attribute", "default"}, 1);
    const std::vector<Value> path = attribute_path(bound.at(0));
    std::vector<Value> items;
    for (const Value& item : runtime.iterate(input)) {
        items.push_back(follow_path(runtime, item, path, bound.get(1)));
    }
    return make_iterator("map", std::move(items));
}

Value filter_map(Runtime& runtime, const Value& input, Args arguments) {
    if (!input.truthy()) return make_iterator("map", {});
    const bool by_attribute =
        arguments.positional.empty() &&
        std::any_of(arguments.named.begin(), arguments.named.end(),
                    [](const auto& argument) { return argument.first == "attribute"; });
    if (by_attribute) return map_attribute(runtime, input, arguments);
    if (arguments.positional.empty()) fault("map requires a filter argument");
    const std::string name = name_argument(arguments, 0, "map");
    const JinjaArguments rest = rest_of(arguments, 1);
    std::vector<Value> items;
    for (const Value& item : runtime.iterate(input)) {
        items.push_back(runtime.apply_filter(name, item, rest));
        runtime.charge(1 + items.back().shallow_bytes() / 64);
    }
    return make_iterator("map", std::move(items));
}

/// select, reject: items for which a test, or their truth, is `wanted`; selectattr, rejectattr: the
/// same of an attribute.
Value choose(Runtime& runtime, const Value& input, Args arguments, const char* filter,
             bool by_attribute, bool wanted) {
    if (!input.truthy()) return make_iterator(filter, {});
    const size_t test_index = by_attribute ? 1 : 0;
    if (arguments.positional.size() < test_index) fault("Missing parameter for attribute name");
    const std::vector<Value> path =
        by_attribute ? attribute_path(arguments.positional[0]) : std::vector<Value>();
    const bool has_test = arguments.positional.size() > test_index;
    const std::string test = has_test ? name_argument(arguments, test_index, filter) : "";
    const JinjaArguments rest = rest_of(arguments, test_index + 1);
    std::vector<Value> chosen;
    for (const Value& item : runtime.iterate(input)) {
        const Value subject = follow_path(runtime, item, path);
        const bool holds = has_test ? runtime.apply_test(test, subject, rest) : subject.truthy();
        if (holds == wanted) chosen.push_back(item);
    }
    return make_iterator(filter, std::move(chosen));
}

Value filter_select(Runtime& runtime, const Value& input, Args arguments) {
    return choose(runtime, input, arguments, "select", false, true);
}

Value filter_reject(Runtime& runtime, const Value& input, Args arguments) {
    return choose(runtime, input, arguments, "reject", false, false);
}

Value filter_selectattr(Runtime& runtime, const Value& input, Args arguments) {
    return choose(runtime, input, arguments, "selectattr", true, true);
}

Value filter_rejectattr(Runtime& runtime, const Value& input, Args arguments) {
    return choose(runtime, input, arguments, "rejectattr", true, false);
}

}  // namespace

JinjaFilter find_jinja_sequence_filter(const std::string& name) {
    static const std::unordered_map<std::string, JinjaFilter> kFilters = {
        {"batch", filter_batch},
        {"dictsort", filter_dictsort},
        {"first", filter_first},
        {"items", filter_items},
        {"join", filter_join},
        {"last", filter_last},
        {"list", filter_list},
        {"map", filter_map},
        {"max", filter_max},
        {"min", filter_min},
        {"reject", filter_reject},
        {"rejectattr", filter_rejectattr},
        {"reverse", filter_reverse},
        {"select", filter_select},
        {"selectattr", filter_selectattr},
        {"slice", filter_slice},
        {"sort", filter_sort},
        {"sum", filter_sum},
        {"unique", filter_unique},
    };
    const auto found = kFilters.find(name);
    return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace mllama
