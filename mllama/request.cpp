#include "mllama/request.h"

#include <filesystem>
#include <sstream>

#include "io/json.h"

namespace mllama {
namespace {

/// The file as named if it is there or absolute, otherwise beside the file that names it if it is
/// there.
std::string locate(const std::string& file, const std::string& folder) {
    namespace fs = std::filesystem;
    std::error_code ignored;
    if (fs::path(file).is_absolute() || fs::exists(file, ignored)) return file;
    const std::string beside = (fs::path(folder) / file).string();
    return fs::exists(beside, ignored) ? beside : file;
}

/// The file of a picture in a message: "path", or "image" or "url" holding a local file, as
/// fine-tunes write it.
std::string picture_path(const OrderedJson& part) {
    for (const char* key : {"path", "image", "url"}) {
        if (part.contains(key) && part[key].is_string()) return part[key].get<std::string>();
    }
    return {};
}

bool is_picture(const OrderedJson& part) {
    return part.is_object() && part.contains("type") && part["type"] == "image";
}

/// Checks one message and collects its pictures.
void read_message(const OrderedJson& message, const std::string& where,
                  std::vector<std::string>& pictures) {
    if (!message.is_object()) fail(where, ": expected an object {role, content}");
    if (!message.contains("role") || !message["role"].is_string()) {
        fail(where, ": role: expected a string");
    }
    if (!message.contains("content") || message["content"].is_null()) {
        if (message.contains("tool_calls")) return;
        fail(where, ": content: expected a string or a list, found none");
    }
    const OrderedJson& content = message["content"];
    if (content.is_string()) return;
    // What tools give back may be any value; only lists are looked into, for pictures.
    const bool of_a_tool = message["role"] == "tool" || message["role"] == "ipython";
    if (of_a_tool && !content.is_array()) return;
    if (!content.is_array()) fail(where, ": content: expected a string or a list");
    for (const OrderedJson& part : content) {
        if (!part.is_object() && !part.is_string()) {
            fail(where, ": content: expected parts {\"type\": \"text\"} or {\"type\": \"image\"}");
        }
        if (part.is_object() && (!part.contains("type") || !part["type"].is_string())) {
            fail(where, ": content: a part without a \"type\"");
        }
        if (part.is_object() && part["type"] != "text" && !is_picture(part)) {
            fail(where, ": content: type: expected \"text\" or \"image\", found ",
                 part["type"].dump(-1, ' ', false, OrderedJson::error_handler_t::replace));
        }
        if (part.is_object() && part["type"] == "text" &&
            (!part.contains("text") || !part["text"].is_string())) {
            fail(where, ": content: text: expected a string");
        }
        if (is_picture(part)) pictures.push_back(picture_path(part));
    }
}

std::string folder_of(const std::string& path) {
    return std::filesystem::path(path).parent_path().string();
}

}  // namespace

Request request_from_messages(const OrderedJson& messages, std::vector<std::string> images,
                              const std::string& where, const std::string& folder) {
    if (!messages.is_array() || messages.empty()) fail(where, ": expected a list of messages");
    Request request;
    for (size_t i = 0; i < messages.size(); ++i) {
        read_message(messages[i], where + ": message " + std::to_string(i + 1), request.images);
    }
    size_t given = 0;
    for (std::string& picture : request.images) {
        if (picture.empty()) {
            if (given == images.size()) fail(where, ": a picture without a \"path\"");
            picture = images[given++];
        } else {
            picture = locate(picture, folder);
        }
    }
    if (given < images.size()) {
        fail(where, ": ", images.size(), " images are given, and the messages have ", given,
             " places without a \"path\"");
    }
    request.messages = std::make_shared<const OrderedJson>(messages);
    return request;
}

Request parse_request(const OrderedJson& json, const std::string& where,
                      const std::string& folder) {
    if (!json.is_object()) fail(where, ": expected an object with \"prompt\" or \"messages\"");
    const bool has_prompt = json.contains("prompt");
    if (has_prompt == json.contains("messages")) {
        fail(where, ": expected either \"prompt\" or \"messages\"");
    }
    for (const auto& [key, value] : json.items()) {
        if (key != "prompt" && key != "messages" && key != "images" && key != "tools") {
            fail(where, ": ", key, ": expected prompt, messages, images or tools");
        }
    }
    std::vector<std::string> images;
    if (json.contains("images")) {
        if (!json["images"].is_array()) fail(where, ": images: expected a list of files");
        for (const OrderedJson& image : json["images"]) {
            if (!image.is_string()) fail(where, ": images: expected a list of files");
            images.push_back(locate(image.get<std::string>(), folder));
        }
    }
    if (!has_prompt) {
        Request request =
            request_from_messages(json["messages"], images, where + ": messages", folder);
        if (json.contains("tools") && !json["tools"].is_null()) {
            if (!json["tools"].is_array()) fail(where, ": tools: expected a list");
            request.tools = std::make_shared<const OrderedJson>(json["tools"]);
        }
        request.where = where;
        return request;
    }
    if (!json["prompt"].is_string()) fail(where, ": prompt: expected a string");
    Request request;
    request.where = where;
    request.prompt = json["prompt"].get<std::string>();
    request.images = std::move(images);
    return request;
}

Request read_messages_file(const std::string& path, std::vector<std::string> images) {
    return request_from_messages(parse_ordered_json(read_input(path), path), std::move(images),
                                 path, folder_of(path));
}

std::vector<Request> read_batch_file(const std::string& path) {
    std::istringstream lines(read_input(path));
    std::vector<Request> requests;
    std::string line;
    for (int number = 1; std::getline(lines, line); ++number) {
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        const std::string where = path + " line " + std::to_string(number);
        requests.push_back(parse_request(parse_ordered_json(line, where), where, folder_of(path)));
    }
    if (requests.empty()) fail(path, ": expected one request a line, found none");
    return requests;
}

}  // namespace mllama
