// Text from outside as a terminal may be shown it.
#pragma once

#include <string>
#include <string_view>

namespace mllama {

/// One line without surprises: bytes that are no UTF-8 and those of control characters (C0, DEL, C1:
/// what moves the cursor, rings and recolours) as \xNN. Cut after `longest` bytes of the text, or
/// the character that ends there.
std::string printable(std::string_view text, size_t longest = 200);

}  // namespace mllama
