// A render of a Jinja template and its limits, and what expressions mean; what statements do is in
// jinja_statements.cpp.
#include "tokenizer/jinja_runtime.h"

#include <algorithm>
#include <cassert>

#include "kernels/error.h"
#include "tokenizer/jinja_builtins.h"
#include "tokenizer/jinja_format.h"
#include "tokenizer/jinja_operators.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaExpression::Kind;
using ValueKind = JinjaValue::Kind;

[[noreturn]] void fault(const std::string& message) {
    throw JinjaFault(message);
}

/// How Jinja's messages about missing attributes name an object.
std::string describe_object(const Value& value) {
    if (value.is(ValueKind::none)) return "None";
    if (value.as<JinjaNamespace>()) return "jinja2.utils.Namespace object";
    return value.type_name() + " object";
}

Value missing_attribute(const Value& object, const std::string& name) {
    return Value::undefined("'" + describe_object(object) + "' has no attribute " +
                            python_repr(name));
}

Value missing_item(const Value& object, const Value& key) {
    if (key.is_string()) return missing_attribute(object, key.text());
    return Value::undefined(describe_object(object) + " has no element " + key.repr());
}

[[noreturn]] void fail_operands(const std::string& symbol, const Value& left, const Value& right) {
    fault("unsupported operand type(s) for " + symbol + ": '" + left.type_name() + "' and '" +
          right.type_name() + "'");
}

}  // namespace

JinjaRuntime::JinjaRuntime(const JinjaTemplate& tree,
                           std::unordered_map<std::string, JinjaValue> variables,
                           std::optional<std::time_t> now)
    : tree_(tree), variables_(std::move(variables)), functions_(jinja_functions(now)) {}

JinjaRuntime::~JinjaRuntime() {
    // Namespaces and scopes may own each other in cycles and long chains. All are emptied first and
    // their content destroyed after, one level at a time.
    std::vector<std::pair<Value, Value>> attributes;
    for (const auto& made : namespaces_) {
        for (auto& attribute : made->release()) attributes.push_back(std::move(attribute));
    }
    std::vector<std::unordered_map<std::string, Value>> variables;
    for (const ScopePtr& scope : macro_scopes_) variables.push_back(std::move(scope->variables));
}

std::string JinjaRuntime::render() {
    try {
        std::string out;
        const auto scope = inner_scope(nullptr, tree_.unset);
        run_body(tree_.body, scope, out);
        return out;
    } catch (const JinjaFault& problem) {
        fail(tree_.name, " line ", line_, ": ", problem.what());
    }
}

// --- limits ---

JinjaRuntime::DepthGuard::DepthGuard(JinjaRuntime& runtime) : runtime_(runtime) {
    if (runtime.depth_ >= JinjaLimits::call_depth) {
        fault("macros or blocks are nested too deeply (recursion without an end?)");
    }
    ++runtime.depth_;
}

void JinjaRuntime::charge(int64_t steps) {
    steps_ += steps;
    if (steps_ > JinjaLimits::steps) {
        fault("the template takes more than " + std::to_string(JinjaLimits::steps) + " steps");
    }
}

void JinjaRuntime::keep(std::shared_ptr<JinjaNamespace> made) {
    namespaces_.push_back(std::move(made));
    charge(64);
}

void JinjaRuntime::count_bytes(int64_t bytes) {
    created_bytes_ += bytes;
    if (created_bytes_ > JinjaLimits::created_bytes) {
        fault("the template makes values of more than " +
              std::to_string(JinjaLimits::created_bytes >> 20) + " MiB");
    }
    charge(1 + bytes / 256);
}

JinjaValue JinjaRuntime::count(JinjaValue value) {
    count_bytes(value.shallow_bytes());
    return value;
}

void JinjaRuntime::write(std::string& out, const std::string& text) {
    out += text;
    charge(1 + static_cast<int64_t>(text.size()) / 256);
    if (static_cast<int64_t>(out.size()) > JinjaLimits::output_bytes) {
        fault("the template writes more than " + std::to_string(JinjaLimits::output_bytes >> 20) +
              " MiB");
    }
}

// --- expressions ---

JinjaValue JinjaRuntime::evaluate(const JinjaExpression& node, const ScopePtr& scope) {
    const DepthGuard guard(*this);
    charge(1);
    line_ = node.line;
    Value value = evaluate_node(node, scope);
    line_ = node.line;
    return value;
}

