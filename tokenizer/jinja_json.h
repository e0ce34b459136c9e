// JSON and the values of templates: messages and tools come in as JSON, tojson puts values out as
// Python's json.dumps does.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "tokenizer/jinja_value.h"

namespace mllama {

/// Errors: JinjaFault: nested too deeply, an integer beyond 64 bits, text that is not UTF-8.
JinjaValue jinja_from_json(const nlohmann::ordered_json& json);

struct JinjaJsonStyle {
    bool ensure_ascii = false;
    std::optional<std::string> indent;  ///< of one level; one line without
    std::string item_separator = ", ";
    std::string key_separator = ": ";
    bool sort_keys = false;
};

/// json.dumps. Errors: JinjaFault: a value that JSON does not have.
std::string jinja_to_json(const JinjaValue& value, const JinjaJsonStyle& style);

}  // namespace mllama
