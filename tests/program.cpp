#include "tests/program.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include <thread>

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
        // A shell's background jobs have SIGINT ignored, those of nohup SIGHUP.
        for (const int signal : {SIGINT, SIGHUP, SIGTERM}) std::signal(signal, SIG_DFL);
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

ProgramResult run_until_signal(const std::string& program,
                               const std::vector<std::string>& arguments, const std::string& folder,
                               const std::string& pipe, int signal) {
    if (mkfifo(pipe.c_str(), 0600) != 0) throw std::runtime_error("cannot make " + pipe);
    int writer = -1;
    const ProgramResult result =
        run_program(program, arguments, folder, "", {}, [&](pid_t running) {
            // Opening this end succeeds when the program waits at the other.
            for (int i = 0; writer < 0 && i < 6000; ++i) {
                writer = open(pipe.c_str(), O_WRONLY | O_NONBLOCK);
                if (writer < 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
            }
            kill(running, signal);
        });
    close(writer);
    return result;
}

std::string terminal_of(const std::string& program, const std::vector<std::string>& arguments,
                        const std::string& folder) {
    int screen = -1;
    const pid_t child = forkpty(&screen, nullptr, nullptr, nullptr);
    if (child < 0) throw std::runtime_error("forkpty failed");
    if (child == 0) {
        std::vector<char*> argv{const_cast<char*>(program.c_str())};
        for (const std::string& argument : arguments) {
            argv.push_back(const_cast<char*>(argument.c_str()));
        }
        argv.push_back(nullptr);
        if (chdir(folder.c_str()) == 0) execv(program.c_str(), argv.data());
        _exit(127);
    }
    std::string bytes;
    char block[4096];
    for (ssize_t got = 0; (got = read(screen, block, sizeof block)) > 0;) {
        bytes.append(block, static_cast<size_t>(got));
    }
    close(screen);
    waitpid(child, nullptr, 0);

    std::string shown, line;
    for (size_t i = 0; i < bytes.size(); ++i) {
        if (bytes.compare(i, 4, "\r\x1b[K") == 0) {
            line.clear();
            i += 3;
        } else if (bytes[i] == '\n') {
            shown += line + "\n";
            line.clear();
        } else if (bytes[i] != '\r') {
            line += bytes[i];
        }
    }
    return shown + line;
}

}  // namespace mllama::test
