// The recursive descent parser of Jinja's statements: one function a tag. Expressions are parsed by
// the class that this one extends.
#include "tokenizer/jinja_parser.h"

#include <algorithm>
#include <unordered_map>

#include "kernels/error.h"
#include "tokenizer/jinja_analysis.h"
#include "tokenizer/jinja_expression_parser.h"
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

class StatementParser : private JinjaExpressionParser {
  public:
    explicit StatementParser(std::string_view source) : JinjaExpressionParser(source) {}

    Body run() { return parse_body({}); }

  private:
    /// Says whether break and continue have a loop while it lives.
    class LoopContext {
      public:
        LoopContext(StatementParser& parser, bool inside)
            : parser_(parser), before_(parser.in_loop_) {
            parser.in_loop_ = inside;
        }
        ~LoopContext() { parser_.in_loop_ = before_; }
        LoopContext(const LoopContext&) = delete;
        LoopContext& operator=(const LoopContext&) = delete;

      private:
        StatementParser& parser_;
        bool before_;
    };

    static Statement make_statement(Statement::Kind kind, int line) {
        Statement statement;
        statement.kind = kind;
        statement.line = line;
        return statement;
    }

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
        static const std::unordered_map<std::string, Statement (StatementParser::*)(int)> kTags = {
            {"set", &StatementParser::parse_set},
            {"for", &StatementParser::parse_for},
            {"if", &StatementParser::parse_if},
            {"macro", &StatementParser::parse_macro},
            {"call", &StatementParser::parse_call_block},
            {"filter", &StatementParser::parse_filter_block},
            {"with", &StatementParser::parse_with},
            {"generation", &StatementParser::parse_generation},
            {"break", &StatementParser::parse_break},
            {"continue", &StatementParser::parse_continue},
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

    bool in_loop_ = false;  ///< break and continue have a loop
};

}  // namespace

std::shared_ptr<const JinjaTemplate> jinja_parse(std::string_view source, const std::string& name) {
    auto made = std::make_shared<JinjaTemplate>();
    made->name = name;
    if (!is_valid_utf8(source)) fail(name, ": the template is not valid UTF-8");
    try {
        made->body = StatementParser(source).run();
        analyze_jinja_template(*made);
    } catch (const JinjaSyntaxFault& fault) {
        fail(name, " line ", fault.line, ": ", fault.message);
    }
    return made;
}

}  // namespace mllama
