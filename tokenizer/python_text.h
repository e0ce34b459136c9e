// The parts of Python's str, int and float that a template can see, over UTF-8 strings.
//
// Templates are written against Python: len() counts code points, "ß"|upper is "SS", 1e16 prints as
// "1e+16". Everything here follows CPython 3.11 (Objects/unicodeobject.c, Objects/unicodectype.c,
// Python/pystrtod.c). Strings are valid UTF-8 throughout; whoever lets a string in checks that with
// `is_valid_utf8`. Positions and counts are code points unless a name says bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mllama {

// --- UTF-8 ---

bool is_valid_utf8(std::string_view text);
int64_t count_code_points(std::string_view text);
std::u32string decode_utf8(std::string_view text);
std::string encode_utf8(std::u32string_view text);
/// The character at `byte`, which moves behind it; `byte` is the start of one.
char32_t next_code_point(std::string_view text, size_t& byte);
void append_utf8(std::string& text, char32_t code_point);
/// The byte at which code point number `index` starts; text.size() if there are fewer.
size_t byte_offset(std::string_view text, int64_t index);

// --- one character ---

bool python_is_space(char32_t c);      ///< str.isspace, and what strip() and \s take as white space
bool python_is_printable(char32_t c);  ///< str.isprintable: repr() shows it as it is
bool python_is_alpha(char32_t c);
bool python_is_decimal(char32_t c);
bool python_is_digit(char32_t c);
bool python_is_numeric(char32_t c);
bool python_is_upper(char32_t c);
bool python_is_lower(char32_t c);
bool python_is_title(char32_t c);
bool python_is_identifier_start(char32_t c);
bool python_is_identifier_part(char32_t c);

// --- strings ---

std::string python_upper(std::string_view text);
std::string python_lower(std::string_view text);
std::string python_swapcase(std::string_view text);
std::string python_capitalize(std::string_view text);
std::string python_title(
    std::string_view text);  ///< str.title(): a word starts after an uncased character
bool python_string_is_lower(
    std::string_view text);  ///< str.islower(): some cased character, none of upper case
bool python_string_is_upper(std::string_view text);
bool python_string_is_title(std::string_view text);

enum class StripSide { left, right, both };
/// str.strip(chars), lstrip, rstrip; white space without `chars`. The result is a part of `text`.
std::string_view python_strip(std::string_view text, StripSide side,
                              const std::optional<std::string>& chars = std::nullopt);

/// str.split() and rsplit(): `limit` splits at most, all if negative. Without a separator: at runs
/// of white space, no empty parts. `separator` is not empty.
std::vector<std::string> python_split(std::string_view text,
                                      const std::optional<std::string>& separator, int64_t limit,
                                      bool from_right);
std::vector<std::string> python_split_lines(std::string_view text, bool keep_ends);

/// repr(text): quoted, with escapes, as Python chooses them.
std::string python_repr(std::string_view text);

// --- numbers ---

/// repr(value): the shortest digits that read back as `value`; "1e+16", "inf", "nan".
std::string python_repr(double value);
/// int(text, base) and float(text); nothing if Python raises ValueError. Integers beyond 64 bits
/// too.
std::optional<int64_t> parse_python_int(std::string_view text, int base);
std::optional<double> parse_python_float(std::string_view text);

}  // namespace mllama
