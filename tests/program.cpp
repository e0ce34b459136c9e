#include "tests/program.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace mllama::test {

ProgramResult run_program(const std::string& program, const std::vector<std::string>& arguments,
                          const std::string& folder, const std::string& input,
                          const std::vector<std::string>& environment,
                          const std::function<void(pid_t)>& meanwhile) {
    const TemporaryDirectory files;
    files.write("in", input);
    const pid_t child = fork();
    if (child == 0) {
        const auto redirect = [&](const char* name, int flags, int descriptor) {
            const int file = open(files.file(name).c_str(), flags, 0600);
            dup2(file, descriptor);
        };
        redirect("in", O_RDONLY, STDIN_FILENO);
        redirect("out", O_WRONLY | O_CREAT, STDOUT_FILENO);
        redirect("err", O_WRONLY | O_CREAT, STDERR_FILENO);
        std::vector<std::string> words = {program};
        words.insert(words.end(), arguments.begin(), arguments.end());
        std::vector<char*> pointers;
        for (std::string& word : words) pointers.push_back(word.data());
        pointers.push_back(nullptr);
        for (const std::string& variable : environment) {
            const size_t equals = variable.find('=');
            setenv(variable.substr(0, equals).c_str(), variable.substr(equals + 1).c_str(), 1);
        }
        std::signal(SIGINT, SIG_DFL);  // a shell's background jobs have it ignored
        if (chdir(folder.c_str()) == 0) execv(program.c_str(), pointers.data());
        _exit(127);
    }
    if (meanwhile) meanwhile(child);
    int status = 0;
    waitpid(child, &status, 0);
    ProgramResult result;
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    result.out = read_bytes(files.file("out"));
    result.err = read_bytes(files.file("err"));
    return result;
}

}  // namespace mllama::test