JinjaValue JinjaRuntime::evaluate_node(const JinjaExpression& node, const ScopePtr& scope) {
    const auto operand = [&](size_t i) { return evaluate(*node.operands[i], scope); };
    switch (node.kind) {
        case Kind::constant:
            return node.constant;
        case Kind::name:
            return look_up(node.text, scope);
        case Kind::list:
            return count(Value::list(evaluate_all(node.operands, scope)));
        case Kind::tuple:
            return count(Value::tuple(evaluate_all(node.operands, scope)));
        case Kind::dict: {
            std::vector<std::pair<Value, Value>> items;
            for (size_t i = 0; i + 1 < node.operands.size(); i += 2) {
                Value key = operand(i);
                items.emplace_back(std::move(key), operand(i + 1));
            }
            return count(Value::dict(std::move(items)));
        }
        case Kind::attribute:
            return attribute(operand(0), node.text);
        case Kind::item: {
            const Value object = operand(0);
            return item(object, operand(1));
        }
        case Kind::slice:
            return evaluate_slice(node, scope);
        case Kind::call:
            return evaluate_call(node, scope, nullptr);
        case Kind::filter:
            return evaluate_filter(node, scope, nullptr);
        case Kind::test: {
            const Value input = operand(0);
            return apply_test(node.text, input, evaluate_arguments(node.call, scope));
        }
        case Kind::negate:
        case Kind::plus: {
            const Value value = operand(0);
            if (value.is_undefined()) fault(value.undefined_message());
            if (!value.is_number()) {
                fault(std::string("bad operand type for unary ") +
                      (node.kind == Kind::plus ? "+" : "-") + ": '" + value.type_name() + "'");
            }
            if (!value.is_integral()) return node.kind == Kind::plus ? value.real() : -value.real();
            return node.kind == Kind::plus
                       ? Value(value.integer())
                       : jinja_number_operation("-", Value(int64_t{0}), Value(value.integer()));
        }
        case Kind::logical_not:
            return !operand(0).truthy();
        case Kind::logical_and: {
            const Value left = operand(0);
            return left.truthy() ? operand(1) : left;
        }
        case Kind::logical_or: {
            const Value left = operand(0);
            return left.truthy() ? left : operand(1);
        }
        case Kind::binary: {
            const Value left = operand(0);
            const Value right = operand(1);
            line_ = node.line;
            return count(binary(node.text, left, right));
        }
        case Kind::concat:
            return evaluate_concat(node, scope);
        case Kind::compare:
            return evaluate_compare(node, scope);
        case Kind::conditional:
            if (operand(0).truthy()) return operand(1);
            if (node.operands[2]) return operand(2);
            return Value::undefined(
                "the inline if-expression evaluated to false and no else section was defined.");
        case Kind::namespace_attribute:
            break;
    }
    assert(false && "an assignment target is not evaluated");
    return Value();
}

JinjaValue JinjaRuntime::look_up(const std::string& name, const ScopePtr& scope) {
    for (const JinjaScope* here = scope.get(); here != nullptr; here = here->parent.get()) {
        const auto found = here->variables.find(name);
        if (found != here->variables.end()) return found->second;
    }
    if (const auto found = variables_.find(name); found != variables_.end()) return found->second;
    if (const auto found = functions_.find(name); found != functions_.end()) return found->second;
    return Value::undefined(python_repr(name) + " is undefined");
}

JinjaValue JinjaRuntime::evaluate_slice(const JinjaExpression& node, const ScopePtr& scope) {
    Value object = evaluate(*node.operands[0], scope);
    Value bounds[3];
    for (size_t i = 0; i < 3; ++i) {
        if (node.operands[i + 1]) bounds[i] = evaluate(*node.operands[i + 1], scope);
    }
    line_ = node.line;
    charge(object.weight() / 64);
    return count(jinja_slice(object, bounds[0], bounds[1], bounds[2]));
}

JinjaValue JinjaRuntime::evaluate_concat(const JinjaExpression& node, const ScopePtr& scope) {
    std::string out;
    for (const JinjaExpressionPtr& part : node.operands) {
        out += evaluate(*part, scope).str();
        if (static_cast<int64_t>(out.size()) > JinjaLimits::weight)
            fault("a value grows beyond 64 MiB");
    }
    return count(Value(std::move(out)));
}

JinjaValue JinjaRuntime::evaluate_compare(const JinjaExpression& node, const ScopePtr& scope) {
    Value left = evaluate(*node.operands[0], scope);
    for (size_t i = 0; i < node.operators.size(); ++i) {
        Value right = evaluate(*node.operands[i + 1], scope);
        line_ = node.line;
        if (!compare(node.operators[i], left, right)) return false;
        left = std::move(right);
    }
    return true;
}

JinjaValue JinjaRuntime::evaluate_call(const JinjaExpression& node, const ScopePtr& scope,
                                       const JinjaValue* caller) {
    const Value function = evaluate(*node.operands[0], scope);
    JinjaArguments arguments = evaluate_arguments(node.call, scope);
    if (caller != nullptr) arguments.named.emplace_back("caller", *caller);
    line_ = node.line;
    return call(function, std::move(arguments));
}

