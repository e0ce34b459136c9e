// mllama chat: a conversation in the terminal, with pictures at any turn.
#include <unistd.h>

#include <iostream>

#include "apps/cli.h"
#include "apps/sampling_arguments.h"
#include "apps/terminal.h"
#include "io/json.h"
#include "io/printable.h"

namespace mllama {
namespace {

struct Arguments {
    ModelArguments model;
    SamplingArguments sampling;
    std::string system;
    std::string date;
    std::vector<std::string> images;
};

const char* const commands_help =
    "  /image FILE   shows a picture with your next message (several times: several pictures)\n"
    "  /clear        forgets the conversation\n"
    "  /help         this\n"
    "  /exit         ends (so does Ctrl-D); Ctrl-C ends an answer\n";

/// The talk so far, and what the model has seen of it.
class Conversation {
  public:
    Conversation(const Mllama& mllama, std::string system, std::string date)
        : mllama_(mllama),
          system_(std::move(system)),
          date_(std::move(date)),
          session_(mllama.new_session()) {
        clear();
    }

    void clear() {
        messages_ = OrderedJson::array();
        if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
        pictures_.clear();
        new_pictures_ = 0;
        session_ = mllama_.new_session();
    }

    /// The next message will show this picture. Errors: an unreadable file; nothing has changed
    /// then.
    void show(const std::string& path) {
        pictures_.push_back(mllama_.load_picture(path));
        ++new_pictures_;
    }

    /// Asks and answers; the turn is kept only if it went well or was interrupted after the answer
    /// had begun.
    Completion ask(const std::string& text, const GenerationOptions& options,
                   GenerationObserver observer) {
        const OrderedJson before = messages_;
        messages_.push_back({{"role", "user"}, {"content", user_content(text)}});
        std::string said;
        observer.text = [&said, show = observer.text](size_t request, const std::string& piece) {
            said += piece;
            if (show) show(request, piece);
        };
        try {
            Prompt prompt;
            Request request;
            request.messages = std::make_shared<const OrderedJson>(messages_);
            prompt.ids = mllama_.encode(mllama_.prompt_text(request, {date_, true}));
            prompt.images = pictures_;
            Completion completion = mllama_.go_on(session_, prompt, options, observer);
            remember(completion.text);
            return completion;
        } catch (const Interrupted&) {
            if (said.empty()) {
                forget_turn(before);
            } else {
                remember(said);
            }
            throw;
        } catch (...) {
            forget_turn(before);
            throw;
        }
    }

  private:
    [[nodiscard]] OrderedJson user_content(const std::string& text) const {
        OrderedJson content = OrderedJson::array();
        for (size_t i = 0; i < new_pictures_; ++i) content.push_back({{"type", "image"}});
        content.push_back({{"type", "text"}, {"text", text}});
        return content;
    }

    /// As before the turn that failed; its pictures go too.
    void forget_turn(const OrderedJson& before) {
        messages_ = before;
        pictures_.resize(pictures_.size() - new_pictures_);
        new_pictures_ = 0;
        if (session_.sequence.num_images() > static_cast<int64_t>(pictures_.size())) {
            session_ = mllama_.new_session();
        }
    }

    void remember(const std::string& answer) {
        messages_.push_back({{"role", "assistant"}, {"content", answer}});
        new_pictures_ = 0;
    }

    const Mllama& mllama_;
    std::string system_;
    std::string date_;
    OrderedJson messages_;
    std::vector<ProcessedImage> pictures_;  // of all turns, in order
    size_t new_pictures_ = 0;               // of the turn that is being written
    Session session_;
};

/// "/image cat.png" with spaces and quotes around the name taken away.
std::string argument_of(const std::string& line, size_t command_length) {
    const auto begin = line.find_first_not_of(" \t\"'", command_length);
    if (begin == std::string::npos) return {};
    return line.substr(begin, line.find_last_not_of(" \t\"'\r") - begin + 1);
}

bool starts_with_word(const std::string& line, const std::string& word) {
    return line.compare(0, word.size(), word) == 0 &&
           (line.size() == word.size() || line[word.size()] == ' ' || line[word.size()] == '\t');
}

class Chat {
  public:
    Chat(const Mllama& mllama, const Arguments& arguments)
        : conversation_(mllama, arguments.system, arguments.date),
          options_(arguments.sampling.over(mllama.default_options())) {
        for (const std::string& path : arguments.images) conversation_.show(path);
    }

    void run() {
        const bool terminal = isatty(STDIN_FILENO) == 1;
        if (terminal) std::cerr << "Write a message, or:\n" << commands_help;
        std::string line;
        while (read_line(terminal, line)) {
            if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
            if (line == "/exit" || line == "/quit") break;
            try {
                take(line);
            } catch (const Interrupted&) {
                std::cout << std::endl;
                std::cerr << "(interrupted)\n";
            } catch (const Error& error) {
                if (!terminal) throw;
                report_error(error.what());
            }
            clear_interrupt();
        }
    }

  private:
    static bool read_line(bool terminal, std::string& line) {
        if (terminal) std::cerr << "\n> " << std::flush;
        clear_interrupt();
        for (;;) {
            if (std::getline(std::cin, line)) break;
            if (!interrupted() || !terminal) return false;
            std::cin.clear();  // Ctrl-C at the prompt: the line is forgotten
            clear_interrupt();
            std::cerr << "\n> " << std::flush;
        }
        clear_interrupt();
        line.erase(line.find_last_not_of(" \t\r") + 1);
        return true;
    }

    void take(const std::string& line) {
        if (starts_with_word(line, "/image")) {
            const std::string path = argument_of(line, 6);
            if (path.empty()) fail("/image: expected a file");
            conversation_.show(path);
            std::cerr << "(with your next message: " << printable(path) << ")\n";
        } else if (line == "/clear") {
            conversation_.clear();
            std::cerr << "(forgotten)\n";
        } else if (line == "/help") {
            std::cerr << commands_help;
        } else if (line[0] == '/') {
            fail(line.substr(0, line.find(' ')), ": no such command; /help lists them");
        } else {
            answer(line);
        }
    }

    void answer(const std::string& line) {
        ProgressLine progress;
        const Completion completion =
            conversation_.ask(line, options_, observe(1, true, &progress));
        std::cout << std::endl;
        progress.finish("(" + timings_text(completion.timings) + ")");
    }

    Conversation conversation_;
    GenerationOptions options_;
};

void run(const Arguments& arguments) {
    const ModelOptions options = arguments.model.apply();
    ProgressLine progress;
    const Mllama mllama = Mllama::load(arguments.model.model, with_progress(options, &progress));
    catch_interrupts();
    Chat(mllama, arguments).run();
}

}  // namespace

void add_chat(CLI::App& app) {
    auto* command = app.add_subcommand("chat", "A conversation with pictures, in the terminal");
    command->footer(std::string("While it runs:\n") + commands_help);
    auto arguments = std::make_shared<Arguments>();
    arguments->model.add_to(*command);
    arguments->sampling.add_to(*command);
    command->add_option("--system", arguments->system, "The system message")->type_name("TEXT");
    command
        ->add_option("--date", arguments->date, "The chat template's date_string; default: today")
        ->type_name("TEXT");
    command
        ->add_option("--image", arguments->images,
                     "A picture for the first message; may be given several times")
        ->type_name("FILE")
        ->allow_extra_args(false);
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
