#include "io/json_object.h"

#include <cmath>

namespace mllama {
namespace {

/// A value as it is shown in a message: at most a few words of it.
std::string shown(const Json& value) {
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    constexpr size_t longest = 60;
    if (text.size() > longest) text = text.substr(0, longest) + "...";
    return text;
}

}  // namespace

JsonObject::JsonObject(const Json& object, std::string where)
    : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) fail(where_, ": expected an object, found ", shown(object_));
}

bool JsonObject::has(std::string_view key) const {
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
}

void JsonObject::reject(std::string_view key, const std::string& expected) const {
    const auto found = object_.find(key);
    fail(where_, ": ", key, ": expected ", expected, ", found ",
         found == object_.end() ? "nothing" : shown(*found));
}

const Json& JsonObject::value(std::string_view key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) fail(where_, ": ", key, ": expected a value, found nothing");
    return *found;
}

int64_t JsonObject::integer(std::string_view key, int64_t low, int64_t high) const {
    const std::string expected =
        "an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]";
    if (!has(key)) reject(key, expected);
    const Json& found = value(key);
    const bool fits = found.is_number_integer() &&
                      !(found.is_number_unsigned() && found.get<uint64_t>() > uint64_t{INT64_MAX});
    if (!fits || found.get<int64_t>() < low || found.get<int64_t>() > high) reject(key, expected);
    return found.get<int64_t>();
}

int64_t JsonObject::integer_or(std::string_view key, int64_t low, int64_t high,
                               int64_t fallback) const {
    return has(key) ? integer(key, low, high) : fallback;
}

double JsonObject::number(std::string_view key, double low, double high) const {
    std::ostringstream expected;
    expected << "a number in [" << low << ", " << high << "]";
    if (!has(key) || !value(key).is_number()) reject(key, expected.str());
    const double found = value(key).get<double>();
    if (!std::isfinite(found) || found < low || found > high) reject(key, expected.str());
    return found;
}

double JsonObject::number_or(std::string_view key, double low, double high, double fallback) const {
    return has(key) ? number(key, low, high) : fallback;
}

bool JsonObject::boolean_or(std::string_view key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!value(key).is_boolean()) reject(key, "true or false");
    return value(key).get<bool>();
}

std::string JsonObject::text(std::string_view key) const {
    if (!has(key) || !value(key).is_string()) reject(key, "a string");
    return value(key).get<std::string>();
}

std::string JsonObject::text_or(std::string_view key, std::string_view fallback) const {
    return has(key) ? text(key) : std::string(fallback);
}

std::vector<int64_t> JsonObject::integers(std::string_view key, int64_t low, int64_t high,
                                          bool lone) const {
    if (lone && has(key) && value(key).is_number()) return {integer(key, low, high)};
    const std::string expected =
        "a list of integers in [" + std::to_string(low) + ", " + std::to_string(high) + "]";
    if (!has(key) || !value(key).is_array()) reject(key, expected);
    std::vector<int64_t> result;
    for (const Json& entry : value(key)) {
        if (!entry.is_number_integer()) reject(key, expected);
        const int64_t number = entry.get<int64_t>();
        if (number < low || number > high) reject(key, expected);
        result.push_back(number);
    }
    return result;
}

std::vector<double> JsonObject::numbers(std::string_view key) const {
    if (!has(key) || !value(key).is_array()) reject(key, "a list of numbers");
    std::vector<double> result;
    for (const Json& entry : value(key)) {
        if (!entry.is_number()) reject(key, "a list of numbers");
        result.push_back(entry.get<double>());
    }
    return result;
}

JsonObject JsonObject::object(std::string_view key) const {
    if (!has(key) || !value(key).is_object()) reject(key, "an object");
    return {value(key), where_ + ": " + std::string(key)};
}

std::string_view JsonObject::either(std::string_view first, std::string_view second) const {
    return !has(first) && has(second) ? second : first;
}

}  // namespace mllama
