"""Makes the goldens of the chat template tests, with jinja2 as transformers sets it up.

    python make_template_goldens.py            writes jinja_snippets.json and chat_templates.json
    python make_template_goldens.py --tables   prints tokenizer/python_text_tables.h

Needs transformers 4.56.2 and jinja2 3.1.6; Python 3.11, whose str is the one the tables describe.
"""

import datetime
import json
import pathlib
import sys
import unicodedata

from chat_conversations import CASES, TOKENS
from jinja_snippets import CONTEXT, SNIPPETS

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2024, 7, 26, 13, 5, 9)  # what strftime_now tells in the renders


def render(template, context):
    """What the template makes of the context: {"text"}, or {"error"} with the message if it is part
    of what the interpreter promises (raise_exception, undefined values)."""
    import jinja2
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    chat_template_utils.datetime = Clock
    try:
        compiled = chat_template_utils._compile_jinja_template(template)
        return {"text": compiled.render(**context)}
    except Exception as error:  # whatever Python raises is an error of the template
        promised = type(error) in (jinja2.exceptions.TemplateError, jinja2.exceptions.UndefinedError,
                                   jinja2.exceptions.SecurityError)
        return {"error": str(error) if promised else ""}


def snippets():
    cases = [{"topic": topic, "template": template, **render(template, CONTEXT)}
             for topic, templates in SNIPPETS.items() for template in templates]
    return {"context": CONTEXT, "cases": cases}


def chat_templates():
    renders = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for name, options in CASES.items():
            context = {"tools": None, "documents": None, "add_generation_prompt": False, **TOKENS, **options}
            renders.append({"template": path.name, "case": name, **render(source, context)})
    return {"tokens": TOKENS, "cases": CASES, "renders": renders}


def write(name, data):
    with open(HERE / name, "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, indent=1)
        file.write("\n")


# --- tables ---

def ranges(test):
    found = []
    for code in range(0x110000):
        if not test(chr(code)):
            continue
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return ["{0x%x, 0x%x}," % tuple(pair) for pair in found]


def expansions(change):
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    literal = lambda text: "".join(c if ord(c) < 0xA0 else "\\u%04x" % ord(c) for c in text)
    return ['{0x%x, U"%s"},' % (ord(c), literal(change(c))) for c in characters if len(change(c)) > 1]


def wrapped(items):
    lines = ["   "]
    for item in items:
        if len(lines[-1]) + len(item) + 1 > 98:
            lines.append("   ")
        lines[-1] += " " + item
    return "\n".join(lines)


def print_tables():
    category = unicodedata.category
    tables = [
        ("CaseExpansion kUpperExpansions", "Characters whose upper case is more than one character, by code point.",
         expansions(str.upper)),
        ("CaseExpansion kTitleExpansions", "Characters whose title case is more than one character, by code point.",
         expansions(str.title)),
        ("CodePointRange kDigitRanges", "str.isdigit() and not str.isdecimal(): superscripts, circled digits and the like.",
         ranges(lambda c: c.isdigit() and not c.isdecimal())),
        ("CodePointRange kNumericRanges", "str.isnumeric() without being a number by category: ideographs that stand for numbers.",
         ranges(lambda c: c.isnumeric() and category(c)[0] != "N")),
        ("CodePointRange kOtherUpperRanges", "Upper case without category Lu.",
         ranges(lambda c: c.isupper() and category(c) != "Lu")),
        ("CodePointRange kOtherLowerRanges", "Lower case without category Ll.",
         ranges(lambda c: c.islower() and category(c) != "Ll")),
    ]
    print("""// Character properties of Python's str that utf8proc does not have. Generated from CPython's own
// str methods (Unicode 14) by tests/goldens/make_template_goldens.py --tables; not edited by hand.
#pragma once

#include <string_view>

namespace mllama {

struct CaseExpansion {
    char32_t from;
    std::u32string_view to;
};

struct CodePointRange {
    char32_t first, last;  ///< both included
};

// clang-format off
""")
    for declaration, comment, items in tables:
        print(f"/// {comment}\nconstexpr {declaration}[] = {{\n{wrapped(items)}\n}};\n")
    print("// clang-format on\n\n}  // namespace mllama")


if __name__ == "__main__":
    if "--tables" in sys.argv:
        print_tables()
    else:
        write("jinja_snippets.json", snippets())
        write("chat_templates.json", chat_templates())
