// What templates can use without defining it: filters, tests, functions, and the methods of
// strings, lists and dicts. The names and meanings are those of jinja2 3.1 in an
// ImmutableSandboxedEnvironment as transformers sets it up: tojson is json.dumps, and whatever
// would change a list or a dict is refused.
#pragma once

#include <ctime>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "tokenizer/jinja_value.h"

namespace mllama {

using JinjaFilter = JinjaValue (*)(JinjaRuntime&, const JinjaValue& input, const JinjaArguments&);

struct JinjaTest {
    bool (*holds)(JinjaRuntime&, const JinjaValue& value, const JinjaValue& argument);
    const char* parameter;  ///< name of the argument; null for a test that takes none
};

/// Null if there is no such filter or test.
JinjaFilter find_jinja_filter(const std::string& name);     // jinja_filters.cpp
const JinjaTest* find_jinja_test(const std::string& name);  // jinja_tests.cpp
/// Of the filters, those that take sequences apart (jinja_sequence_filters.cpp).
JinjaFilter find_jinja_sequence_filter(const std::string& name);

/// range, dict, namespace, cycler, joiner, raise_exception and strftime_now; the last tells the
/// time `now`, or if that is not set the time when it is called, as local time.
std::unordered_map<std::string, JinjaValue> jinja_functions(std::optional<std::time_t> now);

/// value.name where that is a method of a str, list, tuple or dict; undefined with the sandbox's
/// message for one that is refused; nothing if there is no such method.
std::optional<JinjaValue> find_jinja_method(const JinjaValue& value, const std::string& name);

/// A call's arguments by parameter, as Python binds them. A parameter named "" is positional only.
class JinjaBoundArguments {
  public:
    /// Errors: too many, unknown, given twice, or fewer than `required`.
    JinjaBoundArguments(const std::string& function, const JinjaArguments& arguments,
                        std::initializer_list<const char*> parameters, size_t required = 0);

    bool has(size_t index) const { return values_[index].has_value(); }
    /// The argument if given and not None.
    const JinjaValue* get(size_t index) const;
    const JinjaValue& at(size_t index) const { return *values_[index]; }
    // With a default if not given. Errors: another type.
    int64_t integer(size_t index, int64_t fallback) const;
    bool truthy(size_t index, bool fallback) const;
    std::string text(size_t index, const std::string& fallback) const;
    std::optional<std::string> optional_text(size_t index) const;  ///< nothing for None, too

  private:
    std::string function_;
    std::vector<std::optional<JinjaValue>> values_;
};

/// A function of C++ as a value.
using JinjaNative = std::function<JinjaValue(JinjaRuntime&, const JinjaArguments&)>;
JinjaValue make_jinja_function(std::string name, JinjaNative native);

/// What {% set ns.name = value %} writes to.
class JinjaNamespace : public JinjaObject {
  public:
    explicit JinjaNamespace(const JinjaValue& attributes);
    std::string type_name() const override { return "Namespace"; }
    void append_repr(std::string& out, int depth) const override;
    std::optional<JinjaValue> attribute(JinjaRuntime&, const std::string& name) override;
    void set(const std::string& name, JinjaValue value);
    /// Empties the namespace: the end of a render, which breaks cycles.
    std::vector<std::pair<JinjaValue, JinjaValue>> release();

  private:
    std::vector<std::pair<JinjaValue, JinjaValue>> attributes_;
    std::unordered_map<std::string, size_t> index_;
};

/// text with & < > ' and " replaced as markupsafe.escape does.
std::string jinja_escape(const std::string& text);

/// text.replace(from, to, count), all if `count` is negative. Errors: the result is too long.
std::string jinja_replace(const std::string& text, const std::string& from, const std::string& to,
                          int64_t count);

}  // namespace mllama
