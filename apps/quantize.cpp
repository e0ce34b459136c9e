// mllama quantize: writes a quantised checkpoint directory.
#include <map>

#include "apps/cli.h"
#include "apps/terminal.h"
#include "io/atomic_directory.h"
#include "mllama/quantise_checkpoint.h"

namespace mllama {
namespace {

struct Arguments {
    std::string model;
    std::string out;
    std::string dtype;
    std::string group_size = "128";
    std::string vision_dtype = "auto";
    std::string lm_head_dtype = "auto";
    std::string calibration;
    int threads = 0;
};

QuantisationPlan plan_of(const Arguments& arguments) {
    static const std::map<std::string, int64_t> group_sizes = {
        {"32", 32}, {"64", 64}, {"128", 128}, {"channel", 0}};
    QuantisationPlan plan;
    plan.text = arguments.dtype == "int8"
                    ? int8_rows
                    : QuantisedFormat{Coding::int4, group_sizes.at(arguments.group_size)};
    const auto also_int8 = [&](const char* option, const std::string& dtype) {
        if (dtype != "int8") return std::optional<QuantisedFormat>();
        if (arguments.dtype != "int8") {
            throw CLI::ValidationError(
                option, std::string("int8 goes with --dtype int8, since transformers reads one "
                                    "format from a directory; --dtype int4 ") +
                            option + " int8 works where the directory is loaded");
        }
        return std::optional(int8_rows);
    };
    plan.vision = also_int8("--vision-dtype", arguments.vision_dtype);
    plan.lm_head = also_int8("--lm-head-dtype", arguments.lm_head_dtype);
    return plan;
}

ColumnImportance importance_of(const Arguments& arguments, const std::vector<Request>& requests,
                               ProgressLine& progress) {
    if (arguments.calibration.empty()) return {};
    return column_importance(
        arguments.model, requests,
        [&](int64_t done, int64_t all) { progress.update("calibrating, request", done, all); },
        interrupted);
}

void run(const Arguments& arguments) {
    if (arguments.threads > 0) ops::set_threads(arguments.threads);
    const Stopwatch watch;
    ProgressLine progress;
    QuantiseObserver observer;
    observer.cancelled = interrupted;
    observer.progress = [&](int64_t done, int64_t all) {
        constexpr int64_t megabyte = 1000000;
        progress.update("quantising, MB", done / megabyte, all / megabyte);
    };
    catch_terminations();
    const QuantisationPlan plan = plan_of(arguments);
    AtomicDirectory::check_is_free(arguments.out);  // not only after the calibration
    std::vector<Request> requests;
    if (!arguments.calibration.empty()) requests = read_batch_file(arguments.calibration);
    catch_interrupts();  // what follows looks at them
    const ColumnImportance importance = importance_of(arguments, requests, progress);
    quantise_checkpoint(arguments.model, arguments.out, plan, importance, observer);
    progress.finish(arguments.out + ": written in " + duration_text(watch.seconds()));
}

}  // namespace

void add_quantize(CLI::App& app) {
    auto* command =
        app.add_subcommand("quantize", "Write a checkpoint directory with weights of 8 or 4 bits");
    command->footer(
        "The directory loads here and, with the compressed-tensors package, in transformers and "
        "vLLM. Embeddings, norms and the projector between the towers stay as they are.\n"
        "Examples:\n"
        "  mllama quantize -m DIR --dtype int4 --out DIR-int4\n"
        "  mllama quantize -m DIR --dtype int8 --vision-dtype int8 --out DIR-int8");
    auto arguments = std::make_shared<Arguments>();
    command
        ->add_option("-m,--model", arguments->model,
                     "Checkpoint directory with weights of bf16, f16 or f32")
        ->required()
        ->type_name("DIR");
    command->add_option("--out", arguments->out, "The directory to write; it must not exist")
        ->required()
        ->type_name("DIR");
    command
        ->add_option("--dtype", arguments->dtype,
                     "Of the text layers: int8, a scale a row (W8A8), or int4, a scale a group "
                     "(W4A16)")
        ->required()
        ->check(CLI::IsMember({"int8", "int4"}))
        ->type_name("TYPE");
    auto* group_size = command->add_option(
        "--group-size", arguments->group_size,
        "int4: columns that share a scale: 32, 64, 128, or channel for the whole row. "
        "Where it does not divide a row, the half, quarter, ... of it that does, or "
        "else the row");
    group_size->check(CLI::IsMember({"32", "64", "128", "channel"}))
        ->type_name("N")
        ->capture_default_str();
    command
        ->add_option("--vision-dtype", arguments->vision_dtype,
                     "Of the vision tower: auto (as it is) or, with --dtype int8, int8")
        ->check(CLI::IsMember({"auto", "int8"}))
        ->type_name("TYPE")
        ->capture_default_str();
    command
        ->add_option("--lm-head-dtype", arguments->lm_head_dtype,
                     "Of the last layer, which makes the logits: auto (as it is) or, with --dtype "
                     "int8, int8")
        ->check(CLI::IsMember({"auto", "int8"}))
        ->type_name("TYPE")
        ->capture_default_str();
    command
        ->add_option("--calibration", arguments->calibration,
                     "Requests as `generate --batch` reads them. The model reads them first, and "
                     "errors of weights count as much as what they are multiplied with")
        ->type_name("FILE");
    command
        ->add_option("-t,--threads", arguments->threads,
                     "Threads; default: the physical cores this process may use")
        ->check(CLI::Range(1, 1024))
        ->type_name("N");
    command->callback([arguments, group_size] {
        if (arguments->dtype == "int8" && group_size->count() > 0)
            throw CLI::ValidationError("--group-size",
                                       "goes with --dtype int4: int8 has a scale a row");
        run(*arguments);
    });
}

}  // namespace mllama
