// JSON, by nlohmann-json. Include this header in source files; headers forward-declare with
// <nlohmann/json_fwd.hpp>.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/error.h"

namespace mllama {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  ///< keeps the order of keys; lookups are linear

/// Parses a text. Errors: Error "`name`: not valid JSON at line L column C"; one that nests deeper
/// than 500 lists and objects is an error too. `name` is the file, or what the text is.
Json parse_json(std::string_view text, const std::string& name);
OrderedJson parse_ordered_json(std::string_view text, const std::string& name);

/// Reads and parses a file. Errors as parse_json; "`path`: cannot be read: ...".
Json read_json_file(const std::string& path);

/// A whole file as bytes. Errors: Error that names the path and the system's reason (missing, a
/// directory, too large for `limit`).
std::string read_file(const std::string& path, int64_t limit = int64_t{1} << 30);

}  // namespace mllama
