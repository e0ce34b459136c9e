// The JSON header of a safetensors file, read as hostile input.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"

namespace mllama {

struct SafetensorsHeader {
    std::vector<TensorInfo> tensors;  ///< in the order in which they lie in the file; begin counts
                                      ///< from the start of the file
    std::map<std::string, std::string> metadata;
};

/// Reads the header of a file of these bytes and checks it against the size of the file. Only the
/// header is touched. Errors as SafetensorsFile::open; `path` is for messages.
SafetensorsHeader read_safetensors_header(std::string_view file, const std::string& path);

/// Bits of an element of a dtype that the format knows, by its name in the file; 0: not known.
int64_t safetensors_dtype_bits(std::string_view name);

}  // namespace mllama
