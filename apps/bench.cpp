// mllama bench: how long a picture, a prompt and a token take, beside what the machine could do at
// most, measured in the same process, before and after each run.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <limits>
#include <span>

#include "apps/bench/check.h"
#include "apps/bench/model.h"
#include "apps/bench/report.h"
#include "apps/bench/workloads.h"
#include "apps/cli.h"
#include "apps/terminal.h"
#include "mllama/stopwatch.h"
#include "tensor/gpu.h"

namespace mllama {
namespace {

struct Arguments {
    ModelArguments model;
    std::string config;
    bool random_weights = false;
    int64_t layers = 0;         // 0: all
    int64_t prompt_tokens = 0;  // 0: 512, or what the model takes
    int64_t new_tokens = 0;     // 0: 32, or what the model takes
    int64_t images = 0;
    int64_t repeats = 3;
    bool full = false;
    bool json = false;

    [[nodiscard]] std::string config_path() const {
        return config.empty() ? model.model + "/config.json" : config;
    }
};

constexpr int64_t usual_prompt = 512;
constexpr int64_t usual_new_tokens = 32;

/// Memory of this process that is not backed by files, in MB.
double anonymous_mb() {
    std::ifstream status("/proc/self/status");
    std::string line;
    while (std::getline(status, line)) {
        long long kb = 0;
        if (std::sscanf(line.c_str(), "RssAnon: %lld kB", &kb) == 1)
            return static_cast<double>(kb) * 1024 / 1e6;
    }
    return 0;
}

ModelConfig load_config(const Arguments& arguments) {
    ModelConfig config = ModelConfig::load_file(arguments.config_path());
    return arguments.layers > 0 ? first_layers(std::move(config), arguments.layers) : config;
}

Model load_model(const Arguments& arguments, const ModelConfig& config,
                 const ModelOptions& options) {
    if (!arguments.random_weights) return Model::load(arguments.model.model, options);
    return random_model(config, options, arguments.config);
}

/// What to time, all of it within the positions of the model. Throws Error where the command line
/// asks for more than that.
BenchPlan make_plan(const Arguments& arguments, const TextConfig& config,
                    std::vector<std::string>& notes) {
    const int64_t most = config.max_position_embeddings;
    const std::string where =
        std::to_string(most) + ", the max_position_embeddings of " + arguments.config_path();
    int64_t tokens = arguments.prompt_tokens;
    int64_t new_tokens = arguments.new_tokens;
    if (new_tokens == 0) new_tokens = std::clamp<int64_t>(most / 2, 1, usual_new_tokens);
    if (tokens == 0) tokens = std::clamp<int64_t>(most - new_tokens, 1, usual_prompt);
    if (tokens > most) fail("--prompt-tokens ", tokens, ": expected at most ", where);
    if (tokens > most - new_tokens) {
        fail("--prompt-tokens ", tokens, " and --new-tokens ", new_tokens,
             ": expected together at most ", where);
    }
    if (arguments.images >= tokens) {
        fail("--images ", arguments.images, ": expected fewer than --prompt-tokens ", tokens,
             ", since each is a token of the prompt");
    }

    BenchPlan plan{arguments.images, {tokens}, new_tokens, {tokens}, {1, 8}};
    if (!arguments.full) return plan;
    const auto add = [&](std::vector<int64_t>& lengths, const char* what, int64_t length,
                         int64_t more) {
        if (length > most - more) {
            notes.push_back(std::string(what) + " " + std::to_string(length) +
                            ": more than max_position_embeddings");
        } else if (length > tokens) {
            lengths.push_back(length);
        }
    };
    for (const int64_t length : {2048, 8192}) add(plan.prefill_tokens, "prefill of", length, 0);
    for (const int64_t length : {8192, 32768})
        add(plan.decode_contexts, "decode at", length, new_tokens);
    plan.decode_batches = {1, 2, 4, 8};
    return plan;
}

/// The sizes that the workloads of a plan reach.
TimedSizes sizes_of(const Model& model, const BenchPlan& plan) {
    const VisionConfig& v = model.config().vision;
    TimedSizes sizes;
    sizes.prompt = *std::max_element(plan.prefill_tokens.begin(), plan.prefill_tokens.end());
    sizes.text_rows = std::min(sizes.prompt, model.prefill_chunk());  // at once
    sizes.context = *std::max_element(plan.decode_contexts.begin(), plan.decode_contexts.end()) +
                    plan.new_tokens;
    if (plan.images == 0) return sizes;
    sizes.picture_rows = v.max_num_tiles * v.padded_patches();
    // Tokens see the rows of all pictures.
    const int64_t rows_seen = plan.images * v.max_patches();
    sizes.prompt = std::max(sizes.prompt, rows_seen);
    sizes.context = std::max(sizes.context, rows_seen);
    return sizes;
}

std::vector<Checked> check(const Model& model, const ModelOptions& options, const BenchPlan& plan,
                           ProgressLine& progress) {
    const DType stored = model.text().embedding_dtype();
    int64_t step = 0;
    std::vector<Checked> checked =
        check_operations(model.config(), stored, options, sizes_of(model, plan),
                         CheckedPaths::ops(model.device()), [&](const std::string& what) {
                             progress.update("comparing with the reference: " + what, ++step, 0);
                         });
    progress.update("comparing with the reference: both towers", ++step, 0);
    for (const std::vector<Checked>& more : {check_towers(model.config(), stored, options),
                                             check_layers(model), check_decoding(model)}) {
        checked.insert(checked.end(), more.begin(), more.end());
    }
    return checked;
}

std::string checked_text(const std::vector<Checked>& checked) {
    const auto worst = std::max_element(checked.begin(), checked.end(), [](auto& a, auto& b) {
        return a.largest_error / a.tolerance < b.largest_error / b.tolerance;
    });
    char text[256];
    std::snprintf(text, sizeof text,
                  "checked: %zu results against the reference; the worst, %s: %.1e of its size, "
                  "%.0e is allowed",
                  checked.size(), worst->what.c_str(), worst->largest_error, worst->tolerance);
    return text;
}

/// The weights that a token reads, where they lie.
std::vector<cpu::MemoryPart> weights_of_a_token(const Model& model, bool with_images) {
    std::vector<cpu::MemoryPart> parts;
    const auto add = [&](const Linear& layer) {
        if (layer.weight.data.device() != Device::cpu) return;
        parts.push_back({layer.weight.data.data(), layer.weight.data.bytes()});
    };
    model.text().for_each_linear(with_images, add);
    add(model.text().lm_head());
    return parts;
}

/// Runs every workload `repeats` times, in turns, so that a bad moment of the machine meets each
/// once at most; the limits are measured before and after every run.
void time_all(const std::vector<Workload>& workloads, int64_t repeats,
              std::span<const cpu::MemoryPart> weights, const std::function<Limits()>& measure,
              ProgressLine& progress, BenchReport& report) {
    for (const Workload& workload : workloads) {
        report.rows.push_back({&workload, {}, {}, 0});
        report.rows.back().run.seconds = std::numeric_limits<double>::infinity();
    }
    const int64_t all = repeats * static_cast<int64_t>(workloads.size());
    int64_t done = 0;
    report.limits.push_back(measure());
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        for (BenchRow& row : report.rows) {
            progress.update(row.workload->label, ++done, all);
            const Limits before = report.limits.back();
            const BenchRun run = row.workload->run();
            const bool decode = row.workload->kind == Workload::Kind::decode;
            const double read = decode && !weights.empty() ? cpu::read_gb_s(weights) : 0;
            report.limits.push_back(measure());
            if (run.seconds >= row.run.seconds) continue;
            row.run = run;
            row.limits = best(before, report.limits.back());
            row.weights_read_gb_s = read;
        }
    }
}

/// What measures the limits of a device.
std::function<Limits()> limits_of(Device device) {
    if (device == Device::cuda) return gpu_limits;
    const auto probe = std::make_shared<cpu::LimitProbe>(cpu::LimitProbe::default_bytes());
    return [probe] { return probe->measure(); };
}

void describe_gpu(const Model& model, BenchReport& report) {
    const DevicePlan& plan = *model.device_plan();
    report.device = plan.device;
    report.last_level_cache = int64_t{64} << 20;  // an H100 has 50 MB
    report.notes.push_back(plan.device + ": " + plan.to_string());
    if (plan.layers < plan.all_layers) {
        report.notes.push_back("the limits are the GPU's; " +
                               std::to_string(plan.all_layers - plan.layers) +
                               " text layers are on the CPU");
    }
}

void run(const Arguments& arguments) {
    const ModelOptions options = arguments.model.apply();
    const ModelConfig config = load_config(arguments);
    BenchReport report;
    const BenchPlan plan = make_plan(arguments, config.text, report.notes);
    ProgressLine progress;
    progress.update(arguments.random_weights ? "making weights" : "loading", 1, 1);
    const Stopwatch watch;
    const Model model = load_model(arguments, config, with_progress(options, &progress));
    report.load_s = watch.seconds();
    report.isa = ops::isa_name();
    report.threads = ops::threads();
    report.dtype = model.weight_type_name();
    report.compute = model.text().compute();
    report.vision_compute = model.vision().compute();
    report.last_level_cache = cpu::last_level_cache();
    if (model.device() == Device::cuda) describe_gpu(model, report);
    report.model = arguments.random_weights
                       ? arguments.config + ", random weights, " +
                             std::to_string(model.config().text.num_hidden_layers) + " layers"
                       : arguments.model.model;
    char opening[256];
    std::snprintf(opening, sizeof opening, "%s, %d %s, %s, %s in %.3f s",
                  report.device.empty() ? report.isa.c_str() : report.device.c_str(),
                  report.threads, report.threads == 1 ? "thread" : "threads",
                  types_text(report).c_str(), arguments.random_weights ? "made" : "loaded",
                  report.load_s);
    progress.finish(opening);

    report.checked = check(model, options, plan, progress);
    progress.finish(checked_text(report.checked));

    Workloads workloads(model, plan);
    std::vector<std::string> left_out;
    const std::vector<Workload> list = workloads.list(cpu::available_memory(), left_out);
    for (const std::string& what : left_out) progress.finish("not timed: " + what);
    report.notes.insert(report.notes.end(), left_out.begin(), left_out.end());
    time_all(list, arguments.repeats, weights_of_a_token(model, arguments.images > 0),
             limits_of(model.device()), progress, report);
    progress.finish("");
    report.anonymous_mb = anonymous_mb();
    std::cout << (arguments.json ? to_json(report).dump() + "\n" : table_text(report));
}

void check_source(const Arguments& arguments) {
    if (arguments.model.model.empty() == arguments.config.empty()) {
        throw CLI::RequiredError("either --model DIR or --config FILE --random-weights");
    }
}

}  // namespace

