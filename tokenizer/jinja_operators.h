// Python's arithmetic, repetition and slices on the values of templates. Integers have 64 bits
// here: what grows beyond is an error, where Python would go on.
#pragma once

#include <string>

#include "tokenizer/jinja_value.h"

namespace mllama {

/// left symbol right for two numbers; symbol is + - * / // % or **. Errors: a division by zero, an
/// integer beyond 64 bits, a float beyond its range, a complex result.
JinjaValue jinja_number_operation(const std::string& symbol, const JinjaValue& left,
                                  const JinjaValue& right);

/// value * times for a string, list or tuple. Errors: the result is too heavy.
JinjaValue jinja_repeat(const JinjaValue& value, int64_t times);

/// object[start:stop:step] of a string, list, tuple or range; None stands for what is left out.
/// Errors: another type, a bound that is no integer, a step of zero.
JinjaValue jinja_slice(const JinjaValue& object, const JinjaValue& start, const JinjaValue& stop,
                       const JinjaValue& step);

}  // namespace mllama
