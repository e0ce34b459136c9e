// The tests of Jinja, `x is defined` and the like (jinja2's tests.py).
#include <algorithm>
#include <cmath>

#include "tokenizer/jinja_builtins.h"
#include "tokenizer/jinja_runtime.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaValue::Kind;

[[noreturn]] void fault(const std::string& message) {
    throw JinjaFault(message);
}

/// value % divisor == rest
bool leaves_rest(const Value& value, const Value& divisor, int64_t rest) {
    for (const Value* number : {&value, &divisor}) {
        if (number->is_undefined()) fault(number->undefined_message());
        if (!number->is_number()) {
            fault("'%' needs numbers here, found '" + number->type_name() + "'");
        }
    }
    if (divisor.real() == 0) fault("integer division or modulo by zero");
    if (!value.is_integral() || !divisor.is_integral()) {
        double remainder = std::fmod(value.real(), divisor.real());
        if (remainder != 0 && (remainder < 0) != (divisor.real() < 0)) remainder += divisor.real();
        return remainder == static_cast<double>(rest);
    }
    if (divisor.integer() == -1) return rest == 0;
    int64_t remainder = value.integer() % divisor.integer();
    if (remainder != 0 && (remainder < 0) != (divisor.integer() < 0))
        remainder += divisor.integer();
    return remainder == rest;
}

bool is_iterable(const Value& value) {
    if (value.is(Kind::none) || value.is_number()) return false;
    if (!value.is(Kind::object)) return true;
    const auto& object = value.object();
    // Asking an iterator for its items would use it up.
    return value.as<JinjaIterator>() || object->length() || object->iterate();
}

bool is_sequence(const Value& value) {
    return !value.is(Kind::none) && !value.is_number() && !value.is(Kind::object);
}

/// Jinja's Undefined is callable, too: calling it raises.
bool is_callable(const Value& value) {
    return value.is_undefined() || (value.is(Kind::object) && value.object()->is_callable());
}

bool names_a_filter(const Value& value) {
    return value.is_string() && find_jinja_filter(value.text()) != nullptr;
}

bool names_a_test(const Value& value) {
    return value.is_string() && find_jinja_test(value.text()) != nullptr;
}

/// Python's `is`, where it can be known: None, the booleans, small numbers, and shared content.
bool same_object(const Value& a, const Value& b) {
    if (a.identity() != nullptr || b.identity() != nullptr) return a.identity() == b.identity();
    return a.kind() == b.kind() && (a.is(Kind::none) || a.is_integral()) && a.equals(b);
}

/// What a comparison of the two costs.
void charge_comparison(JinjaRuntime& runtime, const Value& a, const Value& b) {
    runtime.charge(1 + std::min(a.weight(), b.weight()) / 64);
}

bool equal(JinjaRuntime& runtime, const Value& a, const Value& b) {
    charge_comparison(runtime, a, b);
    return a.equals(b);
}

bool less(JinjaRuntime& runtime, const Value& a, const Value& b) {
    charge_comparison(runtime, a, b);
    return a.less(b);
}

bool less_or_equal(JinjaRuntime& runtime, const Value& a, const Value& b) {
    return less(runtime, a, b) || a.equals(b);
}

const std::unordered_map<std::string, JinjaTest>& all_tests() {
    using R = JinjaRuntime;
    using V = const Value;
    static const JinjaTest kEqual = {equal, ""};
    static const JinjaTest kNotEqual = {[](R& r, V& a, V& b) { return !equal(r, a, b); }, ""};
    static const JinjaTest kLess = {less, ""};
    static const JinjaTest kLessOrEqual = {less_or_equal, ""};
    static const JinjaTest kGreater = {[](R& r, V& a, V& b) { return less(r, b, a); }, ""};
    static const JinjaTest kGreaterOrEqual = {
        [](R& r, V& a, V& b) { return less_or_equal(r, b, a); }, ""};
    static const std::unordered_map<std::string, JinjaTest> kTests = {
        {"defined", {[](R&, V& v, V&) { return !v.is_undefined(); }, nullptr}},
        {"undefined", {[](R&, V& v, V&) { return v.is_undefined(); }, nullptr}},
        {"none", {[](R&, V& v, V&) { return v.is(Kind::none); }, nullptr}},
        {"boolean", {[](R&, V& v, V&) { return v.is(Kind::boolean); }, nullptr}},
        {"true", {[](R&, V& v, V&) { return v.is(Kind::boolean) && v.boolean(); }, nullptr}},
        {"false", {[](R&, V& v, V&) { return v.is(Kind::boolean) && !v.boolean(); }, nullptr}},
        {"integer", {[](R&, V& v, V&) { return v.is(Kind::integer); }, nullptr}},
        {"float", {[](R&, V& v, V&) { return v.is(Kind::real); }, nullptr}},
        {"number", {[](R&, V& v, V&) { return v.is_number(); }, nullptr}},
        {"string", {[](R&, V& v, V&) { return v.is_string(); }, nullptr}},
        {"mapping", {[](R&, V& v, V&) { return v.is(Kind::dict); }, nullptr}},
        {"sequence", {[](R&, V& v, V&) { return is_sequence(v); }, nullptr}},
        {"iterable", {[](R&, V& v, V&) { return is_iterable(v); }, nullptr}},
        {"callable", {[](R&, V& v, V&) { return is_callable(v); }, nullptr}},
        {"escaped", {[](R&, V& v, V&) { return v.is_markup(); }, nullptr}},
        {"lower", {[](R&, V& v, V&) { return python_string_is_lower(v.str()); }, nullptr}},
        {"upper", {[](R&, V& v, V&) { return python_string_is_upper(v.str()); }, nullptr}},
        {"odd", {[](R&, V& v, V&) { return leaves_rest(v, Value(int64_t{2}), 1); }, nullptr}},
        {"even", {[](R&, V& v, V&) { return leaves_rest(v, Value(int64_t{2}), 0); }, nullptr}},
        {"divisibleby", {[](R&, V& v, V& divisor) { return leaves_rest(v, divisor, 0); }, "num"}},
        {"sameas", {[](R&, V& v, V& other) { return same_object(v, other); }, "other"}},
        {"in",
         {[](R& runtime, V& v, V& haystack) { return runtime.contains(haystack, v); }, "seq"}},
        {"filter", {[](R&, V& v, V&) { return names_a_filter(v); }, nullptr}},
        {"test", {[](R&, V& v, V&) { return names_a_test(v); }, nullptr}},
        {"==", kEqual},
        {"eq", kEqual},
        {"equalto", kEqual},
        {"!=", kNotEqual},
        {"ne", kNotEqual},
        {">", kGreater},
        {"gt", kGreater},
        {"greaterthan", kGreater},
        {">=", kGreaterOrEqual},
        {"ge", kGreaterOrEqual},
        {"<", kLess},
        {"lt", kLess},
        {"lessthan", kLess},
        {"<=", kLessOrEqual},
        {"le", kLessOrEqual},
    };
    return kTests;
}

}  // namespace

const JinjaTest* find_jinja_test(const std::string& name) {
    const auto found = all_tests().find(name);
    return found == all_tests().end() ? nullptr : &found->second;
}

}  // namespace mllama