JinjaValue JinjaRuntime::evaluate_filter(const JinjaExpression& node, const ScopePtr& scope,
                                         const JinjaValue* block_text) {
    Value input;
    if (node.operands[0] == nullptr) {
        assert(block_text != nullptr);
        input = *block_text;
    } else if (block_text != nullptr) {
        input = evaluate_filter(*node.operands[0], scope, block_text);
    } else {
        input = evaluate(*node.operands[0], scope);
    }
    const JinjaArguments arguments = evaluate_arguments(node.call, scope);
    line_ = node.line;
    return apply_filter(node.text, input, arguments);
}

std::vector<JinjaValue> JinjaRuntime::evaluate_all(const std::vector<JinjaExpressionPtr>& nodes,
                                                   const ScopePtr& scope) {
    std::vector<Value> values;
    values.reserve(nodes.size());
    for (const JinjaExpressionPtr& node : nodes) values.push_back(evaluate(*node, scope));
    return values;
}

JinjaArguments JinjaRuntime::evaluate_arguments(const JinjaCallSyntax& syntax,
                                                const ScopePtr& scope) {
    JinjaArguments arguments;
    arguments.positional = evaluate_all(syntax.positional, scope);
    const auto add_named = [&](const std::string& name, const Value& value) {
        for (const auto& given : arguments.named) {
            if (given.first == name)
                fault("got multiple values for keyword argument '" + name + "'");
        }
        arguments.named.emplace_back(name, value);
    };
    for (const auto& [name, node] : syntax.named) add_named(name, evaluate(*node, scope));
    if (syntax.more_positional) {
        for (const Value& value : iterate(evaluate(*syntax.more_positional, scope))) {
            arguments.positional.push_back(value);
        }
    }
    if (syntax.more_named) {
        const Value more = evaluate(*syntax.more_named, scope);
        if (!more.is(ValueKind::dict)) fault("argument after ** must be a mapping");
        charge(more.length().value_or(0));
        if (more.dict().items.size() > 1000) fault("more than 1000 named arguments");
        for (const auto& [name, value] : more.dict().items) {
            if (!name.is_string()) fault("keywords must be strings");
            add_named(name.text(), value);
        }
    }
    return arguments;
}

// --- operators ---

JinjaValue JinjaRuntime::binary(const std::string& symbol, const JinjaValue& left,
                                const JinjaValue& right) {
    // "..." % value formats, whatever the value is.
    if (symbol == "%" && left.is_string()) {
        charge(1 + (left.weight() + right.weight()) / 64);
        return Value(jinja_percent_format(left.text(), right), left.is_markup());
    }
    if (left.is_undefined()) fault(left.undefined_message());
    if (right.is_undefined()) fault(right.undefined_message());
    if (left.is_number() && right.is_number()) return jinja_number_operation(symbol, left, right);
    if (symbol == "+") return add(left, right);
    if (symbol == "*") {
        const auto repeats = [](const Value& value) {
            return value.is_string() || value.is_sequence();
        };
        if (repeats(left) && right.is_integral()) return jinja_repeat(left, right.integer());
        if (repeats(right) && left.is_integral()) return jinja_repeat(right, left.integer());
    }
    fail_operands(symbol, left, right);
}

JinjaValue JinjaRuntime::add(const JinjaValue& left, const JinjaValue& right) {
    if (left.is_undefined()) fault(left.undefined_message());
    if (right.is_undefined()) fault(right.undefined_message());
    if (left.is_number() && right.is_number()) return jinja_number_operation("+", left, right);
    if (left.is_string() && right.is_string()) {
        if (left.is_markup() == right.is_markup()) {
            return Value(left.text() + right.text(), left.is_markup());
        }
        // Escaped text stays escaped: the other side is escaped, too.
        const auto escaped = [](const Value& v) {
            return v.is_markup() ? v.text() : jinja_escape(v.text());
        };
        return Value(escaped(left) + escaped(right), true);
    }
    if (left.is_sequence() && left.kind() == right.kind()) {
        std::vector<Value> items = left.items();
        items.insert(items.end(), right.items().begin(), right.items().end());
        return left.is(ValueKind::list) ? Value::list(std::move(items))
                                        : Value::tuple(std::move(items));
    }
    fail_operands("+", left, right);
}

bool JinjaRuntime::compare(const std::string& symbol, const JinjaValue& left,
                           const JinjaValue& right) {
    charge(1 + std::min(left.weight(), right.weight()) / 64);
    if (symbol == "==") return left.equals(right);
    if (symbol == "!=") return !left.equals(right);
    if (symbol == "in") return contains(right, left);
    if (symbol == "not in") return !contains(right, left);
    if (symbol == "<") return left.less(right);
    if (symbol == ">") return right.less(left);
    // NaN makes <= more than the negation of >.
    const bool or_equal = left.equals(right);
    return symbol == "<=" ? left.less(right) || or_equal : right.less(left) || or_equal;
}

