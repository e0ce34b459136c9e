// The one exception type of the project. It lives in the lowest folder so that everything may throw it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace mllama {

/// Bad input, of whatever kind: a file, a tensor, an option, a request. The message is one line that names the
/// file and the thing, what was expected and what was found. (A mistake of the program itself is an assert.)
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// Throws Error with all arguments written one after the other: fail(path, ": expected ", n, " rows").
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw Error(message.str());
}

}  // namespace mllama
