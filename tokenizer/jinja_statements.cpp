// What the statements of a Jinja template do: the other half of JinjaRuntime.
#include <algorithm>

#include "tokenizer/jinja_builtins.h"
#include "tokenizer/jinja_runtime.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Value = JinjaValue;
using Kind = JinjaExpression::Kind;
using Statement = JinjaStatement;

[[noreturn]] void fault(const std::string& message) {
    throw JinjaFault(message);
}

class Macro : public JinjaObject {
  public:
    Macro(std::shared_ptr<JinjaMacroSyntax> syntax, const Statement& statement,
          JinjaRuntime::ScopePtr scope)
        : syntax_(std::move(syntax)), statement_(statement), scope_(std::move(scope)) {}

    std::string type_name() const override { return "Macro"; }

    void append_repr(std::string& out, int) const override {
        out += "<Macro " + (syntax_->name.empty() ? "anonymous" : python_repr(syntax_->name)) + ">";
    }

    bool is_callable() const override { return true; }

    Value call(JinjaRuntime& runtime, JinjaArguments arguments) override {
        return runtime.call_macro(*syntax_, statement_.body, statement_.body_unset, scope_,
                                  std::move(arguments));
    }

    std::optional<Value> attribute(JinjaRuntime&, const std::string& name) override {
        if (name == "name") return Value(syntax_->name);
        if (name == "catch_kwargs") return Value(syntax_->uses_kwargs);
        if (name == "catch_varargs") return Value(syntax_->uses_varargs);
        if (name == "caller") return Value(syntax_->uses_caller);
        if (name != "arguments") return std::nullopt;
        std::vector<Value> names;
        for (const std::string& parameter : syntax_->parameters) names.emplace_back(parameter);
        return Value::tuple(std::move(names));
    }

  private:
    std::shared_ptr<JinjaMacroSyntax> syntax_;
    const Statement& statement_;
    JinjaRuntime::ScopePtr scope_;
};

/// The `loop` of a for.
class Loop : public JinjaObject {
  public:
    Loop(const Statement& statement, JinjaRuntime::ScopePtr scope, std::vector<Value> items,
         int64_t depth)
        : statement_(statement),
          scope_(std::move(scope)),
          items_(std::move(items)),
          depth_(depth) {}

    std::string type_name() const override { return "LoopContext"; }

    void append_repr(std::string& out, int) const override {
        out += "<LoopContext " + std::to_string(index_ + 1) + "/" + std::to_string(size()) + ">";
    }

    bool is_callable() const override { return true; }
    std::optional<int64_t> length() const override { return size(); }

    Value call(JinjaRuntime& runtime, JinjaArguments arguments) override {
        if (!statement_.recursive) {
            fault("The loop must have the 'recursive' marker to be called recursively.");
        }
        const JinjaBoundArguments bound("loop", arguments, {"iterable"}, 1);
        return runtime.call_loop(statement_, scope_, bound.at(0), depth_ + 1);
    }

    std::optional<Value> attribute(JinjaRuntime&, const std::string& name) override {
        if (name == "index") return Value(index_ + 1);
        if (name == "index0") return Value(index_);
        if (name == "first") return Value(index_ == 0);
        if (name == "last") return Value(index_ + 1 == size());
        if (name == "length") return Value(size());
        if (name == "revindex") return Value(size() - index_);
        if (name == "revindex0") return Value(size() - index_ - 1);
        if (name == "depth") return Value(depth_ + 1);
        if (name == "depth0") return Value(depth_);
        if (name == "previtem") return neighbour(index_ - 1, "there is no previous item");
        if (name == "nextitem") return neighbour(index_ + 1, "there is no next item");
        if (name == "cycle") return make_jinja_function("cycle", cycle_function());
        if (name == "changed") return make_jinja_function("changed", changed_function());
        return std::nullopt;
    }

    const std::vector<Value>& items() const { return items_; }
    void move_to(int64_t index) { index_ = index; }

  private:
    int64_t size() const { return static_cast<int64_t>(items_.size()); }

    Value neighbour(int64_t index, const std::string& message) const {
        if (index < 0 || index >= size()) return Value::undefined(message);
        return items_[static_cast<size_t>(index)];
    }

    JinjaNative cycle_function() const {
        return [index = index_](JinjaRuntime&, const JinjaArguments& arguments) {
            const auto& values = arguments.positional;
            if (values.empty()) fault("no items for cycling given");
            return values[static_cast<size_t>(index) % values.size()];
        };
    }

    JinjaNative changed_function() {
        return [last = last_](JinjaRuntime&, const JinjaArguments& arguments) {
            const Value now = Value::tuple(arguments.positional);
            const bool changed = !last->has_value() || !(**last).equals(now);
            if (changed) *last = now;
            return Value(changed);
        };
    }

    const Statement& statement_;
    JinjaRuntime::ScopePtr scope_;
    std::vector<Value> items_;
    int64_t depth_;
    int64_t index_ = 0;
    std::shared_ptr<std::optional<Value>> last_ = std::make_shared<std::optional<Value>>();
};

}  // namespace

