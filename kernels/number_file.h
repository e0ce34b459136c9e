// The numbers that Linux tells in small text files.
#pragma once

#include <cstdint>
#include <string>

namespace mllama::cpu {

/// The number behind the word `key` of a file, or with no key the one it begins with; -1: there is no
/// such file, word or number ("max").
int64_t number_in_file(const std::string& path, const std::string& key = {});

}  // namespace mllama::cpu
