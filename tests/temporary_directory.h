// What tests of files need: a directory that goes away, files with given bytes, and the message of
// an expected error.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kernels/error.h"

namespace mllama::test {

/// An empty directory of its own, removed at the end.
class TemporaryDirectory {
  public:
    TemporaryDirectory() {
        std::string name = (std::filesystem::temp_directory_path() / "mllama_test_XXXXXX").string();
        if (!::mkdtemp(name.data())) throw std::runtime_error("cannot make " + name);
        path_ = name;
    }
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    ~TemporaryDirectory() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    [[nodiscard]] const std::string& path() const { return path_; }
    /// The path of a file in it.
    [[nodiscard]] std::string operator/(std::string_view file) const {
        return path_ + "/" + std::string(file);
    }
    [[nodiscard]] std::string file(std::string_view name) const { return *this / name; }
    /// Writes a file and returns its path.
    std::string write(std::string_view name, std::string_view content) const;
    /// Files and directories in it.
    [[nodiscard]] int64_t entries() const {
        const std::filesystem::directory_iterator all(path_);
        return std::distance(begin(all), end(all));
    }

  private:
    std::string path_;
};

inline void write_bytes(const std::string& path, std::string_view bytes) {
    std::ofstream file(path, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file) throw std::runtime_error("cannot write " + path);
}

inline std::string TemporaryDirectory::write(std::string_view name,
                                             std::string_view content) const {
    write_bytes(file(name), content);
    return file(name);
}

inline std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// The message of the Error that `action` throws; "" if it throws none. Other exceptions pass
/// through and fail the test.
template <class Action>
std::string error_of(const Action& action) {
    try {
        static_cast<void>(action());
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

/// `text` holds all parts.
inline bool holds_all(std::string_view text, std::initializer_list<std::string_view> parts) {
    for (const std::string_view part : parts) {
        if (text.find(part) == std::string_view::npos) return false;
    }
    return true;
}

}  // namespace mllama::test
