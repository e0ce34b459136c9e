// The chat template of a checkpoint: from messages to the text that the model continues.
//
// Checkpoints bring their template as a Jinja program, and every fine-tune may bring its own, so
// the program is interpreted (jinja_*.h). The interpreter is written here because Debian has no
// library for it (inja and Jinja2Cpp are not packaged; the former is another language, the latter
// lacks what chat templates use), and because rendering has to agree with transformers to the last
// byte.
//
// Reference: transformers 4.56.2, utils/chat_template_utils.py (rendering), processing_utils.py and
// tokenization_utils_base.py (which file wins, special tokens).
#pragma once

#include <ctime>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "tokenizer/special_tokens.h"

namespace mllama {

struct JinjaTemplate;

struct RenderOptions {
    bool add_generation_prompt = false;
    std::optional<std::string> date_string;  ///< the template's date_string; not defined if absent
    /// Lists of JSON schemas and of documents; None if absent, as in transformers.
    const nlohmann::ordered_json* tools = nullptr;
    const nlohmann::ordered_json* documents = nullptr;
    /// An object of further variables by name, which hide all others; null for none.
    const nlohmann::ordered_json* variables = nullptr;
    std::optional<std::time_t>
        now;  ///< for strftime_now, told as local time; the clock's if absent
};

class ChatTemplate {
  public:
    /// The template and the special tokens of a checkpoint directory. The template is the first of:
    /// chat_template.json (its "chat_template"), chat_template.jinja, tokenizer_config.json (its
    /// "chat_template"); where one holds a list of {"name", "template"}, the one named "default".
    /// Special tokens are those of read_special_tokens that are not empty.
    /// Errors: Error that names the file; without a template, the files that were looked for; a
    /// template that cannot be parsed, with its line.
    static ChatTemplate load(const std::string& checkpoint_dir);

    /// A template from its source; `name` stands in errors. Errors: "`name` line L: what".
    ChatTemplate(const std::string& source, const std::string& name);

    /// The text for `messages`, a list of {role, content, ...}. Errors: Error "name line L: what"
    /// for what the template refuses (raise_exception), does wrong or needs too much of.
    std::string render(const nlohmann::ordered_json& messages,
                       const RenderOptions& options = {}) const;

    /// "bos_token" -> "<|begin_of_text|>" and so on: strings that every render defines.
    SpecialTokens special_tokens;

  private:
    std::shared_ptr<const JinjaTemplate> tree_;
};

}  // namespace mllama
