// Splits the source of a Jinja template into tokens, white space control included.
//
// Follows jinja2 3.1 (lexer.py) with the settings of transformers: trim_blocks (the newline behind
// a block or comment goes), lstrip_blocks (the spaces before one that starts a line go), the last
// newline of the source goes, and every line end becomes "\n".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mllama {

enum class JinjaTokenKind {
    data,            ///< text outside the tags
    variable_begin,  ///< {{
    variable_end,
    block_begin,  ///< {%
    block_end,
    name,
    string,
    integer,
    real,
    symbol,  ///< an operator, a bracket or punctuation: text says which
    end
};

struct JinjaToken {
    JinjaTokenKind kind = JinjaTokenKind::end;
    int line = 1;
    std::string text;  ///< of a string, its value
    int64_t integer = 0;
    double real = 0;
};

/// A template that cannot be read; `line` is where.
struct JinjaSyntaxFault {
    std::string message;
    int line;
};

/// The tokens of `source`, which is valid UTF-8; the last is `end`. Throws JinjaSyntaxFault.
std::vector<JinjaToken> jinja_tokenize(std::string_view source);

}  // namespace mllama
