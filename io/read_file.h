// Whole files as bytes.
#pragma once

#include <cstdint>
#include <string>

namespace mllama {

/// More than any file that is read whole has.
constexpr int64_t most_file_bytes = int64_t{1} << 30;

/// A file of a checkpoint: a regular one. Errors: Error that names the path and the system's reason
/// (missing, a directory, a pipe, too large for `limit`).
std::string read_file(const std::string& path, int64_t limit = most_file_bytes);

/// What a user names: a file, or a pipe or terminal that is read to its end (/dev/stdin, a shell's
/// process substitution). Errors: as read_file.
std::string read_input(const std::string& path, int64_t limit = most_file_bytes);

}  // namespace mllama
