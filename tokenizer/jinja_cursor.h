// A place in the tokens of a Jinja template: what parsers look at, take and expect.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/jinja_lexer.h"

namespace mllama {

class JinjaCursor {
  public:
    explicit JinjaCursor(std::string_view source) : tokens_(jinja_tokenize(source)) {}

    using Names = std::initializer_list<std::string_view>;

    const JinjaToken& current() const { return tokens_[position_]; }
    const JinjaToken& following() const;
    /// The current token; goes on to the next.
    JinjaToken take();

    static bool is_symbol(const JinjaToken& token, std::string_view text) {
        return token.kind == JinjaTokenKind::symbol && token.text == text;
    }
    static bool is_name(const JinjaToken& token, std::string_view text) {
        return token.kind == JinjaTokenKind::name && token.text == text;
    }
    bool at_symbol(std::string_view text) const { return is_symbol(current(), text); }
    bool at_name(std::string_view text) const { return is_name(current(), text); }
    bool at_any_symbol(Names symbols) const;

    /// Takes the symbol or name if it is there, and says whether it was.
    bool skip_symbol(std::string_view text);
    bool skip_name(std::string_view text);

    // Errors: JinjaSyntaxFault with the line.
    void expect_symbol(std::string_view text);
    void expect_name(std::string_view text);
    std::string expect_any_name();
    void expect(JinjaTokenKind kind, const std::string& what);
    [[noreturn]] void fail_expected(const std::string& what) const;
    [[noreturn]] static void fail_at(int line, const std::string& message) {
        throw JinjaSyntaxFault{message, line};
    }
    /// A token as messages name it.
    static std::string describe(const JinjaToken& token);

    /// Counts the nesting of the text while it lives. Errors: too deep.
    class Nesting {
      public:
        explicit Nesting(JinjaCursor& cursor);
        ~Nesting() { --cursor_.nesting_; }
        Nesting(const Nesting&) = delete;
        Nesting& operator=(const Nesting&) = delete;

      private:
        JinjaCursor& cursor_;
    };

  private:
    std::vector<JinjaToken> tokens_;
    size_t position_ = 0;
    int nesting_ = 0;
};

}  // namespace mllama
