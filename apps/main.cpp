// mllama: Llama 3.2 Vision from the published checkpoint directory. One subcommand an app, one file
// a subcommand.
//
// Exit codes: 0 done; 1 the work failed (one line on standard error); 2 the command line is wrong.
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <new>

#include "apps/cli.h"

namespace {

/// An error is one line, whatever was in it.
std::string one_line(std::string text) {
    for (char& c : text) {
        if (c == '\n' || c == '\r') c = ' ';
    }
    return text;
}

int report(const std::string& what) {
    std::cout.flush();
    std::cerr << "mllama: error: " << one_line(what) << std::endl;
    return 1;
}

/// OpenMP's threads wait for work by spinning, for milliseconds. On a machine that does other
/// things too, a thread that spins keeps the one that it waits for from running, and a step takes a
/// hundred times as long. The spinning is cut to some 100 microseconds; the library reads that
/// setting before main, so the program starts itself once more.
void limit_spinning(char** argv) {
    if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
    setenv("GOMP_SPINCOUNT", "10000", 1);
    execv("/proc/self/exe",
          argv);  // returns only if it fails: then the work is done with the spinning
}

}  // namespace

int main(int argc, char** argv) {
    limit_spinning(argv);
    prctl(PR_SET_NAME, "mllama");
    std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error of writing
    CLI::App app{"Llama 3.2 Vision (11B, 90B) straight from the published checkpoint directory."};
    app.name("mllama");
    app.require_subcommand(1);
    app.set_version_flag("--version", "mllama 0.1.0");
    app.footer(
        "Try:  mllama demo\n"
        "      mllama generate -m DIR --image cat.png -p '<|image|><|begin_of_text|>This is'\n"
        "      mllama chat -m DIR\n"
        "`mllama COMMAND --help` documents every option of a command.");
    mllama::add_generate(app);
    mllama::add_chat(app);
    mllama::add_forward(app);
    mllama::add_preprocess(app);
    mllama::add_tokenize(app);
    mllama::add_inspect(app);
    mllama::add_bench(app);
    mllama::add_demo(app);
    try {
        app.parse(argc, argv);
        std::cout.flush();
        if (!std::cout || std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
            return report("standard output: cannot be written");
        }
        return 0;
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : 2;
    } catch (const std::bad_alloc&) {
        return report("out of memory");
    } catch (const std::exception& error) {
        return report(error.what());
    }
}
