// Character classes by utf8proc's general categories, brought to one version of Unicode.
#include "tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace mllama {
namespace {

/// The general categories, as coarse as the patterns need them.
enum Category : uint8_t {
    Other,      // all the rest, unassigned code points included
    Letter,     // L
    Digit,      // Nd
    Number,     // Nl, No
    Mark,       // M
    Connector,  // Pc, punctuation such as '_'
};

struct Range {
    char32_t first, last;
    Category category;
};

/// tokenizers 0.22.2 splits with Oniguruma 6.9.10 and finds added tokens with Rust's regex-syntax
/// 0.8.8; both know Unicode 16.0. Distributions ship utf8proc with Unicode 14 (2.7), 15 (2.8), 15.1
/// (2.9), 16 (2.10) and later. These are the code points whose category differs between any of
/// those versions, with their category in 16.0: letters, digits and marks of 15.0 to 16.0, which an
/// older utf8proc does not know, and those of later versions (Other), which it must not know. No
/// code point that 14.0 had assigned changed. The tests compare all 1,112,064 with the libraries'
/// answers.
constexpr Range unicode_16[] = {
    {0x558, 0x558, Other},      {0x58B, 0x58C, Other},      {0x5C8, 0x5C9, Other},
    {0x88F, 0x88F, Other},      {0x897, 0x897, Mark},       {0xB53, 0xB54, Other},
    {0xC5C, 0xC5C, Other},      {0xCDC, 0xCDC, Other},      {0xCF3, 0xCF3, Mark},
    {0xECE, 0xECE, Mark},       {0x1ACF, 0x1AF0, Other},    {0x1C89, 0x1C8A, Letter},
    {0x208F, 0x208F, Other},    {0x209D, 0x209F, Other},    {0xA7CB, 0xA7CD, Letter},
    {0xA7CE, 0xA7CF, Other},    {0xA7D2, 0xA7D2, Other},    {0xA7D4, 0xA7D4, Other},
    {0xA7DA, 0xA7DC, Letter},   {0xA7DD, 0xA7F1, Other},    {0xAB6C, 0xAB6D, Other},
    {0x105C0, 0x105F3, Letter}, {0x107BB, 0x107BF, Other},  {0x10940, 0x10959, Other},
    {0x10D40, 0x10D49, Digit},  {0x10D4A, 0x10D65, Letter}, {0x10D69, 0x10D6D, Mark},
    {0x10D6F, 0x10D85, Letter}, {0x10EC2, 0x10EC4, Letter}, {0x10EC5, 0x10EFB, Other},
    {0x10EFC, 0x10EFF, Mark},   {0x1123F, 0x11240, Letter}, {0x11241, 0x11241, Mark},
    {0x11380, 0x11389, Letter}, {0x1138B, 0x1138B, Letter}, {0x1138E, 0x1138E, Letter},
    {0x11390, 0x113B5, Letter}, {0x113B7, 0x113B7, Letter}, {0x113B8, 0x113C0, Mark},
    {0x113C2, 0x113C2, Mark},   {0x113C5, 0x113C5, Mark},   {0x113C7, 0x113CA, Mark},
    {0x113CC, 0x113D0, Mark},   {0x113D1, 0x113D1, Letter}, {0x113D2, 0x113D2, Mark},
    {0x113D3, 0x113D3, Letter}, {0x113E1, 0x113E2, Mark},   {0x116D0, 0x116E3, Digit},
    {0x11B0A, 0x11B67, Other},  {0x11BC0, 0x11BE0, Letter}, {0x11BF0, 0x11BF9, Digit},
    {0x11DB0, 0x11DF1, Other},  {0x11F00, 0x11F01, Mark},   {0x11F02, 0x11F02, Letter},
    {0x11F03, 0x11F03, Mark},   {0x11F04, 0x11F10, Letter}, {0x11F12, 0x11F33, Letter},
    {0x11F34, 0x11F3A, Mark},   {0x11F3E, 0x11F42, Mark},   {0x11F50, 0x11F59, Digit},
    {0x11F5A, 0x11F5A, Mark},   {0x1246F, 0x1247F, Other},  {0x12550, 0x12686, Other},
    {0x1342F, 0x1342F, Letter}, {0x13440, 0x13440, Mark},   {0x13441, 0x13446, Letter},
    {0x13447, 0x13455, Mark},   {0x13460, 0x143FA, Letter}, {0x16100, 0x1611D, Letter},
    {0x1611E, 0x1612F, Mark},   {0x16130, 0x16139, Digit},  {0x16D40, 0x16D6C, Letter},
    {0x16D70, 0x16D79, Digit},  {0x16EA0, 0x16ED3, Other},  {0x16FF2, 0x16FF6, Other},
    {0x187F8, 0x187FF, Other},  {0x18CD6, 0x18CDA, Other},  {0x18CFF, 0x18CFF, Letter},
    {0x18D09, 0x191D2, Other},  {0x1B123, 0x1B128, Other},  {0x1B132, 0x1B132, Letter},
    {0x1B155, 0x1B155, Letter}, {0x1B168, 0x1B168, Other},  {0x1CCF0, 0x1CCF9, Digit},
    {0x1D127, 0x1D128, Other},  {0x1D250, 0x1D281, Other},  {0x1D2C0, 0x1D2D3, Number},
    {0x1D6A6, 0x1D6A6, Other},  {0x1DF1F, 0x1DF24, Other},  {0x1DF25, 0x1DF2A, Letter},
    {0x1DF2B, 0x1DFFF, Other},  {0x1E030, 0x1E06D, Letter}, {0x1E08F, 0x1E08F, Mark},
    {0x1E4D0, 0x1E4EB, Letter}, {0x1E4EC, 0x1E4EF, Mark},   {0x1E4F0, 0x1E4F9, Digit},
    {0x1E5D0, 0x1E5ED, Letter}, {0x1E5EE, 0x1E5EF, Mark},   {0x1E5F0, 0x1E5F0, Letter},
    {0x1E5F1, 0x1E5FA, Digit},  {0x1E6C0, 0x1E6FF, Other},  {0x2B739, 0x2B739, Letter},
    {0x2B73A, 0x2B73F, Other},  {0x2B81E, 0x2B81E, Other},  {0x2CEA2, 0x2CEAD, Other},
    {0x2EBF0, 0x2EE5D, Letter}, {0x31350, 0x323AF, Letter}, {0x323B0, 0x33479, Other},
    {0x3D000, 0x3FC3F, Other},
};

/// Other_Alphabetic symbols (circled and squared Latin letters): \w, though neither letters nor
/// marks.
constexpr Range alphabetic_symbols[] = {
    {0x24B6, 0x24E9, Other},
    {0x1F130, 0x1F149, Other},
    {0x1F150, 0x1F169, Other},
    {0x1F170, 0x1F189, Other},
};

/// The range of a sorted table that holds `code`, or null.
template <size_t n>
const Range* find_range(const Range (&table)[n], char32_t code) {
    const Range* range = std::lower_bound(std::begin(table), std::end(table), code,
                                          [](const Range& r, char32_t c) { return r.last < c; });
    return range != std::end(table) && range->first <= code ? range : nullptr;
}

Category category_of(char32_t code) {
    if (const Range* range = find_range(unicode_16, code)) return range->category;
    switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
        case UTF8PROC_CATEGORY_LU:
        case UTF8PROC_CATEGORY_LL:
        case UTF8PROC_CATEGORY_LT:
        case UTF8PROC_CATEGORY_LM:
        case UTF8PROC_CATEGORY_LO:
            return Letter;
        case UTF8PROC_CATEGORY_ND:
            return Digit;
        case UTF8PROC_CATEGORY_NL:
        case UTF8PROC_CATEGORY_NO:
            return Number;
        case UTF8PROC_CATEGORY_MN:
        case UTF8PROC_CATEGORY_MC:
        case UTF8PROC_CATEGORY_ME:
            return Mark;
        case UTF8PROC_CATEGORY_PC:
            return Connector;
        default:
            return Other;
    }
}

