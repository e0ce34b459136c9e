// Parses a Jinja template. The grammar is that of jinja2 3.1 (parser.py) with the two extensions
// that transformers loads: loop controls (break, continue) and {% generation %}.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "tokenizer/jinja_ast.h"

namespace mllama {

/// Errors: Error "`name` line L: what", also for tags, filters and tests that are not known. (A
/// filter or test inside an if is allowed to be unknown until it is reached, as in jinja2.)
std::shared_ptr<const JinjaTemplate> jinja_parse(std::string_view source, const std::string& name);

}  // namespace mllama
