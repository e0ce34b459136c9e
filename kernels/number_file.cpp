#include "kernels/number_file.h"

#include <fstream>

namespace mllama::cpu {

int64_t number_in_file(const std::string& path, const std::string& key) {
    std::ifstream file(path);
    std::string word;
    int64_t number = -1;
    while (!key.empty() && file >> word && word != key) {
    }
    return file >> number ? number : -1;
}

}  // namespace mllama::cpu
