// Python's arithmetic and slices: see the header.
#include "tokenizer/jinja_operators.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using ValueKind = JinjaValue::Kind;

[[noreturn]] void fault(const std::string& message) {
    throw JinjaFault(message);
}

[[noreturn]] void fail_overflow() {
    fault("an integer grows beyond 64 bits");
}

// --- arithmetic ---

int64_t integer_floor_divide(int64_t a, int64_t b) {
    if (b == 0) fault("integer division or modulo by zero");
    if (b == -1) {
        int64_t result = 0;
        if (__builtin_sub_overflow(int64_t{0}, a, &result)) fail_overflow();
        return result;
    }
    const int64_t quotient = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

int64_t integer_modulo(int64_t a, int64_t b) {
    if (b == 0) fault("integer division or modulo by zero");
    if (b == -1) return 0;
    const int64_t rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

/// a % b with the sign of b, and the quotient that belongs to it (CPython's float_divmod).
std::pair<double, double> real_divmod(double a, double b) {
    if (b == 0) fault("float floor division or modulo by zero");
    double rest = std::fmod(a, b);
    double quotient = (a - rest) / b;
    if (rest != 0) {
        if ((b < 0) != (rest < 0)) {
            rest += b;
            quotient -= 1;
        }
    } else {
        rest = std::copysign(0.0, b);
    }
    if (quotient == 0) return {std::copysign(0.0, a / b), rest};
    double floor = std::floor(quotient);
    if (quotient - floor > 0.5) floor += 1;
    return {floor, rest};
}

double real_power(double base, double exponent) {
    if (base == 0 && exponent < 0) fault("0.0 cannot be raised to a negative power");
    if (base < 0 && std::isfinite(exponent) && exponent != std::floor(exponent)) {
        fault("a negative number to a fractional power is complex");
    }
    const double result = std::pow(base, exponent);
    if (std::isinf(result) && std::isfinite(base) && std::isfinite(exponent)) {
        fault("Numerical result out of range");
    }
    return result;
}

Value power(const Value& left, const Value& right) {
    if (!left.is_integral() || !right.is_integral() || right.integer() < 0) {
        return real_power(left.real(), right.real());
    }
    int64_t base = left.integer();
    int64_t result = 1;
    for (int64_t exponent = right.integer(); exponent > 0; exponent /= 2) {
        if (exponent % 2 == 1 && __builtin_mul_overflow(result, base, &result)) fail_overflow();
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
    }
    return result;
}

// --- slices ---

/// begin, begin + stride, ... before end: what slice.indices(length) gives.
struct SliceIndices {
    int64_t begin, end, stride;
};

SliceIndices slice_indices(int64_t length, const Value& start, const Value& stop,
                           const Value& step) {
    const auto bound = [](const Value& value) -> std::optional<int64_t> {
        if (value.is(ValueKind::none)) return std::nullopt;
        if (value.is_undefined()) fault(value.undefined_message());
        if (!value.is_integral()) fault("slice indices must be integers or None");
        return value.integer();
    };
    const int64_t stride = bound(step).value_or(1);
    if (stride == 0) fault("slice step cannot be zero");
    const int64_t lowest = stride < 0 ? -1 : 0;
    const int64_t highest = stride < 0 ? length - 1 : length;
    const auto clip = [&](std::optional<int64_t> value, int64_t fallback) {
        if (!value) return fallback;
        if (*value < 0) return *value < -length ? lowest : std::max(*value + length, lowest);
        return std::min(*value, highest);
    };
    return {clip(bound(start), stride < 0 ? highest : lowest),
            clip(bound(stop), stride < 0 ? lowest : highest), stride};
}

Value slice_range(const Value::Range& range, const SliceIndices& slice) {
    // In 128 bits nothing overflows; what does not fit has at most one element.
    const __int128 step = static_cast<__int128>(range.step) * slice.stride;
    const __int128 begin = range.start + static_cast<__int128>(slice.begin) * range.step;
    const __int128 end = range.start + static_cast<__int128>(slice.end) * range.step;
    for (const __int128 value : {step, begin, end}) {
        if (value != static_cast<int64_t>(value)) fail_overflow();
    }
    return Value::range(static_cast<int64_t>(begin), static_cast<int64_t>(end),
                        static_cast<int64_t>(step));
}

std::vector<int64_t> slice_positions(const SliceIndices& slice) {
    std::vector<int64_t> positions;
    for (int64_t i = slice.begin; slice.stride > 0 ? i < slice.end : i > slice.end;) {
        positions.push_back(i);
        if (__builtin_add_overflow(i, slice.stride, &i)) break;
    }
    return positions;
}

Value take_positions(const Value& value, const std::vector<int64_t>& positions) {
    if (value.is_string()) {
        const std::u32string characters = decode_utf8(value.text());
        std::string out;
        for (const int64_t i : positions) append_utf8(out, characters[static_cast<size_t>(i)]);
        return Value(std::move(out), value.is_markup());
    }
    std::vector<Value> items;
    items.reserve(positions.size());
    for (const int64_t i : positions) items.push_back(value.items()[static_cast<size_t>(i)]);
    return value.is(ValueKind::list) ? Value::list(std::move(items))
                                     : Value::tuple(std::move(items));
}

}  // namespace

JinjaValue jinja_number_operation(const std::string& symbol, const JinjaValue& left,
                                  const JinjaValue& right) {
    if (symbol == "**") return power(left, right);
    if (symbol == "/") {
        if (right.real() == 0) fault("division by zero");
        return left.real() / right.real();
    }
    if (left.is_integral() && right.is_integral()) {
        const int64_t a = left.integer();
        const int64_t b = right.integer();
        int64_t result = 0;
        bool overflow = false;
        if (symbol == "+") overflow = __builtin_add_overflow(a, b, &result);
        if (symbol == "-") overflow = __builtin_sub_overflow(a, b, &result);
        if (symbol == "*") overflow = __builtin_mul_overflow(a, b, &result);
        if (symbol == "//") result = integer_floor_divide(a, b);
        if (symbol == "%") result = integer_modulo(a, b);
        if (overflow) fail_overflow();
        return result;
    }
    const double a = left.real();
    const double b = right.real();
    if (symbol == "+") return a + b;
    if (symbol == "-") return a - b;
    if (symbol == "*") return a * b;
    const auto [quotient, rest] = real_divmod(a, b);
    return symbol == "//" ? quotient : rest;
}

JinjaValue jinja_repeat(const JinjaValue& value, int64_t times) {
    const int64_t weight = std::max<int64_t>(value.weight(), 1);
    if (times > 0 && times > JinjaLimits::weight / weight) fault("a value grows beyond 64 MiB");
    if (value.is_string()) {
        std::string out;
        for (int64_t i = 0; i < times; ++i) out += value.text();
        return Value(std::move(out), value.is_markup());
    }
    std::vector<Value> items;
    for (int64_t i = 0; i < times; ++i) {
        items.insert(items.end(), value.items().begin(), value.items().end());
    }
    return value.is(ValueKind::list) ? Value::list(std::move(items))
                                     : Value::tuple(std::move(items));
}

JinjaValue jinja_slice(const JinjaValue& object, const JinjaValue& start, const JinjaValue& stop,
                       const JinjaValue& step) {
    if (object.is_undefined()) fault(object.undefined_message());
    if (object.is(ValueKind::dict)) fault("unhashable type: 'slice'");
    const bool is_range = object.is(ValueKind::range);
    if (!object.is_string() && !object.is_sequence() && !is_range) {
        fault("'" + object.type_name() + "' object is not subscriptable");
    }
    const SliceIndices slice = slice_indices(object.length().value_or(0), start, stop, step);
    if (is_range) return slice_range(object.range(), slice);
    return take_positions(object, slice_positions(slice));
}

}  // namespace mllama