CharClass classify(char32_t code) {
    if (code == '\r' || code == '\n') return CharClass::Newline;
    if (is_white_space(code)) return CharClass::Space;
    switch (category_of(code)) {
        case Letter:
            return CharClass::Letter;
        case Digit:
        case Number:
            return CharClass::Number;
        default:
            return CharClass::Other;
    }
}

/// The classes of ASCII, which is most of most texts.
const std::array<CharClass, 128> ascii_classes = [] {
    std::array<CharClass, 128> classes{};
    for (size_t code = 0; code < classes.size(); ++code) {
        classes[code] = classify(static_cast<char32_t>(code));
    }
    return classes;
}();

bool is_continuation(uint8_t byte) {
    return (byte & 0xC0) == 0x80;
}

/// What a lead byte announces: the length of the sequence and the second bytes it allows
/// (Unicode 16, table 3-7: neither overlong forms nor surrogates nor beyond U+10FFFF).
struct Lead {
    uint8_t length;  // 0: no lead byte
    uint8_t low, high;
};

Lead lead_of(uint8_t byte) {
    if (byte < 0x80) return {1, 0, 0};
    if (byte < 0xC2) return {0, 0, 0};
    if (byte < 0xE0) return {2, 0x80, 0xBF};
    if (byte == 0xE0) return {3, 0xA0, 0xBF};
    if (byte == 0xED) return {3, 0x80, 0x9F};
    if (byte < 0xF0) return {3, 0x80, 0xBF};
    if (byte == 0xF0) return {4, 0x90, 0xBF};
    if (byte < 0xF4) return {4, 0x80, 0xBF};
    if (byte == 0xF4) return {4, 0x80, 0x8F};
    return {0, 0, 0};
}

}  // namespace

