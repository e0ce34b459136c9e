// JSON, by nlohmann-json. Include this header in source files; headers forward-declare with
// <nlohmann/json_fwd.hpp>.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/read_file.h"
#include "kernels/error.h"

namespace mllama {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  ///< keeps the order of keys; lookups are linear

/// Parses a text. Errors: Error "`name`: not valid JSON at line L column C"; one that nests deeper
/// than 500 lists and objects is an error too. `name` is the file, or what the text is.
Json parse_json(std::string_view text, const std::string& name);
OrderedJson parse_ordered_json(std::string_view text, const std::string& name);

/// Reads and parses a file of a checkpoint. Errors as parse_json and read_file.
Json read_json_file(const std::string& path);

}  // namespace mllama