JinjaRuntime::ScopePtr JinjaRuntime::inner_scope(const ScopePtr& parent,
                                                 const std::vector<std::string>& unset) {
    auto scope = std::make_shared<JinjaScope>();
    scope->parent = parent;
    for (const std::string& name : unset) {
        scope->variables[name] = Value::undefined(python_repr(name) + " is undefined");
    }
    charge(8 + static_cast<int64_t>(unset.size()));  // a scope takes as long as some nodes do
    return scope;
}

JinjaRuntime::Flow JinjaRuntime::run_body(const JinjaBody& body, const ScopePtr& scope,
                                          std::string& out) {
    const DepthGuard guard(*this);
    for (const Statement& statement : body) {
        const Flow flow = run(statement, scope, out);
        if (flow != Flow::normal) return flow;
    }
    return Flow::normal;
}

JinjaRuntime::Flow JinjaRuntime::run(const JinjaStatement& statement, const ScopePtr& scope,
                                     std::string& out) {
    line_ = statement.line;
    charge(1);
    switch (statement.kind) {
        case Statement::Kind::text:
            write(out, statement.text);
            return Flow::normal;
        case Statement::Kind::output:
            write(out, evaluate(*statement.expression, scope).str());
            return Flow::normal;
        case Statement::Kind::set:
            assign(*statement.target, evaluate(*statement.expression, scope), scope);
            return Flow::normal;
        case Statement::Kind::set_block:
            return run_set_block(statement, scope);
        case Statement::Kind::if_else: {
            const bool holds = evaluate(*statement.expression, scope).truthy();
            return run_body(holds ? statement.body : statement.alternative, scope, out);
        }
        case Statement::Kind::for_loop: {
            const Value items = evaluate(*statement.expression, scope);
            if (!statement.recursive) return run_loop(statement, scope, items, 0, out);
            write(out, call_loop(statement, scope, items, 0).text());
            return Flow::normal;
        }
        case Statement::Kind::macro:
            scope->variables[statement.macro->name] = make_macro(statement, scope);
            return Flow::normal;
        case Statement::Kind::call_block:
            run_call_block(statement, scope, out);
            return Flow::normal;
        case Statement::Kind::filter_block:
            return run_filter_block(statement, scope, out);
        case Statement::Kind::with:
            return run_with(statement, scope, out);
        case Statement::Kind::scope:
            return run_generation(statement, scope, out);
        case Statement::Kind::break_loop:
            return Flow::break_loop;
        case Statement::Kind::continue_loop:
            return Flow::continue_loop;
    }
    return Flow::normal;
}

JinjaRuntime::Flow JinjaRuntime::run_set_block(const JinjaStatement& statement,
                                               const ScopePtr& scope) {
    std::string text;
    const ScopePtr inside = inner_scope(scope, statement.body_unset);
    const Flow flow = run_body(statement.body, inside, text);
    if (flow != Flow::normal) return flow;
    Value value(std::move(text));
    if (statement.expression) value = evaluate_filter(*statement.expression, inside, &value);
    assign(*statement.target, count(value), scope);
    return Flow::normal;
}

JinjaRuntime::Flow JinjaRuntime::run_filter_block(const JinjaStatement& statement,
                                                  const ScopePtr& scope, std::string& out) {
    std::string text;
    const ScopePtr inside = inner_scope(scope, statement.body_unset);
    const Flow flow = run_body(statement.body, inside, text);
    if (flow != Flow::normal) return flow;
    const Value value(std::move(text));
    write(out, evaluate_filter(*statement.expression, inside, &value).str());
    return Flow::normal;
}

JinjaRuntime::Flow JinjaRuntime::run_with(const JinjaStatement& statement, const ScopePtr& scope,
                                          std::string& out) {
    const ScopePtr inside = inner_scope(scope, statement.body_unset);
    for (const auto& [target, value] : statement.assignments) {
        assign(*target, evaluate(*value, scope), inside);
    }
    return run_body(statement.body, inside, out);
}

JinjaRuntime::Flow JinjaRuntime::run_generation(const JinjaStatement& statement,
                                                const ScopePtr& scope, std::string& out) {
    return run_body(statement.body, inner_scope(scope, statement.body_unset), out);
}

/// {% call(x) f(y) %}: f is called with the body as the macro `caller`.
void JinjaRuntime::run_call_block(const JinjaStatement& statement, const ScopePtr& scope,
                                  std::string& out) {
    const Value caller(std::make_shared<Macro>(statement.macro, statement, scope));
    write(out, evaluate_call(*statement.expression, scope, &caller).str());
}

JinjaValue JinjaRuntime::make_macro(const JinjaStatement& statement, const ScopePtr& scope) {
    macro_scopes_.push_back(scope);
    charge(8);
    return Value(std::make_shared<Macro>(statement.macro, statement, scope));
}

