// Runs a Jinja template: the variables of one render, and the meaning of its statements and
// operators.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tokenizer/jinja_ast.h"
#include "tokenizer/jinja_value.h"

namespace mllama {

class JinjaNamespace;

/// The variables of a block, and the scope around it.
struct JinjaScope {
    std::shared_ptr<JinjaScope> parent;
    std::unordered_map<std::string, JinjaValue> variables;
};

class JinjaRuntime {
  public:
    /// `variables` hide functions of the same name. `now`: see jinja_functions.
    JinjaRuntime(const JinjaTemplate& tree, std::unordered_map<std::string, JinjaValue> variables,
                 std::optional<std::time_t> now);
    ~JinjaRuntime();
    JinjaRuntime(const JinjaRuntime&) = delete;
    JinjaRuntime& operator=(const JinjaRuntime&) = delete;

    /// The text. Errors: Error "name line L: what", whatever goes wrong in the template, including
    /// raise_exception and the limits of JinjaLimits.
    std::string render();

    // --- for the builtins; what goes wrong is a JinjaFault ---

    JinjaValue attribute(const JinjaValue& object, const std::string& name);  ///< object.name
    JinjaValue item(const JinjaValue& object, const JinjaValue& key);         ///< object[key]
    JinjaValue call(const JinjaValue& function, JinjaArguments arguments);
    JinjaValue apply_filter(const std::string& name, const JinjaValue& input,
                            const JinjaArguments& arguments);
    bool apply_test(const std::string& name, const JinjaValue& input,
                    const JinjaArguments& arguments);
    /// list(value), counted as work. Errors: it cannot be iterated.
    std::vector<JinjaValue> iterate(const JinjaValue& value);
    /// needle in haystack
    bool contains(const JinjaValue& haystack, const JinjaValue& needle);
    /// left + right
    JinjaValue add(const JinjaValue& left, const JinjaValue& right);

    /// Counts work. Errors: more than a template may do.
    void charge(int64_t steps);
    /// Namespaces live until the end of the render.
    void keep(std::shared_ptr<JinjaNamespace> made);

    // --- for macros and loops ---

    using ScopePtr = std::shared_ptr<JinjaScope>;
    JinjaValue call_macro(const JinjaMacroSyntax& macro, const JinjaBody& body,
                          const std::vector<std::string>& unset, const ScopePtr& scope,
                          JinjaArguments arguments);
    JinjaValue call_loop(const JinjaStatement& loop, const ScopePtr& scope, const JinjaValue& items,
                         int64_t depth);

  private:
    enum class Flow { normal, break_loop, continue_loop };

    /// Counts nested evaluations while it lives, so that no template overflows the stack. Errors:
    /// too many.
    class DepthGuard {
      public:
        explicit DepthGuard(JinjaRuntime& runtime);
        ~DepthGuard() { --runtime_.depth_; }
        DepthGuard(const DepthGuard&) = delete;
        DepthGuard& operator=(const DepthGuard&) = delete;

      private:
        JinjaRuntime& runtime_;
    };

    // Statements (jinja_statements.cpp).
    Flow run_body(const JinjaBody& body, const ScopePtr& scope, std::string& out);
    Flow run(const JinjaStatement& statement, const ScopePtr& scope, std::string& out);
    Flow run_set_block(const JinjaStatement& statement, const ScopePtr& scope);
    Flow run_filter_block(const JinjaStatement& statement, const ScopePtr& scope, std::string& out);
    Flow run_with(const JinjaStatement& statement, const ScopePtr& scope, std::string& out);
    Flow run_generation(const JinjaStatement& statement, const ScopePtr& scope, std::string& out);
    void run_call_block(const JinjaStatement& statement, const ScopePtr& scope, std::string& out);
    Flow run_loop(const JinjaStatement& loop, const ScopePtr& scope, const JinjaValue& items,
                  int64_t depth, std::string& out);
    std::vector<JinjaValue> loop_items(const JinjaStatement& loop, const ScopePtr& scope,
                                       const JinjaValue& items);
    JinjaValue make_macro(const JinjaStatement& statement, const ScopePtr& scope);
    ScopePtr inner_scope(const ScopePtr& parent, const std::vector<std::string>& unset);
    void assign(const JinjaExpression& target, const JinjaValue& value, const ScopePtr& scope);
    void write(std::string& out, const std::string& text);

    // Expressions (jinja_runtime.cpp).
    JinjaValue evaluate(const JinjaExpression& node, const ScopePtr& scope);
    JinjaValue evaluate_node(const JinjaExpression& node, const ScopePtr& scope);
    JinjaValue look_up(const std::string& name, const ScopePtr& scope);
    JinjaValue evaluate_slice(const JinjaExpression& node, const ScopePtr& scope);
    JinjaValue evaluate_compare(const JinjaExpression& node, const ScopePtr& scope);
    JinjaValue evaluate_concat(const JinjaExpression& node, const ScopePtr& scope);
    JinjaValue evaluate_call(const JinjaExpression& node, const ScopePtr& scope,
                             const JinjaValue* caller);
    JinjaValue evaluate_filter(const JinjaExpression& node, const ScopePtr& scope,
                               const JinjaValue* block_text);
    std::vector<JinjaValue> evaluate_all(const std::vector<JinjaExpressionPtr>& nodes,
                                         const ScopePtr& scope);
    JinjaArguments evaluate_arguments(const JinjaCallSyntax& call, const ScopePtr& scope);
    JinjaValue binary(const std::string& symbol, const JinjaValue& left, const JinjaValue& right);
    bool compare(const std::string& symbol, const JinjaValue& left, const JinjaValue& right);

    /// Counts what a value made by the render takes.
    JinjaValue count(JinjaValue value);
    void count_bytes(int64_t bytes);

    const JinjaTemplate& tree_;
    std::unordered_map<std::string, JinjaValue> variables_;
    std::unordered_map<std::string, JinjaValue> functions_;
    int line_ = 0;
    int depth_ = 0;
    int64_t steps_ = 0;
    int64_t created_bytes_ = 0;
    std::vector<std::shared_ptr<JinjaNamespace>> namespaces_;
    std::vector<ScopePtr> macro_scopes_;  ///< a scope and the macros in it own each other
};

}  // namespace mllama
