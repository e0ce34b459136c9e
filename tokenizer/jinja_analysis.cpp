// The checks and decisions that precede the run of a template: see the header.
#include "tokenizer/jinja_analysis.h"

#include <algorithm>
#include <functional>
#include <set>

#include "tokenizer/jinja_builtins.h"
#include "tokenizer/jinja_lexer.h"

namespace mllama {
namespace {

using Expression = JinjaExpression;
using ExpressionPtr = JinjaExpressionPtr;
using Kind = JinjaExpression::Kind;
using Statement = JinjaStatement;
using Body = JinjaBody;

/// Calls `visit` for every expression directly below `node`, in the order of evaluation.
template <class Visit>
void for_each_child(const Expression& node, Visit visit) {
    for (const ExpressionPtr& operand : node.operands) {
        if (operand) visit(*operand);
    }
    for (const ExpressionPtr& argument : node.call.positional) visit(*argument);
    for (const auto& [name, argument] : node.call.named) visit(*argument);
    if (node.call.more_positional) visit(*node.call.more_positional);
    if (node.call.more_named) visit(*node.call.more_named);
}

// --- unknown filters and tests ---

/// `soft`: inside an if or a conditional expression, where an unknown name may never be reached.
void check_expression(const Expression* node, bool soft) {
    if (node == nullptr) return;
    if (!soft && node->kind == Kind::filter && find_jinja_filter(node->text) == nullptr) {
        throw JinjaSyntaxFault{"unknown filter '" + node->text + "'", node->line};
    }
    if (!soft && node->kind == Kind::test && find_jinja_test(node->text) == nullptr) {
        throw JinjaSyntaxFault{"unknown test '" + node->text + "'", node->line};
    }
    const bool inside = soft || node->kind == Kind::conditional;
    for_each_child(*node, [&](const Expression& child) { check_expression(&child, inside); });
}

void check_body(const Body& body, bool soft) {
    for (const Statement& statement : body) {
        const bool is_if = statement.kind == Statement::Kind::if_else;
        check_expression(statement.expression.get(), soft || is_if);
        check_expression(statement.condition.get(), false);
        for (const auto& [target, value] : statement.assignments)
            check_expression(value.get(), soft);
        if (statement.macro) {
            for (const ExpressionPtr& value : statement.macro->defaults) {
                check_expression(value.get(), false);
            }
        }
        check_body(statement.body, is_if);
        check_body(statement.alternative, is_if);
    }
}

// --- the special names of macros ---

/// Finds which of some names a body reads before it assigns them, in the order of Jinja's tree.
class SpecialNames {
  public:
    explicit SpecialNames(std::set<std::string> names) : names_(std::move(names)) {}

    void visit_body(const Body& body) {
        for (const Statement& statement : body) visit(statement);
    }

    bool found(const std::string& name) const { return found_.count(name) > 0; }

  private:
    void visit(const Statement& statement) {
        const bool filter_last = statement.kind == Statement::Kind::filter_block;
        assign(statement.target.get());
        for (const auto& [target, value] : statement.assignments) assign(target.get());
        for (const auto& [target, value] : statement.assignments) read(value.get());
        if (!filter_last) read(statement.expression.get());
        if (statement.macro) visit_signature(*statement.macro);
        visit_body(statement.body);
        visit_body(statement.alternative);
        read(statement.condition.get());
        if (filter_last) read(statement.expression.get());
    }

    void visit_signature(const JinjaMacroSyntax& macro) {
        for (const std::string& parameter : macro.parameters) names_.erase(parameter);
        for (const ExpressionPtr& value : macro.defaults) read(value.get());
    }

    void read(const Expression* node) {
        if (node == nullptr) return;
        if (node->kind == Kind::name && names_.count(node->text) > 0) found_.insert(node->text);
        for_each_child(*node, [&](const Expression& child) { read(&child); });
    }

    void assign(const Expression* target) {
        if (target == nullptr) return;
        if (target->kind == Kind::name) names_.erase(target->text);
        for_each_child(*target, [&](const Expression& child) { assign(&child); });
    }

    std::set<std::string> names_;
    std::set<std::string> found_;
};

// --- names of scopes ---

/// The names of one scope as idtracking.Symbols has them.
struct Scope {
    const Scope* parent = nullptr;
    std::set<std::string> known;  ///< read or assigned here
    std::set<std::string> assigned;
    std::set<std::string> unset;  ///< undefined from the scope's start

    bool is_known(const std::string& name) const {
        return known.count(name) > 0 || (parent != nullptr && parent->is_known(name));
    }

    void read(const std::string& name) {
        if (!is_known(name)) known.insert(name);
    }