bool JinjaRuntime::contains(const JinjaValue& haystack, const JinjaValue& needle) {
    if (haystack.is_string()) {
        if (!needle.is_string()) {
            fault("'in <string>' requires string as left operand, not " + needle.type_name());
        }
        charge(haystack.weight() / 64);
        return haystack.text().find(needle.text()) != std::string::npos;
    }
    if (haystack.is(ValueKind::dict)) return haystack.dict().find(needle) != nullptr;
    for (const Value& item : iterate(haystack)) {
        charge(1 + std::min(item.weight(), needle.weight()) / 64);
        const bool same = item.identity() != nullptr && item.identity() == needle.identity();
        if (same || item.equals(needle)) return true;
    }
    return false;
}

// --- objects ---

std::vector<JinjaValue> JinjaRuntime::iterate(const JinjaValue& value) {
    const int64_t length = value.length().value_or(0);
    if (value.is_string() && length > JinjaLimits::iterated_characters) {
        fault("a string of " + std::to_string(length) + " characters is too long to take apart");
    }
    charge(1 + length);
    std::optional<std::vector<Value>> items = value.iterate();
    if (!items) fault("'" + value.type_name() + "' object is not iterable");
    // Every character of a string becomes a string.
    count_bytes((value.is_string() ? 128 : 32) * length);
    return std::move(*items);
}

JinjaValue JinjaRuntime::attribute(const JinjaValue& object, const std::string& name) {
    if (object.is_undefined()) fault(object.undefined_message());
    if (object.is(ValueKind::object)) {
        if (std::optional<Value> found = object.object()->attribute(*this, name)) return *found;
        return missing_attribute(object, name);
    }
    if (std::optional<Value> method = find_jinja_method(object, name)) return *method;
    if (object.is(ValueKind::dict)) {
        if (const Value* found = object.dict().find(Value(name))) return *found;
    }
    return missing_attribute(object, name);
}

JinjaValue JinjaRuntime::item(const JinjaValue& object, const JinjaValue& key) {
    if (object.is_undefined()) fault(object.undefined_message());
    if (object.is(ValueKind::dict) && key.hashable()) {
        if (const Value* found = object.dict().find(key)) return *found;
    }
    const bool indexed = object.is_sequence() || object.is_string() || object.is(ValueKind::range);
    if (indexed && key.is_integral()) {
        if (object.is_string()) charge(object.weight() / 64);
        const int64_t length = object.length().value_or(0);
        const int64_t index = key.integer() < 0 ? key.integer() + length : key.integer();
        if (index < 0 || index >= length) return missing_item(object, key);
        if (object.is_sequence()) return object.items()[static_cast<size_t>(index)];
        if (object.is(ValueKind::range)) return object.range().start + index * object.range().step;
        size_t byte = byte_offset(object.text(), index);
        std::string character;
        append_utf8(character, next_code_point(object.text(), byte));
        return Value(std::move(character), object.is_markup());
    }
    if (key.is_string()) {
        if (object.is(ValueKind::object)) return attribute(object, key.text());
        if (std::optional<Value> method = find_jinja_method(object, key.text())) return *method;
    }
    return missing_item(object, key);
}

JinjaValue JinjaRuntime::call(const JinjaValue& function, JinjaArguments arguments) {
    if (function.is_undefined()) fault(function.undefined_message());
    if (!function.is(ValueKind::object)) {
        fault("'" + function.type_name() + "' object is not callable");
    }
    return count(function.object()->call(*this, std::move(arguments)));
}

JinjaValue JinjaRuntime::apply_filter(const std::string& name, const JinjaValue& input,
                                      const JinjaArguments& arguments) {
    const JinjaFilter filter = find_jinja_filter(name);
    if (filter == nullptr) fault("unknown filter '" + name + "'");
    charge(1 + input.shallow_bytes() / 256);
    return count(filter(*this, input, arguments));
}

bool JinjaRuntime::apply_test(const std::string& name, const JinjaValue& input,
                              const JinjaArguments& arguments) {
    const JinjaTest* test = find_jinja_test(name);
    if (test == nullptr) fault("unknown test '" + name + "'");
    charge(1);
    if (test->parameter == nullptr) {
        const JinjaBoundArguments bound("test '" + name + "'", arguments, {});
        return test->holds(*this, input, Value());
    }
    const JinjaBoundArguments bound("test '" + name + "'", arguments, {test->parameter}, 1);
    return test->holds(*this, input, bound.at(0));
}

}  // namespace mllama
