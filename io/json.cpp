// JSON reading with errors that name the file and the place.
#include "io/json.h"

#include <algorithm>

namespace mllama {
namespace {

/// "line L column C" of byte `offset` (1-based, as the parser counts) of `text`.
std::string place(std::string_view text, size_t offset) {
    const std::string_view before =
        text.substr(0, std::min(offset > 0 ? offset - 1 : 0, text.size()));
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t newline = before.rfind('\n');
    const size_t column = before.size() - (newline == std::string_view::npos ? 0 : newline + 1) + 1;
    return "line " + std::to_string(line) + " column " + std::to_string(column);
}

/// Lists and objects within each other. Far more than any real file has; little enough that what
/// walks, copies or writes a value by recursion has the stack for it.
constexpr int64_t max_depth = 500;

/// What the parser itself lets pass: a text nested without bound, and anything behind a zero byte.
void check_before_parsing(std::string_view text, const std::string& name) {
    int64_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\') ++i;
            if (c == '"') in_string = false;
            continue;
        }
        if (c == '"') in_string = true;
        if (c == '[' || c == '{') ++depth;
        if (c == ']' || c == '}') --depth;
        if (depth > max_depth) {
            fail(name, ": nested deeper than ", max_depth, " lists and objects at ",
                 place(text, i + 1));
        }
        if (c == '\0') fail(name, ": not valid JSON at ", place(text, i + 1));
    }
}

template <class AnyJson>
AnyJson parse(std::string_view text, const std::string& name) {
    check_before_parsing(text, name);
    try {
        return AnyJson::parse(text.begin(), text.end());
    } catch (const nlohmann::json::parse_error& error) {
        fail(name, ": not valid JSON at ", place(text, error.byte));
    } catch (const nlohmann::json::exception& error) {
        fail(name, ": not valid JSON: ", error.what());
    }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& name) {
    return parse<Json>(text, name);
}

OrderedJson parse_ordered_json(std::string_view text, const std::string& name) {
    return parse<OrderedJson>(text, name);
}

Json read_json_file(const std::string& path) {
    return parse_json(read_file(path), path);
}

}  // namespace mllama