    void assign(const std::string& name) {
        assigned.insert(name);
        if (known.count(name) > 0) return;
        if (!is_known(name)) unset.insert(name);
        known.insert(name);
    }

    void declare(const std::string& name) {
        assigned.insert(name);
        known.insert(name);
    }
};

void read_names(Scope& scope, const Expression* node) {
    if (node == nullptr) return;
    if (node->kind == Kind::name || node->kind == Kind::namespace_attribute) scope.read(node->text);
    for_each_child(*node, [&](const Expression& child) { read_names(scope, &child); });
}

void assign_names(Scope& scope, const Expression* target) {
    if (target == nullptr) return;
    if (target->kind == Kind::name) scope.assign(target->text);
    if (target->kind == Kind::namespace_attribute) scope.read(target->text);
    for_each_child(*target, [&](const Expression& child) { assign_names(scope, &child); });
}

void declare_names(Scope& scope, const Expression* target) {
    if (target == nullptr) return;
    if (target->kind == Kind::name) scope.declare(target->text);
    for_each_child(*target, [&](const Expression& child) { declare_names(scope, &child); });
}

void collect_names(Scope& scope, const Body& body);

/// What an if assigns in a branch may or may not be assigned behind it: such names are known from
/// then on, and never unset.
void collect_branches(Scope& scope, const Statement& statement) {
    Scope merged = scope;
    for (const Body* branch_body : {&statement.body, &statement.alternative}) {
        Scope branch = scope;
        collect_names(branch, *branch_body);
        merged.known.insert(branch.known.begin(), branch.known.end());
        merged.assigned.insert(branch.assigned.begin(), branch.assigned.end());
    }
    scope = merged;
}

/// The names that a body reads and assigns in its own scope; inner scopes are not entered.
void collect_names(Scope& scope, const Body& body) {
    for (const Statement& statement : body) {
        switch (statement.kind) {
            case Statement::Kind::set:
                read_names(scope, statement.expression.get());
                assign_names(scope, statement.target.get());
                break;
            case Statement::Kind::set_block:
                assign_names(scope, statement.target.get());
                break;
            case Statement::Kind::if_else:
                read_names(scope, statement.expression.get());
                collect_branches(scope, statement);
                break;
            case Statement::Kind::macro:
                scope.assign(statement.macro->name);
                break;
            case Statement::Kind::with:
                for (const auto& [target, value] : statement.assignments) {
                    read_names(scope, value.get());
                }
                break;
            default:
                read_names(scope, statement.expression.get());
        }
    }
}

std::vector<std::string> to_vector(const std::set<std::string>& names) {
    return {names.begin(), names.end()};
}

void analyze_inner_scopes(const Scope& scope, Body& body);

/// The scope of `body`, begun in `scope` with what its statement declares; returns the unset names.
std::vector<std::string> analyze_scope(Scope scope, Body& body) {
    collect_names(scope, body);
    analyze_inner_scopes(scope, body);
    return to_vector(scope.unset);
}

void declare_macro(Scope& scope, Statement& statement) {
    JinjaMacroSyntax& macro = *statement.macro;
    SpecialNames special({"caller", "kwargs", "varargs"});
    special.visit_body(statement.body);
    const auto takes = [&](const std::string& name) {
        const bool is_parameter = std::find(macro.parameters.begin(), macro.parameters.end(),
                                            name) != macro.parameters.end();
        if (special.found(name)) scope.declare(name);
        return special.found(name) && !is_parameter;
    };
    macro.uses_caller = takes("caller");
    macro.uses_kwargs = takes("kwargs");
    macro.uses_varargs = takes("varargs");
    for (const std::string& parameter : macro.parameters) scope.declare(parameter);
    for (const ExpressionPtr& value : macro.defaults) read_names(scope, value.get());
}

void analyze_inner_scopes(const Scope& scope, Body& body) {
    for (Statement& statement : body) {
        if (statement.kind == Statement::Kind::if_else) {
            analyze_inner_scopes(scope, statement.body);
            analyze_inner_scopes(scope, statement.alternative);
            continue;
        }
        Scope inner;
        inner.parent = &scope;
        if (statement.kind == Statement::Kind::for_loop) {
            inner.declare("loop");
            declare_names(inner, statement.target.get());
            Scope otherwise;
            otherwise.parent = &scope;
            statement.alternative_unset = analyze_scope(otherwise, statement.alternative);
        }
        if (statement.macro) declare_macro(inner, statement);
        for (const auto& [target, value] : statement.assignments)
            declare_names(inner, target.get());
        statement.body_unset = analyze_scope(inner, statement.body);
    }
}

}  // namespace

void analyze_jinja_template(JinjaTemplate& tree) {
    check_body(tree.body, false);
    tree.unset = analyze_scope(Scope(), tree.body);
}

}  // namespace mllama