/// The items of a loop, those that its `if` lets through.
std::vector<JinjaValue> JinjaRuntime::loop_items(const JinjaStatement& loop, const ScopePtr& scope,
                                                 const JinjaValue& items) {
    std::vector<Value> all = iterate(items);
    if (!loop.condition) return all;
    std::vector<Value> chosen;
    for (const Value& item : all) {
        const ScopePtr inside = inner_scope(scope, {});
        assign(*loop.target, item, inside);
        if (evaluate(*loop.condition, inside).truthy()) chosen.push_back(item);
    }
    return chosen;
}

JinjaRuntime::Flow JinjaRuntime::run_loop(const JinjaStatement& loop, const ScopePtr& scope,
                                          const JinjaValue& items, int64_t depth,
                                          std::string& out) {
    const auto context = std::make_shared<Loop>(loop, scope, loop_items(loop, scope, items), depth);
    const auto size = static_cast<int64_t>(context->items().size());
    bool completed =
        false;  // else runs unless some pass came to its end; break and continue do not
    for (int64_t i = 0; i < size; ++i) {
        context->move_to(i);
        const ScopePtr inside = inner_scope(scope, loop.body_unset);
        inside->variables["loop"] = Value(context);
        line_ = loop.line;
        assign(*loop.target, context->items()[static_cast<size_t>(i)], inside);
        const Flow flow = run_body(loop.body, inside, out);
        completed = completed || flow == Flow::normal;
        if (flow == Flow::break_loop) break;
    }
    if (completed || loop.alternative.empty()) return Flow::normal;
    return run_body(loop.alternative, inner_scope(scope, loop.alternative_unset), out);
}

JinjaValue JinjaRuntime::call_loop(const JinjaStatement& loop, const ScopePtr& scope,
                                   const JinjaValue& items, int64_t depth) {
    std::string out;
    run_loop(loop, scope, items, depth, out);
    return Value(std::move(out));
}

JinjaValue JinjaRuntime::call_macro(const JinjaMacroSyntax& macro, const JinjaBody& body,
                                    const std::vector<std::string>& unset, const ScopePtr& scope,
                                    JinjaArguments arguments) {
    const DepthGuard guard(*this);
    const ScopePtr inside = inner_scope(scope, unset);
    auto& variables = inside->variables;
    const auto take_named = [&](const std::string& name) -> std::optional<Value> {
        for (auto it = arguments.named.begin(); it != arguments.named.end(); ++it) {
            if (it->first != name) continue;
            Value value = it->second;
            arguments.named.erase(it);
            return value;
        }
        return std::nullopt;
    };
    const size_t positional = arguments.positional.size();
    const size_t parameters = macro.parameters.size();
    std::vector<size_t> missing;
    for (size_t i = 0; i < parameters; ++i) {
        const std::string& name = macro.parameters[i];
        if (i < positional) {
            variables[name] = arguments.positional[i];
        } else if (std::optional<Value> value = take_named(name)) {
            variables[name] = *value;
        } else {
            variables[name] =
                Value::undefined("parameter " + python_repr(name) + " was not provided");
            missing.push_back(i);
        }
    }
    if (macro.uses_caller) {
        variables["caller"] = take_named("caller").value_or(Value::undefined("No caller defined"));
    }
    if (macro.uses_kwargs) {
        std::vector<std::pair<Value, Value>> rest;
        for (const auto& [name, value] : arguments.named) rest.emplace_back(Value(name), value);
        variables["kwargs"] = Value::dict(std::move(rest));
    } else if (!arguments.named.empty()) {
        fault("macro '" + macro.name + "' takes no keyword argument '" + arguments.named[0].first +
              "'");
    }
    if (macro.uses_varargs) {
        const auto surplus = static_cast<std::ptrdiff_t>(std::min(parameters, positional));
        variables["varargs"] = Value::tuple(
            std::vector<Value>(arguments.positional.begin() + surplus, arguments.positional.end()));
    } else if (positional > parameters) {
        fault("macro '" + macro.name + "' takes not more than " + std::to_string(parameters) +
              " argument(s)");
    }
    // Defaults are evaluated at the call, in order: one may use the parameters before it.
    const size_t first_default = parameters - macro.defaults.size();
    for (const size_t i : missing) {
        if (i < first_default) continue;
        const Value value = evaluate(*macro.defaults[i - first_default], inside);
        variables[macro.parameters[i]] = value;
    }
    std::string out;
    run_body(body, inside, out);
    return count(Value(std::move(out)));
}

void JinjaRuntime::assign(const JinjaExpression& target, const JinjaValue& value,
                          const ScopePtr& scope) {
    if (target.kind == Kind::name) {
        scope->variables[target.text] = value;
    } else if (target.kind == Kind::namespace_attribute) {
        const auto space = look_up(target.text, scope).as<JinjaNamespace>();
        if (!space) fault("cannot assign attribute on non-namespace object");
        space->set(target.attribute, value);
    } else {
        const std::vector<Value> items = iterate(value);
        if (items.size() != target.operands.size()) {
            fault("cannot unpack " + std::to_string(items.size()) + " values to " +
                  std::to_string(target.operands.size()) + " names");
        }
        for (size_t i = 0; i < items.size(); ++i) assign(*target.operands[i], items[i], scope);
    }
}

}  // namespace mllama
