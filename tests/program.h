// Running the program as its users do, and places for files.
#pragma once

#include <string>
#include <vector>

namespace mllama::test {

/// A folder that goes when this does.
class TemporaryDirectory {
  public:
    TemporaryDirectory();
    ~TemporaryDirectory();
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

    [[nodiscard]] const std::string& path() const { return path_; }
    /// The path of a file in it.
    [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
    /// Writes a file and returns its path.
    std::string write(const std::string& name, const std::string& content) const;

  private:
    std::string path_;
};

struct ProgramResult {
    int exit_code = -1;  ///< 128 + the signal if one ended it
    std::string out;
    std::string err;
};

/// Runs `program arguments...` in `folder` with `input` as standard input; environment variables "NAME=value" are added.
ProgramResult run_program(const std::string& program, const std::vector<std::string>& arguments, const std::string& folder = ".",
                          const std::string& input = "", const std::vector<std::string>& environment = {});

/// The text of a file.
std::string read_text(const std::string& path);

}  // namespace mllama::test