Utf8Step read_utf8(std::string_view text, size_t pos) {
    const auto byte_at = [&](size_t i) { return static_cast<uint8_t>(text[pos + i]); };
    const uint8_t first = byte_at(0);
    if (first < 0x80) return {first, 1, Utf8Step::Status::Valid};
    const Lead lead = lead_of(first);
    if (lead.length == 0) return {};
    char32_t code = first & (0x7FU >> lead.length);
    for (uint8_t i = 1; i < lead.length; ++i) {
        if (pos + i == text.size()) return {0xFFFD, i, Utf8Step::Status::Truncated};
        const uint8_t byte = byte_at(i);
        const bool fits = i == 1 ? lead.low <= byte && byte <= lead.high : is_continuation(byte);
        if (!fits) return {0xFFFD, i, Utf8Step::Status::Invalid};
        code = code << 6 | (byte & 0x3FU);
    }
    return {code, lead.length, Utf8Step::Status::Valid};
}

size_t find_invalid_utf8(std::string_view text) {
    for (size_t pos = 0; pos < text.size();) {
        const Utf8Step step = read_utf8(text, pos);
        if (step.status != Utf8Step::Status::Valid) return pos;
        pos += step.length;
    }
    return std::string_view::npos;
}

size_t append_utf8_lossy(std::string_view bytes, bool final, std::string& out) {
    size_t pos = 0;
    while (pos < bytes.size()) {
        const Utf8Step step = read_utf8(bytes, pos);
        if (step.status == Utf8Step::Status::Truncated && !final) break;
        if (step.status == Utf8Step::Status::Valid) {
            out.append(bytes.substr(pos, step.length));
        } else {
            out.append("\xEF\xBF\xBD");  // U+FFFD
        }
        pos += step.length;
    }
    return pos;
}

CharClass char_class(char32_t code) {
    return code < 128 ? ascii_classes[code] : classify(code);
}

bool is_white_space(char32_t code) {
    return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
           code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_word_char(char32_t code) {
    if (code == 0x200C || code == 0x200D) return true;  // Join_Control
    switch (category_of(code)) {
        case Letter:
        case Digit:
        case Mark:
        case Connector:
            return true;
        case Number:
            return utf8proc_category(static_cast<utf8proc_int32_t>(code)) == UTF8PROC_CATEGORY_NL;
        default:
            return find_range(alphabetic_symbols, code) != nullptr;
    }
}

}  // namespace mllama
