// mllama generate: streams the completion of one request, or answers a batch.
#include <iostream>

#include "apps/cli.h"
#include "apps/sampling_arguments.h"
#include "apps/terminal.h"
#include "io/json.h"

namespace mllama {
namespace {

struct Arguments {
    ModelArguments model;
    RequestArguments request;
    SamplingArguments sampling;
    bool json = false;
};

OrderedJson completion_json(const Completion& completion, double load_s, double preprocess_s) {
    const Timings& t = completion.timings;
    return {{"text", completion.text},
            {"tokens", completion.tokens},
            {"prompt_tokens", completion.prompt_tokens},
            {"finish_reason", completion.finish_reason == FinishReason::stop ? "stop" : "length"},
            {"timings",
             {{"load_s", load_s},
              {"preprocess_s", preprocess_s},
              {"vision_s", t.vision_s},
              {"prefill_s", t.prefill_s},
              {"prefill_tokens", t.prefill_tokens},
              {"decode_s", t.decode_s},
              {"decode_tokens", t.decode_tokens}}}};
}

/// Several answers that are not JSON are written one after the other, each under its number.
void write_answers(const std::vector<Completion>& completions) {
    for (size_t i = 0; i < completions.size(); ++i) {
        std::cout << "[" << i + 1 << "] " << completions[i].text << "\n";
    }
}

void run(const Arguments& arguments) {
    const ModelOptions options = arguments.model.apply();
    const std::vector<Request> requests = arguments.request.read();

    const Stopwatch loading;
    ProgressLine progress;
    const Mllama mllama = Mllama::load(arguments.model.model, with_progress(options, &progress));
    const double load_s = loading.seconds();
    const GenerationOptions generation = arguments.sampling.over(mllama.default_options());

    const Stopwatch preparing;
    std::vector<Prompt> prompts;
    prompts.reserve(requests.size());
    for (const Request& request : requests) {
        prompts.push_back(mllama.prepare(request, arguments.request.prepare_options()));
    }
    const double preprocess_s = preparing.seconds();

    const bool stream = !arguments.json && requests.size() == 1;
    catch_interrupts();
    std::vector<Completion> completions;
    try {
        completions =
            mllama.generate(prompts, generation, observe(requests.size(), stream, &progress));
    } catch (const Interrupted&) {
        if (stream) std::cout << std::endl;
        throw;
    }
    progress.finish("");
    if (arguments.json) {
        for (const Completion& completion : completions) {
            std::cout << completion_json(completion, load_s, preprocess_s)
                             .dump(-1, ' ', false, OrderedJson::error_handler_t::replace)
                      << "\n";
        }
    } else if (stream) {
        std::cout << std::endl;
    } else {
        write_answers(completions);
    }
    progress.finish("loaded in " + duration_text(load_s) + ", " +
                    timings_text(completions.front().timings));
}

}  // namespace

void add_generate(CLI::App& app) {
    auto* command =
        app.add_subcommand("generate", "Continue a text, or answer messages, about pictures");
    command->footer(
        "Examples:\n"
        "  mllama generate -m DIR --image cat.png -p '<|image|>A haiku about this picture:'\n"
        "  mllama generate -m DIR --messages talk.json --greedy\n"
        "  mllama generate -m DIR --batch requests.jsonl --json > answers.jsonl");
    auto arguments = std::make_shared<Arguments>();
    arguments->model.add_to(*command);
    arguments->request.add_to(*command);
    arguments->sampling.add_to(*command);
    command->add_flag(
        "--json", arguments->json,
        "One JSON object a request, a line each: text, tokens, finish_reason, timings");
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
