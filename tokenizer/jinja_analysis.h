// What Jinja's compiler decides about a template before it runs, on the tree that the parser made:
//
// - unknown filters and tests are errors, except inside an if, where they may never be reached;
// - a macro takes surplus arguments only if its body uses `varargs` or `kwargs` (`caller`
// likewise);
// - a name that a scope assigns before it reads it is undefined from the scope's start, even where
// the
//   render has a variable of that name: names become variables of a Python function, and those
//   hide.
//
// Follows jinja2 3.1: compiler.py (soft frames, find_undeclared) and idtracking.py.
#pragma once

#include "tokenizer/jinja_ast.h"

namespace mllama {

/// Fills the parts of the tree named above. Throws JinjaSyntaxFault.
void analyze_jinja_template(JinjaTemplate& tree);

}  // namespace mllama