void add_bench(CLI::App& app) {
    auto* command = app.add_subcommand(
        "bench", "How long a picture, a prompt and a token take, beside the limits of the machine");
    auto arguments = std::make_shared<Arguments>();
    arguments->model.add_to(*command);
    command->get_option("--model")->required(false);
    auto* config = command
                       ->add_option("--config", arguments->config,
                                    "A published config.json, instead of a checkpoint")
                       ->type_name("FILE");
    auto* random = command
                       ->add_flag("--random-weights", arguments->random_weights,
                                  "Make weights in memory for --config: bf16, or f32 with "
                                  "--dtype f32")
                       ->needs(config);
    config->needs(random);
    command
        ->add_option("--layers", arguments->layers,
                     "With --config: the first N layers of the text tower, with the "
                     "cross-attention layers among them; N local layers of the vision tower, and "
                     "global ones in proportion, at least 1")
        ->check(CLI::Range(1, 4096))
        ->type_name("N")
        ->needs(config);
    command
        ->add_option("--prompt-tokens", arguments->prompt_tokens,
                     "Tokens of the prompt, and before the first token that is decoded; default: "
                     "512, or as many as the model takes")
        ->check(CLI::Range(1, 1 << 20))
        ->type_name("P");
    command
        ->add_option("--new-tokens", arguments->new_tokens,
                     "Tokens to decode in a run; default: 32, or as many as the model takes")
        ->check(CLI::Range(1, 1 << 20))
        ->type_name("N");
    command
        ->add_option("--images", arguments->images,
                     "Pictures in front of the prompt; 0: no pictures are timed")
        ->check(CLI::Range(0, 64))
        ->type_name("K")
        ->capture_default_str();
    command
        ->add_option("--repeats", arguments->repeats,
                     "Runs of each, in turns; the best counts, against the limits around it")
        ->check(CLI::Range(1, 1000))
        ->type_name("N")
        ->capture_default_str();
    command->add_flag("--full", arguments->full,
                      "Also prefill of 2048 and 8192 tokens, decoding at 8192 and 32768 tokens, "
                      "and 2 and 4 sequences together (else 1 and 8)");
    command->add_flag("--json", arguments->json, "One JSON object");
    command->callback([arguments] {
        check_source(*arguments);
        run(*arguments);
    });
}

}  // namespace mllama
