// Running the program as its users do.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/temporary_directory.h"

namespace mllama::test {

struct ProgramResult {
    int exit_code = -1;  ///< 128 + the signal if one ended it
    std::string out;
    std::string err;
};

/// Runs `program arguments...` in `folder` with `input` as standard input; environment variables
/// "NAME=value" are added. `meanwhile` is called with the running process.
ProgramResult run_program(const std::string& program, const std::vector<std::string>& arguments,
                          const std::string& folder = ".", const std::string& input = "",
                          const std::vector<std::string>& environment = {},
                          const std::function<void(pid_t)>& meanwhile = {});

/// Runs a program one of whose arguments is `pipe`, which is made, and sends it `signal` when it opens the
/// pipe to read its input there.
ProgramResult run_until_signal(const std::string& program,
                               const std::vector<std::string>& arguments, const std::string& folder,
                               const std::string& pipe, int signal);

/// Runs a program in a terminal and returns what stands there at the end: lines as they were last
/// drawn ("\r" and "\x1b[K" are understood), ended by "\n".
std::string terminal_of(const std::string& program, const std::vector<std::string>& arguments,
                        const std::string& folder);

}  // namespace mllama::test
