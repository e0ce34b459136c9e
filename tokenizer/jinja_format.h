// Python's two ways to format values: "%d of %s" % values and "{0} of {name}".format(...).
#pragma once

#include <string>

#include "tokenizer/jinja_value.h"

namespace mllama {

/// format % operand: a tuple gives one value each, a dict gives %(name)s, anything else is one
/// value. Errors: too few or too many values, a value of the wrong type, an unknown conversion.
std::string jinja_percent_format(const std::string& format, const JinjaValue& operand);

/// format.format(*positional, **named), with attributes and items in fields as in {0.role[x]}.
std::string jinja_str_format(JinjaRuntime& runtime, const std::string& format,
                             const JinjaArguments& arguments);

}  // namespace mllama
