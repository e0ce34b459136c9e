// Parses the expressions of a Jinja template: recursive descent, one function a rule, in the order of
// binding strength. All errors are JinjaSyntaxFault.
#pragma once

#include <string>
#include <string_view>

#include "tokenizer/jinja_ast.h"
#include "tokenizer/jinja_cursor.h"

namespace mllama {

class JinjaExpressionParser : public JinjaCursor {
  public:
    using JinjaCursor::JinjaCursor;

    /// a if b else c
    JinjaExpressionPtr parse_expression();
    /// One expression, or a tuple without brackets, up to the end of the tag or the name `end_name`.
    JinjaExpressionPtr parse_tuple(bool with_conditional = true, std::string_view end_name = "",
                                   bool in_parentheses = false);
    /// What can be assigned to: a name, a tuple of such, where `with_namespace` also ns.name.
    JinjaExpressionPtr parse_target(std::string_view end_name, bool with_namespace);
    /// | filters behind a node; null stands for the text of a block.
    JinjaExpressionPtr parse_filters(JinjaExpressionPtr node);
    /// The name and arguments of a filter, its | already taken.
    JinjaExpressionPtr parse_one_filter(JinjaExpressionPtr node);

  private:
    bool at_tuple_end(std::string_view end_name = "") const;
    JinjaExpressionPtr parse_or();
    JinjaExpressionPtr parse_and();
    JinjaExpressionPtr parse_not();
    JinjaExpressionPtr parse_compare();
    JinjaExpressionPtr parse_binary(Names symbols,
                                    JinjaExpressionPtr (JinjaExpressionParser::*operand)());
    JinjaExpressionPtr parse_sum();
    JinjaExpressionPtr parse_concat();
    JinjaExpressionPtr parse_product();
    JinjaExpressionPtr parse_power();
    JinjaExpressionPtr parse_filtered_unary();
    JinjaExpressionPtr parse_unary(bool with_filters);
    JinjaExpressionPtr parse_primary(bool with_namespace);
    JinjaExpressionPtr parse_name(const JinjaToken& token, bool with_namespace);
    JinjaExpressionPtr parse_list(int line);
    JinjaExpressionPtr parse_dict(int line);
    JinjaExpressionPtr parse_postfix(JinjaExpressionPtr node);
    JinjaExpressionPtr parse_attribute(JinjaExpressionPtr node, int line);
    JinjaExpressionPtr parse_item(JinjaExpressionPtr node, int line);
    JinjaExpressionPtr parse_subscript();
    JinjaExpressionPtr parse_call(JinjaExpressionPtr function);
    void parse_call_arguments(JinjaExpression& node);
    JinjaExpressionPtr parse_filters_and_tests(JinjaExpressionPtr node);
    std::string parse_dotted_name();
    JinjaExpressionPtr parse_test(JinjaExpressionPtr node);
    bool at_bare_test_argument() const;
    static void check_target(const JinjaExpression& target);
};

}  // namespace mllama
