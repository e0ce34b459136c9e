// The recursive descent parser of Jinja: one function a rule, in the order of binding strength.
#include "tokenizer/jinja_parser.h"

#include <algorithm>
#include <initializer_list>
#include <unordered_map>

#include "kernels/error.h"
#include "tokenizer/jinja_analysis.h"
#include "tokenizer/jinja_lexer.h"
#include "tokenizer/python_text.h"

namespace mllama {
namespace {

using Token = JinjaToken;
using TokenKind = JinjaTokenKind;
using Expression = JinjaExpression;
using ExpressionPtr = JinjaExpressionPtr;
using Kind = JinjaExpression::Kind;
using Statement = JinjaStatement;
using Body = JinjaBody;

std::string describe(const Token& token) {
    switch (token.kind) {
        case TokenKind::data:
            return "text";
        case TokenKind::variable_begin:
            return "'{{'";
        case TokenKind::variable_end:
            return "'}}'";
        case TokenKind::block_begin:
            return "'{%'";
        case TokenKind::block_end:
            return "'%}'";
        case TokenKind::string:
            return "the string " + python_repr(token.text);
        case TokenKind::end:
            return "the end of the template";
        default:
            return "'" + token.text + "'";
    }
}

class Parser {
  public:
    explicit Parser(std::string_view source) : tokens_(jinja_tokenize(source)) {}

    Body run() { return parse_body({}); }

  private:
    using Names = std::initializer_list<std::string_view>;

    // --- tokens ---

    const Token& current() const { return tokens_[position_]; }

    const Token& following() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }

    Token take() {
        Token token = current();
        if (token.kind != TokenKind::end) ++position_;
        return token;
    }

    static bool is_symbol(const Token& token, std::string_view text) {
        return token.kind == TokenKind::symbol && token.text == text;
    }

    static bool is_name(const Token& token, std::string_view text) {
        return token.kind == TokenKind::name && token.text == text;
    }

    bool at_symbol(std::string_view text) const { return is_symbol(current(), text); }
    bool at_name(std::string_view text) const { return is_name(current(), text); }

    bool at_any_symbol(Names symbols) const {
        return std::any_of(symbols.begin(), symbols.end(),
                           [&](std::string_view symbol) { return at_symbol(symbol); });
    }

    bool skip_symbol(std::string_view text) {
        const bool there = at_symbol(text);
        if (there) take();
        return there;
    }

    bool skip_name(std::string_view text) {
        const bool there = at_name(text);
        if (there) take();
        return there;
    }

    [[noreturn]] static void fail_at(int line, const std::string& message) {
        throw JinjaSyntaxFault{message, line};
    }

    [[noreturn]] void fail_expected(const std::string& what) const {
        fail_at(current().line, "expected " + what + ", found " + describe(current()));
    }

    void expect_symbol(std::string_view text) {
        if (!skip_symbol(text)) fail_expected("'" + std::string(text) + "'");
    }

    void expect_name(std::string_view text) {
        if (!skip_name(text)) fail_expected("'" + std::string(text) + "'");
    }

    std::string expect_any_name() {
        if (current().kind != TokenKind::name) fail_expected("a name");
        return take().text;
    }

    void expect(TokenKind kind, const std::string& what) {
        if (current().kind != kind) fail_expected(what);
        take();
    }

    /// Counts the nesting of the text while it lives.
    class Nesting {
      public:
        explicit Nesting(Parser& parser) : parser_(parser) {
            if (++parser_.nesting_ > JinjaLimits::parse_depth) {
                fail_at(parser_.current().line,
                        "nested more than " + std::to_string(JinjaLimits::parse_depth) + " deep");
            }
        }
        ~Nesting() { --parser_.nesting_; }
        Nesting(const Nesting&) = delete;
        Nesting& operator=(const Nesting&) = delete;

      private:
        Parser& parser_;
    };

    /// Says whether break and continue have a loop while it lives.
    class LoopContext {
      public:
        LoopContext(Parser& parser, bool inside) : parser_(parser), before_(parser.in_loop_) {
            parser.in_loop_ = inside;
        }
        ~LoopContext() { parser_.in_loop_ = before_; }
        LoopContext(const LoopContext&) = delete;
        LoopContext& operator=(const LoopContext&) = delete;

      private:
        Parser& parser_;
        bool before_;
    };

    // --- nodes ---

    template <class... Operands>
    static ExpressionPtr make(Kind kind, int line, Operands... operands) {
        auto node = std::make_unique<Expression>();
        node->kind = kind;
        node->line = line;
        (add_operand(*node, std::move(operands)), ...);
        return node;
    }

    static void add_operand(Expression& node, ExpressionPtr operand) {
        grow(node, operand);
        node.operands.push_back(std::move(operand));
    }

