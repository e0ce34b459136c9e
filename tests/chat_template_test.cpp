// Chat templates against transformers (goldens/chat_templates.json), and how a checkpoint's is
// found.
#include "tokenizer/chat_template.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>

#include "io/json.h"
#include "kernels/error.h"

using namespace mllama;

namespace {

const std::string kGoldens = std::string(MLLAMA_TEST_DATA) + "/goldens/";

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

/// 2024-07-26 13:05:09 on the local clock, as the goldens have it.
std::time_t golden_time() {
    std::tm parts{};
    parts.tm_year = 124;
    parts.tm_mon = 6;
    parts.tm_mday = 26;
    parts.tm_hour = 13;
    parts.tm_min = 5;
    parts.tm_sec = 9;
    parts.tm_isdst = -1;
    return std::mktime(&parts);
}

/// Renders a case of the goldens, whose members are the variables of the render.
std::string render_case(const ChatTemplate& chat_template, const OrderedJson& options) {
    RenderOptions render_options;
    OrderedJson variables = OrderedJson::object();
    for (const auto& [name, value] : options.items()) {
        if (name == "messages") continue;
        if (name == "add_generation_prompt") {
            render_options.add_generation_prompt = value.get<bool>();
        } else if (name == "date_string") {
            render_options.date_string = value.get<std::string>();
        } else if (name == "tools") {
            render_options.tools = &value;
        } else if (name == "documents") {
            render_options.documents = &value;
        } else {
            variables[name] = value;
        }
    }
    render_options.variables = &variables;
    render_options.now = golden_time();
    return chat_template.render(options["messages"], render_options);
}

/// A folder that goes away with its content.
class TemporaryFolder {
  public:
    TemporaryFolder() {
        std::string pattern = (std::filesystem::temp_directory_path() / "mllama_XXXXXX").string();
        REQUIRE(mkdtemp(pattern.data()) != nullptr);
        path_ = pattern;
    }
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;

