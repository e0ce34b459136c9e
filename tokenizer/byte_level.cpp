// The two directions of the byte-level alphabet, by tables.
#include "tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "tokenizer/unicode.h"

namespace mllama {
namespace {

constexpr char32_t alphabet_end = 0x100 + 68;  // one past the last character

struct Alphabet {
    std::array<std::string, 256> spelling;                // of a byte, UTF-8
    std::array<int16_t, alphabet_end> byte_of_char = {};  // -1: not in the alphabet
};

bool stands_for_itself(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

const Alphabet& alphabet() {
    static const Alphabet table = [] {
        Alphabet result;
        result.byte_of_char.fill(-1);
        int next = 0x100;
        for (int byte = 0; byte < 256; ++byte) {
            const int code = stands_for_itself(byte) ? byte : next++;
            std::string& spelling = result.spelling[static_cast<size_t>(byte)];
            if (code < 0x80) {
                spelling = {static_cast<char>(code)};
            } else {
                spelling = {static_cast<char>(0xC0 | code >> 6),
                            static_cast<char>(0x80 | (code & 0x3F))};
            }
            result.byte_of_char[static_cast<size_t>(code)] = static_cast<int16_t>(byte);
        }
        return result;
    }();
    return table;
}

}  // namespace

std::string_view byte_level_char(unsigned char byte) {
    return alphabet().spelling[byte];
}

void append_byte_level(std::string_view bytes, std::string& out) {
    const Alphabet& table = alphabet();
    for (const char byte : bytes) out += table.spelling[static_cast<unsigned char>(byte)];
}

void append_token_bytes(std::string_view spelling, std::string& out) {
    const Alphabet& table = alphabet();
    const size_t start = out.size();
    for (size_t pos = 0; pos < spelling.size();) {
        const Utf8Step step = read_utf8(spelling, pos);
        const int byte = step.code < alphabet_end ? table.byte_of_char[step.code] : -1;
        if (byte < 0) {
            out.resize(start);
            out += spelling;
            return;
        }
        out += static_cast<char>(byte);
        pos += step.length;
    }
}

}  // namespace mllama
