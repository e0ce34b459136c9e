#include "tokenizer/jinja_expression_parser.h"

#include <algorithm>
#include <utility>

namespace mllama {
namespace {

using Token = JinjaToken;
using TokenKind = JinjaTokenKind;
using Expression = JinjaExpression;
using ExpressionPtr = JinjaExpressionPtr;
using Kind = JinjaExpression::Kind;

/// A chain such as a + b + c becomes a deep tree without nested text, so depth is checked here.
void grow(Expression& node, const ExpressionPtr& child) {
    if (!child) return;
    node.depth = std::max(node.depth, child->depth + 1);
    if (node.depth > JinjaLimits::tree_depth) {
        JinjaCursor::fail_at(node.line, "an expression of more than " +
                                            std::to_string(JinjaLimits::tree_depth) + " steps");
    }
}

void add_operand(Expression& node, ExpressionPtr operand) {
    grow(node, operand);
    node.operands.push_back(std::move(operand));
}

template <class... Operands>
ExpressionPtr make(Kind kind, int line, Operands... operands) {
    auto node = std::make_unique<Expression>();
    node->kind = kind;
    node->line = line;
    (add_operand(*node, std::move(operands)), ...);
    return node;
}

ExpressionPtr make_constant(JinjaValue value, int line) {
    ExpressionPtr node = make(Kind::constant, line);
    node->constant = std::move(value);
    return node;
}

}  // namespace

bool JinjaExpressionParser::at_tuple_end(std::string_view end_name) const {
    return current().kind == TokenKind::variable_end || current().kind == TokenKind::block_end ||
           at_symbol(")") || (!end_name.empty() && at_name(end_name));
}

ExpressionPtr JinjaExpressionParser::parse_tuple(bool with_conditional, std::string_view end_name,
                                                 bool in_parentheses) {
    const int line = current().line;
    std::vector<ExpressionPtr> parts;
    bool is_tuple = false;
    while (true) {
        if (!parts.empty()) expect_symbol(",");
        if (at_tuple_end(end_name)) break;
        parts.push_back(with_conditional ? parse_expression() : parse_or());
        if (!at_symbol(",")) break;
        is_tuple = true;
    }
    if (!is_tuple && !parts.empty()) return std::move(parts[0]);
    if (!is_tuple && !in_parentheses) fail_expected("an expression");
    ExpressionPtr tuple = make(Kind::tuple, line);
    for (ExpressionPtr& part : parts) add_operand(*tuple, std::move(part));
    return tuple;
}

ExpressionPtr JinjaExpressionParser::parse_expression() {
    const Nesting nesting(*this);
    const int line = current().line;
    ExpressionPtr value = parse_or();
    while (skip_name("if")) {
        ExpressionPtr condition = parse_or();
        ExpressionPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
        value = make(Kind::conditional, line, std::move(condition), std::move(value),
                     std::move(otherwise));
    }
    return value;
}

ExpressionPtr JinjaExpressionParser::parse_or() {
    ExpressionPtr left = parse_and();
    while (at_name("or")) {
        const int line = take().line;
        left = make(Kind::logical_or, line, std::move(left), parse_and());
    }
    return left;
}

ExpressionPtr JinjaExpressionParser::parse_and() {
    ExpressionPtr left = parse_not();
    while (at_name("and")) {
        const int line = take().line;
        left = make(Kind::logical_and, line, std::move(left), parse_not());
    }
    return left;
}

ExpressionPtr JinjaExpressionParser::parse_not() {
    if (!at_name("not")) return parse_compare();
    const Nesting nesting(*this);
    const int line = take().line;
    return make(Kind::logical_not, line, parse_not());
}

/// a < b <= c, a in b, a not in b
ExpressionPtr JinjaExpressionParser::parse_compare() {
    ExpressionPtr compare = make(Kind::compare, current().line, parse_sum());
    while (true) {
        if (at_any_symbol({"==", "!=", "<", "<=", ">", ">="})) {
            compare->operators.push_back(take().text);
        } else if (skip_name("in")) {
            compare->operators.emplace_back("in");
        } else if (at_name("not") && is_name(following(), "in")) {
            take();
            take();
            compare->operators.emplace_back("not in");
        } else {
            break;
        }
        add_operand(*compare, parse_sum());
    }
    return compare->operators.empty() ? std::move(compare->operands[0]) : std::move(compare);
}

/// Left-associative operators of one strength.
ExpressionPtr JinjaExpressionParser::parse_binary(
    Names symbols, ExpressionPtr (JinjaExpressionParser::*operand)()) {
    ExpressionPtr left = (this->*operand)();
    while (at_any_symbol(symbols)) {
        const Token symbol = take();
        left = make(Kind::binary, symbol.line, std::move(left), (this->*operand)());
        left->text = symbol.text;
    }
    return left;
}

ExpressionPtr JinjaExpressionParser::parse_sum() {
    return parse_binary({"+", "-"}, &JinjaExpressionParser::parse_concat);
}

ExpressionPtr JinjaExpressionParser::parse_concat() {
    ExpressionPtr concat = make(Kind::concat, current().line, parse_product());
    while (skip_symbol("~")) add_operand(*concat, parse_product());
    return concat->operands.size() == 1 ? std::move(concat->operands[0]) : std::move(concat);
}

ExpressionPtr JinjaExpressionParser::parse_product() {
    return parse_binary({"*", "/", "//", "%"}, &JinjaExpressionParser::parse_power);
}

// In Jinja a power binds to the left and a sign binds more strongly: -1 ** 2 is 1.
ExpressionPtr JinjaExpressionParser::parse_power() {
    return parse_binary({"**"}, &JinjaExpressionParser::parse_filtered_unary);
}

ExpressionPtr JinjaExpressionParser::parse_filtered_unary() {
    return parse_unary(true);
}

ExpressionPtr JinjaExpressionParser::parse_unary(bool with_filters) {
    const Nesting nesting(*this);
    ExpressionPtr node;
    if (at_any_symbol({"-", "+"})) {
        const Token sign = take();
        node = make(sign.text == "-" ? Kind::negate : Kind::plus, sign.line, parse_unary(false));
    } else {
        node = parse_primary(false);
    }
    node = parse_postfix(std::move(node));
    return with_filters ? parse_filters_and_tests(std::move(node)) : std::move(node);
}

ExpressionPtr JinjaExpressionParser::parse_primary(bool with_namespace) {
    const Token token = take();
    switch (token.kind) {
        case TokenKind::name:
            return parse_name(token, with_namespace);
        case TokenKind::string: {
            std::string text = token.text;
            while (current().kind == TokenKind::string) text += take().text;
            return make_constant(JinjaValue(std::move(text)), token.line);
        }
        case TokenKind::integer:
            return make_constant(JinjaValue(token.integer), token.line);
        case TokenKind::real:
            return make_constant(JinjaValue(token.real), token.line);
        default:
            break;
    }
    const Nesting nesting(*this);
    if (is_symbol(token, "(")) {
        ExpressionPtr inside = parse_tuple(true, "", true);
        expect_symbol(")");
        return inside;
    }
    if (is_symbol(token, "[")) return parse_list(token.line);
    if (is_symbol(token, "{")) return parse_dict(token.line);
    fail_at(token.line, "expected an expression, found " + describe(token));
}

ExpressionPtr JinjaExpressionParser::parse_name(const Token& token, bool with_namespace) {
    const std::string& name = token.text;
    if (name == "true" || name == "True") return make_constant(JinjaValue(true), token.line);
    if (name == "false" || name == "False") return make_constant(JinjaValue(false), token.line);
    if (name == "none" || name == "None") return make_constant(JinjaValue(), token.line);
    const bool dotted = with_namespace && skip_symbol(".");
    ExpressionPtr node = make(dotted ? Kind::namespace_attribute : Kind::name, token.line);
    node->text = name;
    if (dotted) node->attribute = expect_any_name();
    return node;
}

ExpressionPtr JinjaExpressionParser::parse_list(int line) {
    ExpressionPtr list = make(Kind::list, line);
    while (!at_symbol("]")) {
        if (!list->operands.empty()) expect_symbol(",");
        if (at_symbol("]")) break;
        add_operand(*list, parse_expression());
    }
    expect_symbol("]");
    return list;
}

ExpressionPtr JinjaExpressionParser::parse_dict(int line) {
    ExpressionPtr dict = make(Kind::dict, line);
    while (!at_symbol("}")) {
        if (!dict->operands.empty()) expect_symbol(",");
        if (at_symbol("}")) break;
        add_operand(*dict, parse_expression());
        expect_symbol(":");
        add_operand(*dict, parse_expression());
    }
    expect_symbol("}");
    return dict;
}

/// .name, [item] and (call) behind a value.
ExpressionPtr JinjaExpressionParser::parse_postfix(ExpressionPtr node) {
    while (true) {
        const int line = current().line;
        if (skip_symbol(".")) {
            node = parse_attribute(std::move(node), line);
        } else if (skip_symbol("[")) {
            node = parse_item(std::move(node), line);
        } else if (at_symbol("(")) {
            node = parse_call(std::move(node));
        } else {
            return node;
        }
    }
}

ExpressionPtr JinjaExpressionParser::parse_attribute(ExpressionPtr node, int line) {
    const Token token = take();
    if (token.kind == TokenKind::integer) {
        return make(Kind::item, line, std::move(node),
                    make_constant(JinjaValue(token.integer), token.line));
    }
    if (token.kind != TokenKind::name) {
        fail_at(token.line, "expected a name or a number behind '.', found " + describe(token));
    }
    ExpressionPtr attribute = make(Kind::attribute, line, std::move(node));
    attribute->text = token.text;
    return attribute;
}

ExpressionPtr JinjaExpressionParser::parse_item(ExpressionPtr node, int line) {
    std::vector<ExpressionPtr> parts;
    while (!at_symbol("]")) {
        if (!parts.empty()) expect_symbol(",");
        parts.push_back(parse_subscript());
    }
    expect_symbol("]");
    if (parts.size() == 1 && parts[0]->kind == Kind::slice) {
        ExpressionPtr slice = make(Kind::slice, line, std::move(node));
        for (ExpressionPtr& bound : parts[0]->operands) add_operand(*slice, std::move(bound));
        return slice;
    }
    ExpressionPtr index;
    if (parts.size() == 1) {
        index = std::move(parts[0]);
    } else {
        index = make(Kind::tuple, line);
        for (ExpressionPtr& part : parts) {
            if (part->kind == Kind::slice && part->text == "bounds") {
                fail_at(line, "a slice among several indices is not supported");
            }
            add_operand(*index, std::move(part));
        }
    }
    return make(Kind::item, line, std::move(node), std::move(index));
}

/// An index, or start:stop:step as a slice node whose operands are the three bounds.
ExpressionPtr JinjaExpressionParser::parse_subscript() {
    const int line = current().line;
    ExpressionPtr start = at_symbol(":") ? nullptr : parse_expression();
    if (!at_symbol(":")) return start;
    take();
    const auto bound = [&]() -> ExpressionPtr {
        return at_any_symbol({":", "]", ","}) ? nullptr : parse_expression();
    };
    ExpressionPtr stop = bound();
    ExpressionPtr step = skip_symbol(":") ? bound() : nullptr;
    ExpressionPtr slice =
        make(Kind::slice, line, std::move(start), std::move(stop), std::move(step));
    slice->text = "bounds";
    return slice;
}

ExpressionPtr JinjaExpressionParser::parse_call(ExpressionPtr function) {
    ExpressionPtr call = make(Kind::call, current().line, std::move(function));
    parse_call_arguments(*call);
    return call;
}

void JinjaExpressionParser::parse_call_arguments(Expression& node) {
    const Nesting nesting(*this);
    JinjaCallSyntax& call = node.call;
    const int line = current().line;
    const auto ensure = [&](bool valid) {
        if (!valid) fail_at(line, "the arguments of the call are in the wrong order");
    };
    expect_symbol("(");
    for (bool first = true; !at_symbol(")"); first = false) {
        if (!first) expect_symbol(",");
        if (at_symbol(")")) break;
        if (skip_symbol("*")) {
            ensure(!call.more_positional && !call.more_named);
            grow(node, call.more_positional = parse_expression());
        } else if (skip_symbol("**")) {
            ensure(!call.more_named);
            grow(node, call.more_named = parse_expression());
        } else if (current().kind == TokenKind::name && is_symbol(following(), "=")) {
            ensure(!call.more_named);
            const std::string name = take().text;
            take();
            call.named.emplace_back(name, parse_expression());
            grow(node, call.named.back().second);
        } else {
            ensure(!call.more_positional && !call.more_named && call.named.empty());
            call.positional.push_back(parse_expression());
            grow(node, call.positional.back());
        }
    }
    expect_symbol(")");
}

ExpressionPtr JinjaExpressionParser::parse_filters_and_tests(ExpressionPtr node) {
    while (true) {
        if (at_symbol("|")) {
            node = parse_filters(std::move(node));
        } else if (at_name("is")) {
            node = parse_test(std::move(node));
        } else if (at_symbol("(")) {
            node = parse_call(std::move(node));
        } else {
            return node;
        }
    }
}

ExpressionPtr JinjaExpressionParser::parse_filters(ExpressionPtr node) {
    while (skip_symbol("|")) node = parse_one_filter(std::move(node));
    return node;
}

/// A name, perhaps with dots.
std::string JinjaExpressionParser::parse_dotted_name() {
    std::string name = expect_any_name();
    while (skip_symbol(".")) name += "." + expect_any_name();
    return name;
}

ExpressionPtr JinjaExpressionParser::parse_one_filter(ExpressionPtr node) {
    ExpressionPtr filter = make(Kind::filter, current().line, std::move(node));
    filter->text = parse_dotted_name();
    if (at_symbol("(")) parse_call_arguments(*filter);
    return filter;
}

ExpressionPtr JinjaExpressionParser::parse_test(ExpressionPtr node) {
    const int line = take().line;
    const bool negated = skip_name("not");
    ExpressionPtr test = make(Kind::test, line, std::move(node));
    test->text = parse_dotted_name();
    if (at_symbol("(")) {
        parse_call_arguments(*test);
    } else if (at_bare_test_argument()) {
        if (at_name("is")) fail_at(line, "tests cannot be chained with 'is'");
        test->call.positional.push_back(parse_postfix(parse_primary(false)));
        grow(*test, test->call.positional.back());
    }
    return negated ? make(Kind::logical_not, line, std::move(test)) : std::move(test);
}

/// x is divisibleby 3
bool JinjaExpressionParser::at_bare_test_argument() const {
    switch (current().kind) {
        case TokenKind::name:
            return !at_name("else") && !at_name("or") && !at_name("and");
        case TokenKind::string:
        case TokenKind::integer:
        case TokenKind::real:
            return true;
        default:
            return at_any_symbol({"[", "{"});
    }
}

ExpressionPtr JinjaExpressionParser::parse_target(std::string_view end_name, bool with_namespace) {
    const int line = current().line;
    std::vector<ExpressionPtr> parts;
    bool is_tuple = false;
    while (true) {
        if (!parts.empty()) expect_symbol(",");
        if (at_tuple_end(end_name)) break;
        parts.push_back(parse_primary(with_namespace));
        check_target(*parts.back());
        if (!at_symbol(",")) break;
        is_tuple = true;
    }
    if (!is_tuple && parts.empty()) fail_expected("a name to assign to");
    if (!is_tuple) return std::move(parts[0]);
    ExpressionPtr tuple = make(Kind::tuple, line);
    for (ExpressionPtr& part : parts) add_operand(*tuple, std::move(part));
    return tuple;
}

void JinjaExpressionParser::check_target(const Expression& target) {
    if (target.kind == Kind::name || target.kind == Kind::namespace_attribute) return;
    if (target.kind != Kind::tuple) fail_at(target.line, "cannot assign to an expression");
    for (const ExpressionPtr& part : target.operands) check_target(*part);
}

}  // namespace mllama
