// The Jinja interpreter against jinja2 (goldens/jinja_snippets.json), and its own errors and
// limits.
#include <doctest/doctest.h>

#include <ctime>
#include <string>
#include <thread>

#include "io/json.h"
#include "kernels/error.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/python_text.h"

using namespace mllama;

namespace {

const std::string kGoldens = std::string(MLLAMA_TEST_DATA) + "/goldens/";

std::string render(const std::string& source,
                   const OrderedJson& variables = OrderedJson::object()) {
    RenderOptions options;
    options.variables = &variables;
    options.now = 1722002709;
    return ChatTemplate(source, "t.jinja").render(OrderedJson::array(), options);
}

/// The message of the error that rendering ends with; "" if it does not.
std::string error_of(const std::string& source,
                     const OrderedJson& variables = OrderedJson::object()) {
    try {
        render(source, variables);
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

/// `text` n times.
std::string times(int n, const std::string& text) {
    std::string out;
    for (int i = 0; i < n; ++i) out += text;
    return out;
}

}  // namespace

TEST_CASE("jinja_snippets_render_as_jinja2_does") {
    const OrderedJson golden =
        parse_ordered_json(read_file(kGoldens + "jinja_snippets.json"), "jinja_snippets.json");
    REQUIRE(golden["cases"].size() >= 500);
    for (const OrderedJson& item : golden["cases"]) {
        const auto source = item["template"].get<std::string>();
        CAPTURE(item["topic"].get<std::string>());
        CAPTURE(source);
        if (item.contains("text")) {
            std::string text;
            CHECK_NOTHROW(text = render(source, golden["context"]));
            CHECK(text == item["text"].get<std::string>());
        } else {
            const std::string error = error_of(source, golden["context"]);
            CHECK(contains(error, "t.jinja line "));
            CHECK(contains(error, item["error"].get<std::string>()));
        }
    }
}

TEST_CASE("jinja_errors_name_the_template_the_line_and_the_thing") {
    CHECK(error_of("a\n{{ 1|foo }}") == "t.jinja line 2: unknown filter 'foo'");
    CHECK(error_of("\n\n{{ 1 is bar }}") == "t.jinja line 3: unknown test 'bar'");
    CHECK(error_of("{% do x %}") == "t.jinja line 1: unknown tag 'do'");
    CHECK(contains(error_of("{% if x %}\n{% foo %}"), "t.jinja line 2: unknown tag 'foo'"));
    CHECK(error_of("{% if true %}\n\n{{ 1|foo }}{% endif %}") ==
          "t.jinja line 3: unknown filter 'foo'");
    CHECK(error_of("{{ 1 }}\n{{ missing.x }}") == "t.jinja line 2: 'missing' is undefined");
    CHECK(error_of("x\n{{ raise_exception('told so') }}") == "t.jinja line 2: told so");
    CHECK(error_of("{% macro m() %}\n{{ 1/0 }}{% endmacro %}\n{{ m() }}") ==
          "t.jinja line 2: division by zero");
    CHECK(contains(error_of("{% if x %}\n"), "'elif' or 'else' or 'endif'"));
    CHECK(contains(error_of("{% for a in b %}{% endif %}"),
                   "unknown tag 'endif', expected 'endfor'"));
    CHECK(contains(error_of("{{ 'a\\N{DASH}' }}"), "\\N{...}"));
    CHECK(contains(error_of("{{ 1 }}\xff"), "not valid UTF-8"));
    CHECK(contains(error_of("{{ 99999999999999999999 }}"), "64 bits"));
    CHECK(contains(error_of("{{ 9223372036854775807 + 1 }}"), "64 bits"));
}

TEST_CASE("jinja_hostile_templates_end_with_an_error_soon") {
    const std::clock_t begin = std::clock();
    // Depth of the text, of the tree, of the run and of values.
    CHECK(contains(error_of("{{ " + times(5000, "(") + "1" + times(5000, ")") + " }}"), "deep"));
    CHECK(contains(error_of("{{ " + times(5000, "[") + times(5000, "]") + " }}"), "deep"));
    CHECK(contains(error_of("{{ " + times(5000, "-") + "1 }}"), "deep"));
    CHECK(contains(error_of("{{ " + times(5000, "not ") + "1 }}"), "deep"));
    CHECK(contains(error_of("{{ " + times(5000, "a if b else ") + "1 }}"), "deep"));
    CHECK(contains(error_of(times(5000, "{% if a %}")), "deep"));
    CHECK(contains(error_of(times(5000, "{% for a in b %}")), "deep"));
    CHECK(contains(error_of("{% if a %}" + times(5000, "{% elif a %}") + "{% endif %}"), "deep"));
    CHECK(contains(error_of("{{ 1" + times(5000, " + 1") + " }}"), "more than 1000 steps"));
    CHECK(contains(error_of("{{ a" + times(5000, ".b") + " }}"), "more than 1000 steps"));
    CHECK(contains(error_of("{{ a" + times(5000, "|trim") + " }}"), "more than 1000 steps"));
    CHECK(contains(error_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "too deeply"));
    CHECK(contains(error_of("{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}"),
                   "too deeply"));
    CHECK(contains(error_of("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}"
                            "{% set ns.l = [ns.l] %}{% endfor %}"),
                   "deep"));
    CHECK(contains(error_of("{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}"), "deep"));
    // Size of values, doubled again and again.
    CHECK(contains(error_of("{{ 'x' * 1000000000 }}"), "64 MiB"));
    CHECK(contains(error_of("{{ [1] * 1000000000 }}"), "64 MiB"));
    CHECK(contains(error_of("{% set ns = namespace(s='x') %}{% for i in range(99) %}"
                            "{% set ns.s = ns.s ~ ns.s %}{% endfor %}"),
                   "64 MiB"));
    CHECK(contains(error_of("{% set ns = namespace(l=[1]) %}{% for i in range(99) %}"
                            "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}"),
                   "64 MiB"));
    CHECK(contains(error_of("{{ '%1000000000d' % 1 }}"), "too large"));
    CHECK(contains(error_of("{{ '%*d' % (1000000000, 1) }}"), "too large"));
    CHECK(contains(error_of("{{ '{:1000000000}'.format(1) }}"), "too large"));
    CHECK(contains(error_of("{{ 'x'.center(1000000000) }}"), "64 MiB"));
    CHECK(contains(error_of("{{ 'x'.zfill(1000000000) }}"), "64 MiB"));
    CHECK(contains(error_of("{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}"), "64 MiB"));
    CHECK(contains(error_of("{{ ('x' * 1000000).join('y' * 1000000) }}"), "64 MiB"));
    CHECK(contains(error_of("{{ range(1000000000)|list }}"), "Range too big"));
    CHECK(contains(error_of("{{ [1]|tojson(indent=1000000000) }}"), "indent"));
    CHECK(contains(error_of("{{ 2 ** 100000 }}"), "64 bits"));
    CHECK(render("{{ 1|round(-9999999999) }} {{ 2.5|round(9999999999) }}") == "0 2.5");
    // Work and output.
    CHECK(contains(
        error_of("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
        "steps"));
    CHECK(contains(
        error_of("{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{{ s }}{% endfor %}"),
        "MiB"));
    CHECK(contains(
        error_of("{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{% set t = s ~ i %}"
                 "{% endfor %}"),
        "MiB"));
    CHECK(contains(error_of("{% set s = 'x' * 60000000 %}{% set t = 'x' * 60000000 %}"
                            "{% for i in range(99999) %}{% if s == t %}{% endif %}{% endfor %}"),
                   "steps"));
    const auto seconds =
        static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;  // of processor
    CHECK(seconds < 60);
}

TEST_CASE("jinja_values_that_own_each_other_are_released") {
    // LeakSanitizer and the stack decide here.
    CHECK(render("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ 1 }}") ==
          "1");
    CHECK(render("{% set ns = namespace(next=none) %}{% for i in range(50000) %}"
                 "{% set ns.next = namespace(next=ns.next) %}{% endfor %}{% set ns.next = 0 %}{{ 1 "
                 "}}") == "1");
    CHECK(render(
              "{% for i in range(3) %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}") ==
          "012");
    CHECK(
        render(
            "{% set ns = namespace() %}{% for i in range(2) %}{% set ns.loop = loop %}{% endfor %}"
            "{{ ns.loop.length }}") == "2");
}

TEST_CASE("jinja_deep_recursion_fits_the_stack_of_a_thread") {
    std::string error;
    std::thread thread([&] {
        error = error_of(
            "{% macro m(a) %}{% if a %}{% for x in [a] %}{{ [x, m(x + 1)]|join }}{% endfor %}"
            "{% endif %}{% endmacro %}{{ m(1) }}");
    });
    thread.join();
    CHECK(contains(error, "too deeply"));
    CHECK(
        render(
            "{% macro m(a) %}{% if a %}{{ a }}{{ m(a - 1) }}{% endif %}{% endmacro %}{{ m(150) }}")
            .size() == 9 + 2 * 90 + 3 * 51);
}

TEST_CASE("jinja_strftime_now_tells_local_time") {
    // Noon of 2024-07-26 in UTC is the 26th, or for a few zones the 27th, everywhere.
    RenderOptions options;
    options.now = 1721995200;
    const std::string text =
        ChatTemplate("{{ strftime_now('%Y-%m %b %B %% %f%z%Z|') }}{{ strftime_now('') }}", "t")
            .render(OrderedJson::array(), options);
    CHECK(text == "2024-07 Jul July % 000000|");
    CHECK(ChatTemplate("{{ strftime_now('%Y')|int > 2023 }}", "t").render(OrderedJson::array()) ==
          "True");
    CHECK(contains(error_of("{{ strftime_now(1) }}"), "string"));
    CHECK(contains(error_of("{{ strftime_now('%9999999d') }}"), "too long"));
}

TEST_CASE("python_repr_of_floats_reads_back") {
    CHECK(python_repr(0.1) == "0.1");
    CHECK(python_repr(1e22) == "1e+22");
    CHECK(python_repr(123456789012345680.0) == "1.2345678901234568e+17");
    CHECK(python_repr(9999999999999998.0) == "9999999999999998.0");
    CHECK(python_repr(0.0001) == "0.0001");
    CHECK(python_repr(-0.00001234) == "-1.234e-05");
    CHECK(python_repr(5e-324) == "5e-324");
    for (double value = 1e-320; value < 1e300; value *= 31.7) {
        CHECK(parse_python_float(python_repr(value)) == value);
    }
}
