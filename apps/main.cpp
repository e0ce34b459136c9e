// mllama: Llama 3.2 Vision from the published checkpoint directory. One subcommand an app, one file
// a subcommand.
//
// Exit codes: 0 done; 1 the work failed (one line on standard error); 2 the command line is wrong.

#include <csignal>
#include <cstdio>
#include <iostream>
#include <new>

#include "apps/cli.h"
#include "apps/terminal.h"
#include "io/printable.h"

namespace {

int report(const std::string& what) {
    std::cout.flush();
    mllama::report_error(what);
    return 1;
}

/// Takes the command line apart; the command that it names does its work meanwhile.
int run(int argc, char** argv) {
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
    mllama::add_quantize(app);
    mllama::add_bench(app);
    mllama::add_demo(app);
    const auto is_wanted = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
    if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(is_wanted).empty()) {
        std::cerr << "mllama: there is no command " << mllama::printable(argv[1])
                  << "; mllama --help lists them" << std::endl;
        return 2;
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : 2;
    }
    std::cout.flush();
    if (!std::cout || std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
        return report("standard output: cannot be written");
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error of writing
    mllama::end_on_interrupts();
    try {
        return run(argc, argv);
    } catch (const std::bad_alloc&) {
        return report("out of memory");
    } catch (const std::exception& error) {
        return report(error.what());
    }
}
