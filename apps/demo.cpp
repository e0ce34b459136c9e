// mllama demo: the bundled model is asked about the bundled pictures. What it takes is apps/demo:
// model/, pictures/, questions.json.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "apps/cli.h"
#include "apps/terminal.h"
#include "io/json.h"

namespace mllama {
namespace {

namespace fs = std::filesystem;

struct Arguments {
    std::string folder;
    int threads = 0;
    bool no_pictures = false;
};

struct Question {
    Request request;
    std::string text;    ///< the question itself
    std::string answer;  ///< the right one
};

/// Where the demo lies: beside a build folder, or where `make install` puts it.
std::string find_folder() {
    std::error_code error;
    const fs::path program = fs::read_symlink("/proc/self/exe", error).parent_path();
    for (const fs::path& folder :
         {program / "../apps/demo", program / "../share/mllama/demo", fs::path("apps/demo")}) {
        if (fs::exists(folder / "questions.json", error)) return folder.lexically_normal().string();
    }
    fail("the demo's folder was not found beside ", program.string(), "; name it with --folder");
}

std::vector<Question> read_questions(const std::string& folder) {
    const std::string path = folder + "/questions.json";
    const OrderedJson json = parse_ordered_json(read_file(path), path);
    std::vector<Question> questions;
    try {
        for (const OrderedJson& entry : json) {
            questions.push_back({request_from_messages(entry.at("messages"), {}, path, folder),
                                 entry.at("question").get<std::string>(),
                                 entry.at("answer").get<std::string>()});
        }
    } catch (const OrderedJson::exception& error) {
        fail(path, ": expected a list of {question, answer, messages}: ", error.what());
    }
    if (questions.empty()) fail(path, ": expected questions, found none");
    return questions;
}

class Demo {
  public:
    Demo(const Mllama& mllama, const Arguments& arguments)
        : mllama_(mllama), arguments_(arguments) {
        options_ = mllama.default_options();
        options_.sampling.greedy = true;
        options_.max_new_tokens = 64;
        draws_ = !arguments.no_pictures && isatty(STDOUT_FILENO) == 1 && !std::getenv("NO_COLOR");
    }

    void ask(const Question& question) {
        for (const std::string& image : question.request.images) {
            if (draws_) std::cout << "\n" << picture_in_blocks(load_image(image), 64, 20);
            std::cout << fs::path(image).filename().string() << "\n";
        }
        std::cout << "\n  " << question.text << "\n  > " << std::flush;
        const Prompt prompt = mllama_.prepare(question.request, {});
        const Completion completion =
            mllama_.generate({&prompt, 1}, options_, observe(1, true, nullptr)).front();
        const bool right = completion.text == question.answer;
        std::cout << (right ? "   (right)" : "   (wrong: " + question.answer + ")") << "\n";
        right_ += right ? 1 : 0;
        ++asked_;
        const Timings& t = completion.timings;
        total_.vision_s += t.vision_s;
        total_.prefill_s += t.prefill_s;
        total_.prefill_tokens += t.prefill_tokens;
        total_.decode_s += t.decode_s;
        total_.decode_tokens += t.decode_tokens;
    }

    void summarise(double load_s) const {
        std::cout << "\n"
                  << right_ << " of " << asked_ << " right. Loaded in " << duration_text(load_s)
                  << "; " << timings_text(total_) << " (" << ops::isa_name() << ", "
                  << ops::threads() << " threads).\n"
                  << "\nThe same program runs Llama 3.2 Vision from its published directory:\n"
                     "  mllama chat     -m Llama-3.2-11B-Vision-Instruct --image cat.png\n"
                     "  mllama generate -m Llama-3.2-11B-Vision-Instruct --image cat.png -p "
                     "'<|image|>This picture shows'\n"
                     "Ask this little one something yourself:\n"
                     "  mllama chat     -m "
                  << arguments_.folder << "/model --image FILE\n";
    }

  private:
    const Mllama& mllama_;
    const Arguments& arguments_;
    GenerationOptions options_;
    bool draws_;
    Timings total_;
    int right_ = 0;
    int asked_ = 0;
};

void run(Arguments arguments) {
    if (arguments.folder.empty()) arguments.folder = find_folder();
    if (arguments.threads > 0) ops::set_threads(arguments.threads);
    const std::vector<Question> questions = read_questions(arguments.folder);
    const Stopwatch loading;
    const Mllama mllama = Mllama::load(arguments.folder + "/model", {});
    const double load_s = loading.seconds();
    catch_interrupts();
    Demo demo(mllama, arguments);
    for (const Question& question : questions) demo.ask(question);
    demo.summarise(load_s);
}

}  // namespace

void add_demo(CLI::App& app) {
    auto* command =
        app.add_subcommand("demo", "Ask the bundled little model about the bundled pictures");
    auto arguments = std::make_shared<Arguments>();
    command
        ->add_option("--folder", arguments->folder,
                     "The demo's folder; default: beside this program")
        ->type_name("DIR");
    command
        ->add_option("-t,--threads", arguments->threads,
                     "Threads; default: the physical cores this process may use")
        ->check(CLI::Range(1, 1024))
        ->type_name("N");
    command->add_flag("--no-pictures", arguments->no_pictures,
                      "Do not draw the pictures; where the output is no terminal, or NO_COLOR is "
                      "set, they are not drawn either");
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
