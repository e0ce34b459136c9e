#include "io/printable.h"

#include <utf8proc.h>

#include <cstdio>

namespace mllama {

std::string printable(std::string_view text, size_t longest) {
    std::string shown;
    size_t place = 0;
    while (place < text.size() && place < longest) {
        const auto* next = reinterpret_cast<const utf8proc_uint8_t*>(text.data() + place);
        utf8proc_int32_t character = 0;
        const utf8proc_ssize_t length =
            utf8proc_iterate(next, static_cast<utf8proc_ssize_t>(text.size() - place), &character);
        const size_t bytes = length > 0 ? static_cast<size_t>(length) : 1;
        if (length > 0 && utf8proc_category(character) != UTF8PROC_CATEGORY_CC) {
            shown += text.substr(place, bytes);
        } else {
            for (size_t i = 0; i < bytes; ++i) {
                char code[8];
                std::snprintf(code, sizeof code, "\\x%02X", next[i]);
                shown += code;
            }
        }
        place += bytes;
    }
    return place < text.size() ? shown + "..." : shown;
}

}  // namespace mllama
