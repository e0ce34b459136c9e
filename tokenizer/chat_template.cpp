// Finding and rendering chat templates: see the header.
#include "tokenizer/chat_template.h"

#include <sys/stat.h>

#include <unordered_map>
#include <utility>

#include "io/json.h"
#include "tokenizer/jinja_json.h"
#include "tokenizer/jinja_parser.h"
#include "tokenizer/jinja_runtime.h"
#include "tokenizer/special_tokens.h"

namespace mllama {
namespace {

/// Larger than any template; a hostile one takes memory in proportion to its size.
constexpr int64_t kMaxTemplateBytes = int64_t{4} << 20;
constexpr int64_t kMaxConfigBytes = int64_t{64} << 20;

struct Source {
    std::string text;
    std::string name;  ///< the file
};

bool exists(const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0;
}

OrderedJson read_config(const std::string& path) {
    OrderedJson json = parse_ordered_json(read_file(path, kMaxConfigBytes), path);
    if (!json.is_object()) fail(path, ": expected a JSON object, found ", json.type_name());
    return json;
}

/// The template in the value of "chat_template": a string, or the one named "default" of a list.
Source template_in(const OrderedJson& value, const std::string& path) {
    if (value.is_string()) return {value.get<std::string>(), path};
    if (!value.is_array()) {
        fail(path, ": chat_template: expected a string or a list, found ", value.type_name());
    }
    for (const OrderedJson& entry : value) {
        const bool is_entry = entry.is_object() && entry.contains("name") &&
                              entry["name"].is_string() && entry.contains("template") &&
                              entry["template"].is_string();
        if (!is_entry) fail(path, ": chat_template: expected a list of {\"name\", \"template\"}");
        if (entry["name"] == "default") return {entry["template"].get<std::string>(), path};
    }
    fail(path, ": chat_template: none of the templates is named \"default\"");
}

/// Looks where transformers looks, in its order.
Source find_template(const std::string& dir, const OrderedJson* tokenizer_config) {
    const std::string legacy = dir + "/chat_template.json";
    if (exists(legacy)) {
        const OrderedJson json = read_config(legacy);
        if (!json.contains("chat_template")) fail(legacy, ": has no \"chat_template\"");
        return template_in(json["chat_template"], legacy);
    }
    const std::string jinja = dir + "/chat_template.jinja";
    if (exists(jinja)) return {read_file(jinja, kMaxTemplateBytes), jinja};
    if (tokenizer_config != nullptr && tokenizer_config->contains("chat_template") &&
        !(*tokenizer_config)["chat_template"].is_null()) {
        return template_in((*tokenizer_config)["chat_template"], dir + "/tokenizer_config.json");
    }
    fail(dir,
         ": no chat template: looked for chat_template.json, chat_template.jinja and "
         "\"chat_template\" in tokenizer_config.json");
}

/// JSON as a value of the template; an error says which variable it was.
JinjaValue to_value(const OrderedJson& json, const std::string& what) {
    try {
        return jinja_from_json(json);
    } catch (const JinjaFault& fault) {
        fail(what, ": ", fault.what());
    }
}

}  // namespace

ChatTemplate ChatTemplate::load(const std::string& checkpoint_dir) {
    const std::optional<OrderedJson> config = read_tokenizer_config(checkpoint_dir);
    const Source source = find_template(checkpoint_dir, config ? &*config : nullptr);
    ChatTemplate made(source.text, source.name);
    made.special_tokens = read_special_tokens(checkpoint_dir);
    std::erase_if(made.special_tokens, [](const auto& token) { return token.second.empty(); });
    return made;
}

ChatTemplate::ChatTemplate(const std::string& source, const std::string& name) {
    if (static_cast<int64_t>(source.size()) > kMaxTemplateBytes) {
        fail(name, ": a chat template of ", source.size(), " bytes; at most ", kMaxTemplateBytes);
    }
    tree_ = jinja_parse(source, name);
}

std::string ChatTemplate::render(const nlohmann::ordered_json& messages,
                                 const RenderOptions& options) const {
    std::unordered_map<std::string, JinjaValue> variables;
    variables["messages"] = to_value(messages, "messages");
    variables["tools"] =
        options.tools != nullptr ? to_value(*options.tools, "tools") : JinjaValue();
    variables["documents"] =
        options.documents != nullptr ? to_value(*options.documents, "documents") : JinjaValue();
    variables["add_generation_prompt"] = JinjaValue(options.add_generation_prompt);
    for (const auto& [name, token] : special_tokens) variables[name] = JinjaValue(token);
    if (options.date_string) {
        variables["date_string"] = to_value(*options.date_string, "date_string");
    }
    if (options.variables != nullptr) {
        if (!options.variables->is_object())
            fail("the variables of a chat template must be an object");
        for (const auto& [name, value] : options.variables->items()) {
            variables[name] = to_value(value, "the template variable " + name);
        }
    }
    return JinjaRuntime(*tree_, std::move(variables), options.now).render();
}

}  // namespace mllama
