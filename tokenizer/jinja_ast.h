// The syntax tree of a Jinja template, as the parser makes it and the runtime walks it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/jinja_value.h"

namespace mllama {

struct JinjaExpression;
using JinjaExpressionPtr = std::unique_ptr<JinjaExpression>;

/// (a, b, name=c, *d, **e)
struct JinjaCallSyntax {
    std::vector<JinjaExpressionPtr> positional;
    std::vector<std::pair<std::string, JinjaExpressionPtr>> named;
    JinjaExpressionPtr more_positional;  ///< null if absent
    JinjaExpressionPtr more_named;
};

struct JinjaExpression {
    enum class Kind {
        constant,   ///< constant
        name,       ///< text
        list,       ///< [operands]
        tuple,      ///< (operands)
        dict,       ///< {operands[0]: operands[1], operands[2]: ...}
        attribute,  ///< operands[0].text
        item,       ///< operands[0][operands[1]]
        slice,   ///< operands[0][operands[1]:operands[2]:operands[3]], the last three may be null
        call,    ///< operands[0](call)
        filter,  ///< operands[0] | text(call); operands[0] null: the text of the block
        test,    ///< operands[0] is text(call)
        negate,  ///< -operands[0]
        plus,    ///< +operands[0]
        logical_not,
        logical_and,
        logical_or,
        binary,   ///< operands[0] text operands[1]; text is + - * / // % **
        concat,   ///< operands[0] ~ operands[1] ~ ...
        compare,  ///< operands[0] operators[0] operands[1] operators[1] ..., chained as in Python
        conditional,          ///< operands[1] if operands[0] else operands[2], which may be null
        namespace_attribute,  ///< text.attribute as the target of a set
    };

    Kind kind = Kind::constant;
    int line = 0;
    int depth = 1;  ///< of the tree below, bounded by the parser
    std::string text;
    std::string attribute;
    JinjaValue constant;
    std::vector<JinjaExpressionPtr> operands;
    std::vector<std::string> operators;
    JinjaCallSyntax call;
};

struct JinjaStatement;
using JinjaBody = std::vector<JinjaStatement>;

/// What {% macro name(a, b=1) %} and {% call(a) f() %} declare.
struct JinjaMacroSyntax {
    std::string name;
    std::vector<std::string> parameters;
    std::vector<JinjaExpressionPtr> defaults;  ///< of the last parameters
    // Which of the special names the body uses; a macro takes surplus arguments only then.
    bool uses_varargs = false;
    bool uses_kwargs = false;
    bool uses_caller = false;
};

struct JinjaStatement {
    enum class Kind {
        text,        ///< text
        output,      ///< {{ expression }}
        set,         ///< {% set target = expression %}
        set_block,   ///< {% set target | filter %} body; expression is the filter chain or null
        if_else,     ///< {% if expression %} body {% else %} alternative; elif nests in alternative
        for_loop,    ///< {% for target in expression if condition [recursive] %} body, alternative
        macro,       ///< macro, body
        call_block,  ///< {% call(macro) expression %} body
        filter_block,  ///< expression is the filter chain, body
        with,          ///< targets = values, body
        scope,         ///< {% generation %}: a body with its own scope
        break_loop,
        continue_loop,
    };

    Kind kind = Kind::text;
    int line = 0;
    std::string text;
    JinjaExpressionPtr target;
    JinjaExpressionPtr expression;
    JinjaExpressionPtr condition;
    bool recursive = false;
    JinjaBody body;
    JinjaBody alternative;
    std::shared_ptr<JinjaMacroSyntax> macro;
    std::vector<std::pair<JinjaExpressionPtr, JinjaExpressionPtr>> assignments;  ///< of with
    /// Names that count as undefined when the scope of `body` (of `alternative`) begins, whatever
    /// is around it: see JinjaTemplate::unset.
    std::vector<std::string> body_unset;
    std::vector<std::string> alternative_unset;
};

struct JinjaTemplate {
    std::string name;  ///< of the file, for errors
    JinjaBody body;
    /// Names that the template's own scope assigns before it reads them. Jinja compiles a scope's
    /// names to Python variables, so such a name hides a variable of the render from the start.
    std::vector<std::string> unset;
};

}  // namespace mllama