    /// A chain such as a + b + c becomes a deep tree without nested text, so depth is checked here.
    static void grow(Expression& node, const ExpressionPtr& child) {
        if (!child) return;
        node.depth = std::max(node.depth, child->depth + 1);
        if (node.depth > JinjaLimits::tree_depth) {
            fail_at(node.line, "an expression of more than " +
                                   std::to_string(JinjaLimits::tree_depth) + " steps");
        }
    }

    static ExpressionPtr make_constant(JinjaValue value, int line) {
        ExpressionPtr node = make(Kind::constant, line);
        node->constant = std::move(value);
        return node;
    }

    static Statement make_statement(Statement::Kind kind, int line) {
        Statement statement;
        statement.kind = kind;
        statement.line = line;
        return statement;
    }

    // --- statements ---

    /// Statements up to one of the tags `ends`, whose name is left as the current token; without
    /// `ends`, up to the end of the template.
    Body parse_body(Names ends) {
        const Nesting nesting(*this);
        const int begin_line = current().line;
        Body body;
        while (current().kind != TokenKind::end) {
            const Token token = take();
            if (token.kind == TokenKind::data) {
                body.push_back(make_statement(Statement::Kind::text, token.line));
                body.back().text = token.text;
            } else if (token.kind == TokenKind::variable_begin) {
                body.push_back(make_statement(Statement::Kind::output, token.line));
                body.back().expression = parse_tuple();
                expect(TokenKind::variable_end, "'}}'");
            } else {
                if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return at_name(end); })) {
                    return body;
                }
                parse_statement(body, ends);
                expect(TokenKind::block_end, "'%}'");
            }
        }
        if (ends.size() > 0) {
            fail_at(current().line, "the template ends where " + expected_tags(ends) +
                                        " is missing for the block that begins in line " +
                                        std::to_string(begin_line));
        }
        return body;
    }

    static std::string expected_tags(Names ends) {
        std::string text;
        for (const std::string_view end : ends) {
            text += (text.empty() ? "'" : " or '") + std::string(end) + "'";
        }
        return text;
    }

    /// The rest of a tag, then a body up to one of `ends`.
    Body parse_block_body(Names ends) {
        skip_symbol(":");
        expect(TokenKind::block_end, "'%}'");
        return parse_body(ends);
    }

    /// A body up to the tag `end`, which is taken.
    Body parse_whole_body(std::string_view end) {
        Body body = parse_block_body({end});
        take();
        return body;
    }

    void parse_statement(Body& body, Names ends) {
        if (current().kind != TokenKind::name) fail_expected("the name of a tag");
        const Token tag = take();
        if (tag.text == "print") return parse_print(body, tag.line);
        static const std::unordered_map<std::string, Statement (Parser::*)(int)> kTags = {
            {"set", &Parser::parse_set},         {"for", &Parser::parse_for},
            {"if", &Parser::parse_if},           {"macro", &Parser::parse_macro},
            {"call", &Parser::parse_call_block}, {"filter", &Parser::parse_filter_block},
            {"with", &Parser::parse_with},       {"generation", &Parser::parse_generation},
            {"break", &Parser::parse_break},     {"continue", &Parser::parse_continue},
        };
        const auto found = kTags.find(tag.text);
        if (found == kTags.end()) {
            const std::string hint = ends.size() > 0 ? ", expected " + expected_tags(ends) : "";
            fail_at(tag.line, "unknown tag '" + tag.text + "'" + hint);
        }
        body.push_back((this->*found->second)(tag.line));
    }

    void parse_print(Body& body, int line) {
        bool first = true;
        while (current().kind != TokenKind::block_end) {
            if (!first) expect_symbol(",");
            first = false;
            body.push_back(make_statement(Statement::Kind::output, line));
            body.back().expression = parse_expression();
        }
    }

    Statement parse_set(int line) {
        ExpressionPtr target = parse_target("", true);
        Statement statement = make_statement(Statement::Kind::set, line);
        if (skip_symbol("=")) {
            statement.expression = parse_tuple();
        } else {
            statement.kind = Statement::Kind::set_block;
            statement.expression = parse_filters(nullptr);
            statement.body = parse_whole_body("endset");
        }
        statement.target = std::move(target);
        return statement;
    }

    Statement parse_for(int line) {
        Statement statement = make_statement(Statement::Kind::for_loop, line);
        statement.target = parse_target("in", false);
        refuse_loop_as_target(*statement.target);
        expect_name("in");
        statement.expression = parse_tuple(false, "recursive");
        if (skip_name("if")) statement.condition = parse_expression();
        statement.recursive = skip_name("recursive");
        {
            const LoopContext inside(*this, true);
            statement.body = parse_block_body({"endfor", "else"});
        }
        if (take().text == "else") statement.alternative = parse_whole_body("endfor");
        return statement;
    }

    static void refuse_loop_as_target(const Expression& target) {
        if (target.kind == Kind::name && target.text == "loop") {
            fail_at(target.line, "can't assign to special loop variable in for-loop target");
        }
        for (const ExpressionPtr& part : target.operands) refuse_loop_as_target(*part);
    }

    Statement parse_if(int line) {
        const Nesting nesting(*this);  // a chain of elif nests in the tree, too
        Statement statement = make_statement(Statement::Kind::if_else, line);
        statement.expression = parse_tuple(false);
        statement.body = parse_block_body({"elif", "else", "endif"});
        const Token tag = take();
        if (tag.text == "elif") {
            statement.alternative.push_back(parse_if(tag.line));
        } else if (tag.text == "else") {
            statement.alternative = parse_whole_body("endif");
        }
        return statement;
    }

    Statement parse_macro(int line) {
        Statement statement = make_statement(Statement::Kind::macro, line);
        statement.macro = std::make_shared<JinjaMacroSyntax>();
        statement.macro->name = expect_any_name();
        parse_signature(*statement.macro);
        parse_macro_body(statement, "endmacro");
        return statement;
    }

    void parse_signature(JinjaMacroSyntax& macro) {
        expect_symbol("(");
        while (!at_symbol(")")) {
            if (!macro.parameters.empty()) expect_symbol(",");
            macro.parameters.push_back(expect_any_name());
            if (skip_symbol("=")) {
                macro.defaults.push_back(parse_expression());
            } else if (!macro.defaults.empty()) {
                fail_expected("'=': a parameter without default follows one with a default");
            }
        }
        expect_symbol(")");
    }

    void parse_macro_body(Statement& statement, std::string_view end) {
        const LoopContext outside(*this, false);
        statement.body = parse_whole_body(end);
    }

    Statement parse_call_block(int line) {
        Statement statement = make_statement(Statement::Kind::call_block, line);
        statement.macro = std::make_shared<JinjaMacroSyntax>();
        if (at_symbol("(")) parse_signature(*statement.macro);
        statement.expression = parse_expression();
        if (statement.expression->kind != Kind::call) {
            fail_at(line, "expected a call in a call block");
        }
        parse_macro_body(statement, "endcall");
        return statement;
    }

    Statement parse_filter_block(int line) {
        Statement statement = make_statement(Statement::Kind::filter_block, line);
        statement.expression = parse_filters(parse_one_filter(nullptr));
        statement.body = parse_whole_body("endfilter");
        return statement;
    }

    Statement parse_with(int line) {
        Statement statement = make_statement(Statement::Kind::with, line);
        while (current().kind != TokenKind::block_end) {
            if (!statement.assignments.empty()) expect_symbol(",");
            ExpressionPtr target = parse_target("", false);
            expect_symbol("=");
            statement.assignments.emplace_back(std::move(target), parse_expression());
        }
        statement.body = parse_whole_body("endwith");
        return statement;
    }

    Statement parse_generation(int line) {
        Statement statement = make_statement(Statement::Kind::scope, line);
        parse_macro_body(statement, "endgeneration");
        return statement;
    }

    Statement parse_break(int line) {
        if (!in_loop_) fail_at(line, "'break' outside a loop");
        return make_statement(Statement::Kind::break_loop, line);
    }

    Statement parse_continue(int line) {
        if (!in_loop_) fail_at(line, "'continue' outside a loop");
        return make_statement(Statement::Kind::continue_loop, line);
    }

    /// What can be assigned to: a name, a tuple of such, where `with_namespace` also ns.name.
    ExpressionPtr parse_target(std::string_view end_name, bool with_namespace) {
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

    static void check_target(const Expression& target) {
        if (target.kind == Kind::name || target.kind == Kind::namespace_attribute) return;
        if (target.kind != Kind::tuple) fail_at(target.line, "cannot assign to an expression");
        for (const ExpressionPtr& part : target.operands) check_target(*part);
    }

    // --- expressions ---

    bool at_tuple_end(std::string_view end_name = "") const {
        return current().kind == TokenKind::variable_end ||
               current().kind == TokenKind::block_end || at_symbol(")") ||
               (!end_name.empty() && at_name(end_name));
    }

    /// One expression, or a tuple without brackets.
    ExpressionPtr parse_tuple(bool with_conditional = true, std::string_view end_name = "",
                              bool in_parentheses = false) {
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

    /// a if b else c
    ExpressionPtr parse_expression() {
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

    ExpressionPtr parse_or() {
        ExpressionPtr left = parse_and();
        while (at_name("or")) {
            const int line = take().line;
            left = make(Kind::logical_or, line, std::move(left), parse_and());
        }
        return left;
    }

    ExpressionPtr parse_and() {
        ExpressionPtr left = parse_not();
        while (at_name("and")) {
            const int line = take().line;
            left = make(Kind::logical_and, line, std::move(left), parse_not());
        }
        return left;
    }

    ExpressionPtr parse_not() {
        if (!at_name("not")) return parse_compare();
        const Nesting nesting(*this);
        const int line = take().line;
        return make(Kind::logical_not, line, parse_not());
    }

    /// a < b <= c, a in b, a not in b
    ExpressionPtr parse_compare() {
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
    ExpressionPtr parse_binary(Names symbols, ExpressionPtr (Parser::*operand)()) {
        ExpressionPtr left = (this->*operand)();
        while (at_any_symbol(symbols)) {
            const Token symbol = take();
            left = make(Kind::binary, symbol.line, std::move(left), (this->*operand)());
            left->text = symbol.text;
        }
        return left;
    }

    ExpressionPtr parse_sum() { return parse_binary({"+", "-"}, &Parser::parse_concat); }

    ExpressionPtr parse_concat() {
        ExpressionPtr concat = make(Kind::concat, current().line, parse_product());
        while (skip_symbol("~")) add_operand(*concat, parse_product());
        return concat->operands.size() == 1 ? std::move(concat->operands[0]) : std::move(concat);
    }

    ExpressionPtr parse_product() {
        return parse_binary({"*", "/", "//", "%"}, &Parser::parse_power);
    }

    // In Jinja a power binds to the left and a sign binds more strongly: -1 ** 2 is 1.
    ExpressionPtr parse_power() { return parse_binary({"**"}, &Parser::parse_filtered_unary); }

    ExpressionPtr parse_filtered_unary() { return parse_unary(true); }

    ExpressionPtr parse_unary(bool with_filters) {
        const Nesting nesting(*this);
        ExpressionPtr node;
        if (at_any_symbol({"-", "+"})) {
            const Token sign = take();
            node =
                make(sign.text == "-" ? Kind::negate : Kind::plus, sign.line, parse_unary(false));
        } else {
            node = parse_primary(false);
        }
        node = parse_postfix(std::move(node));
        return with_filters ? parse_filters_and_tests(std::move(node)) : std::move(node);
    }

    ExpressionPtr parse_primary(bool with_namespace) {
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

    ExpressionPtr parse_name(const Token& token, bool with_namespace) {
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

    ExpressionPtr parse_list(int line) {
        ExpressionPtr list = make(Kind::list, line);
        while (!at_symbol("]")) {
            if (!list->operands.empty()) expect_symbol(",");
            if (at_symbol("]")) break;
            add_operand(*list, parse_expression());
        }
        expect_symbol("]");
        return list;
    }

    ExpressionPtr parse_dict(int line) {
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
    ExpressionPtr parse_postfix(ExpressionPtr node) {
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

    ExpressionPtr parse_attribute(ExpressionPtr node, int line) {
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

    ExpressionPtr parse_item(ExpressionPtr node, int line) {
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
    ExpressionPtr parse_subscript() {
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

    ExpressionPtr parse_call(ExpressionPtr function) {
        ExpressionPtr call = make(Kind::call, current().line, std::move(function));
        parse_call_arguments(*call);
        return call;
    }

    void parse_call_arguments(Expression& node) {
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

    ExpressionPtr parse_filters_and_tests(ExpressionPtr node) {
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

    ExpressionPtr parse_filters(ExpressionPtr node) {
        while (skip_symbol("|")) node = parse_one_filter(std::move(node));
        return node;
    }

    /// A name, perhaps with dots.
    std::string parse_dotted_name() {
        std::string name = expect_any_name();
        while (skip_symbol(".")) name += "." + expect_any_name();
        return name;
    }

    ExpressionPtr parse_one_filter(ExpressionPtr node) {
        ExpressionPtr filter = make(Kind::filter, current().line, std::move(node));
        filter->text = parse_dotted_name();
        if (at_symbol("(")) parse_call_arguments(*filter);
        return filter;
    }

    ExpressionPtr parse_test(ExpressionPtr node) {
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
    bool at_bare_test_argument() const {
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

    std::vector<Token> tokens_;
    size_t position_ = 0;
    int nesting_ = 0;
    bool in_loop_ = false;  ///< break and continue have a loop
};

}  // namespace

std::shared_ptr<const JinjaTemplate> jinja_parse(std::string_view source, const std::string& name) {
    auto made = std::make_shared<JinjaTemplate>();
    made->name = name;
    if (!is_valid_utf8(source)) fail(name, ": the template is not valid UTF-8");
    try {
        made->body = Parser(source).run();
        analyze_jinja_template(*made);
    } catch (const JinjaSyntaxFault& fault) {
        fail(name, " line ", fault.line, ": ", fault.message);
    }
    return made;
}

}  // namespace mllama