    void write(const std::string& name, const std::string& content) const {
        std::ofstream(path_ + "/" + name, std::ios::binary) << content;
    }
    void remove(const std::string& name) const { std::filesystem::remove(path_ + "/" + name); }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

std::string rendered(const TemporaryFolder& folder) {
    return ChatTemplate::load(folder.path()).render(OrderedJson::array());
}

std::string error_of(const TemporaryFolder& folder) {
    try {
        rendered(folder);
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

}  // namespace

TEST_CASE("chat_templates_render_as_transformers_does") {
    const OrderedJson golden =
        parse_ordered_json(read_file(kGoldens + "chat_templates.json"), "chat_templates.json");
    std::set<std::string> templates;
    int refused = 0;
    for (const OrderedJson& item : golden["renders"]) {
        const auto name = item["template"].get<std::string>();
        const auto case_name = item["case"].get<std::string>();
        CAPTURE(name);
        CAPTURE(case_name);
        templates.insert(name);
        ChatTemplate chat_template(read_file(kGoldens + "templates/" + name), name);
        for (const auto& [key, value] : golden["tokens"].items()) {
            chat_template.special_tokens[key] = value.get<std::string>();
        }
        std::string text;
        std::string error;
        try {
            text = render_case(chat_template, golden["cases"][case_name]);
        } catch (const Error& problem) {
            error = problem.what();
        }
        if (item.contains("text")) {
            CHECK(error == "");
            CHECK(text == item["text"].get<std::string>());
        } else {
            ++refused;
            CHECK(contains(error, name + " line "));
            CHECK(contains(error, item["error"].get<std::string>()));
        }
    }
    CHECK(templates.size() >= 12);
    CHECK(refused >= 30);
}

TEST_CASE("chat_template_is_found_in_the_order_of_transformers") {
    const TemporaryFolder folder;
    CHECK(contains(error_of(folder),
                   "chat_template.json, chat_template.jinja and \"chat_template\" in "
                   "tokenizer_config.json"));
    folder.write("tokenizer_config.json", R"({"chat_template": null})");
    CHECK(contains(error_of(folder), "no chat template"));
    folder.write("tokenizer_config.json", R"({"chat_template": "config"})");
    CHECK(rendered(folder) == "config");
    folder.write(
        "tokenizer_config.json",
        R"({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]})");
    CHECK(rendered(folder) == "d");
    folder.write("chat_template.jinja", "jinja\n");
    CHECK(rendered(folder) == "jinja");
    folder.write("chat_template.json", R"({"chat_template": "json"})");
    CHECK(rendered(folder) == "json");
    folder.remove("tokenizer_config.json");
    folder.remove("chat_template.jinja");
    CHECK(rendered(folder) == "json");
}

TEST_CASE("chat_template_special_tokens_come_from_strings_objects_and_the_map") {
    const TemporaryFolder folder;
    folder.write("chat_template.jinja",
                 "{{ bos_token }},{{ eos_token }},{{ pad_token is defined }},{{ image_token }}");
    folder.write("special_tokens_map.json",
                 R"({"bos_token": "<m>", "eos_token": {"content": "</m>"}})");
    CHECK(rendered(folder) == "<m>,</m>,False,");
    folder.write("tokenizer_config.json",
                 R"({"bos_token": "<c>", "eos_token": {"__type": "AddedToken", "content": "</c>"},
                     "pad_token": null, "extra_special_tokens": {"image_token": "<|image|>"}})");
    CHECK(rendered(folder) ==
          "<m>,</m>,False,<|image|>");  // the map wins where no tokens are decoded
    folder.write("tokenizer_config.json",
                 R"({"bos_token": "<c>", "eos_token": {"__type": "AddedToken", "content": "</c>"},
                     "pad_token": null, "added_tokens_decoder": {}})");
    CHECK(rendered(folder) == "<c>,</c>,False,");
}

TEST_CASE("chat_template_files_that_are_wrong_are_named") {
    const TemporaryFolder folder;
    folder.write("chat_template.json", "{");
    CHECK(contains(error_of(folder), "/chat_template.json: not valid JSON"));
    folder.write("chat_template.json", "[]");
    CHECK(contains(error_of(folder), "/chat_template.json: expected a JSON object, found array"));
    folder.write("chat_template.json", "{}");
    CHECK(contains(error_of(folder), "/chat_template.json: has no \"chat_template\""));
    folder.write("chat_template.json", R"({"chat_template": 1})");
    CHECK(contains(error_of(folder), "expected a string or a list, found number"));
    folder.write("chat_template.json", R"({"chat_template": [{"name": "rag", "template": "r"}]})");
    CHECK(contains(error_of(folder), "none of the templates is named \"default\""));
    folder.write("chat_template.json", R"({"chat_template": [1]})");
    CHECK(contains(error_of(folder), "list of {\"name\", \"template\"}"));
    folder.remove("chat_template.json");
    folder.write("chat_template.jinja", "a\n{{ 1|nothing }}");
    CHECK(contains(error_of(folder), "/chat_template.jinja line 2: unknown filter 'nothing'"));
    folder.write("chat_template.jinja", "\xff");
    CHECK(contains(error_of(folder), "/chat_template.jinja: the template is not valid UTF-8"));
    folder.write("chat_template.jinja", "a");
    folder.write("tokenizer_config.json", R"({"bos_token": 5})");
    CHECK(contains(error_of(folder), "/tokenizer_config.json: bos_token: expected a token"));
}

TEST_CASE("chat_template_variables_that_cannot_be_values_are_named") {
    const ChatTemplate chat_template("{{ messages }}", "t");
    CHECK_THROWS_WITH_AS(chat_template.render(OrderedJson::parse("[18446744073709551615]")),
                         doctest::Contains("messages: the integer 18446744073709551615"), Error);
    CHECK_THROWS_WITH_AS(chat_template.render(OrderedJson(std::string("\xff"))),
                         doctest::Contains("messages: a string is not valid UTF-8"), Error);
    OrderedJson deep = OrderedJson::array();
    for (int i = 0; i < 400; ++i) deep = OrderedJson::array({deep});
    CHECK_THROWS_WITH_AS(chat_template.render(deep),
                         doctest::Contains("messages: containers are nested"), Error);
    RenderOptions options;
    options.date_string = "\xff";
    CHECK_THROWS_WITH_AS(chat_template.render(OrderedJson::array(), options),
                         doctest::Contains("date_string"), Error);
}

TEST_CASE("chat_template_variables_hide_all_others") {
    ChatTemplate chat_template("{{ bos_token }} {{ range }} {{ tools }} {{ documents }}", "t");
    chat_template.special_tokens["bos_token"] = "<s>";
    const OrderedJson variables = {{"bos_token", "mine"}, {"range", 5}};
    RenderOptions options;
    options.variables = &variables;
    CHECK(chat_template.render(OrderedJson::array(), options) == "mine 5 None None");
}
