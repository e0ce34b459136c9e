// A request as users state it, and its reading from JSON: raw text with <|image|> where pictures
// stand, or messages.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace mllama {

struct Request {
    std::string where;   ///< "requests.jsonl line 3": begins messages about it; may be empty
    std::string prompt;  ///< raw text, if there are no messages
    std::shared_ptr<const nlohmann::ordered_json>
        messages;  ///< a list of {role, content, ...}, or null
    std::shared_ptr<const nlohmann::ordered_json>
        tools;                        ///< JSON schemas for the template, or null
    std::vector<std::string> images;  ///< files, in the order of the places in the text
};

/// {"prompt": text, "images": [files]} or {"messages": [...], "tools": [...]} with pictures inside
/// as {"type": "image", "path": file}. `where` begins messages of errors: "requests.jsonl line 3".
/// Errors: Error naming it and the key. Relative files that do not exist from here are looked for
/// beside the file that names them, in `folder`.
Request parse_request(const nlohmann::ordered_json& json, const std::string& where,
                      const std::string& folder);

/// A request from a list of messages; `images` fill the pictures that name no file.
Request request_from_messages(const nlohmann::ordered_json& messages,
                              std::vector<std::string> images, const std::string& where,
                              const std::string& folder);

/// A file or pipe that holds one list of messages.
Request read_messages_file(const std::string& path, std::vector<std::string> images);

/// A file or pipe of one request a line; blank lines are passed over. Error if it holds none.
std::vector<Request> read_batch_file(const std::string& path);

}  // namespace mllama
