#include "io/read_file.h"

#include "io/input_file.h"

namespace mllama {

std::string read_file(const std::string& path, int64_t limit) {
    return InputFile(path, InputFile::Kind::regular).read_to_end(limit);
}

std::string read_input(const std::string& path, int64_t limit) {
    return InputFile(path, InputFile::Kind::any).read_to_end(limit);
}

}  // namespace mllama
