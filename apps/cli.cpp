#include "apps/cli.h"

#include <sched.h>

#include <csignal>
#include <fstream>
#include <set>

namespace mllama {
namespace {

volatile std::sig_atomic_t interrupt_flag = 0;

extern "C" void on_interrupt(int signal) {
    if (interrupt_flag) {
        std::signal(signal, SIG_DFL);
        std::raise(signal);
    }
    interrupt_flag = 1;
}

/// A number that the kernel publishes about a processor, or `fallback`.
int topology(int processor, const char* what, int fallback) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/" +
                       what);
    int value = fallback;
    file >> value;
    return file ? value : fallback;
}

}  // namespace

int physical_cores() {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return 1;
    std::set<std::pair<int, int>> cores;  // (package, core)
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
        if (!CPU_ISSET(processor, &mask)) continue;
        cores.emplace(topology(processor, "physical_package_id", 0),
                      topology(processor, "core_id", processor));
    }
    return std::max(1, static_cast<int>(cores.size()));
}

void catch_interrupts() {
    struct sigaction action {};
    action.sa_handler = on_interrupt;  // without SA_RESTART: a read from the terminal ends as well
    sigaction(SIGINT, &action, nullptr);
}

bool interrupted() {
    return interrupt_flag != 0;
}

void clear_interrupt() {
    interrupt_flag = 0;
}

void ModelArguments::add_to(CLI::App& command) {
    command
        .add_option(
            "-m,--model", model,
            "Checkpoint directory as published: config.json, *.safetensors, tokenizer.json, ...")
        ->required()
        ->type_name("DIR");
    command.add_option("--device", device, "Where to compute: cpu, cuda or auto")
        ->check(CLI::IsMember({"cpu", "cuda", "auto"}))
        ->type_name("NAME")
        ->capture_default_str();
    command
        .add_option("--dtype", dtype,
                    "How weights are held and computed with: auto (as stored), f32 (everything in "
                    "float32), bf16, int8, int4")
        ->check(CLI::IsMember({"auto", "f32", "bf16", "int8", "int4"}))
        ->type_name("TYPE")
        ->capture_default_str();
    command
        .add_option("-t,--threads", threads,
                    "Threads; default: the physical cores this process may use")
        ->check(CLI::Range(1, 1024))
        ->type_name("N");
    command
        .add_option("--reference", reference,
                    "Whose rules where implementations differ: transformers (4.56.2) or meta (the "
                    "code the weights were trained with)")
        ->check(CLI::IsMember({"transformers", "meta"}))
        ->type_name("NAME")
        ->capture_default_str();
}

ModelOptions ModelArguments::apply() const {
    if (device == "cuda")
        fail("--device cuda: this program was built without CUDA; use --device cpu");
    if (dtype == "int8" || dtype == "int4") {
        fail("--dtype ", dtype,
             ": quantising weights when they are loaded is not offered; use auto, f32 or bf16");
    }
    ops::set_threads(threads > 0 ? threads : physical_cores());
    ModelOptions options;
    if (dtype == "f32") options.weights = WeightType::f32;
    if (dtype == "bf16") options.weights = WeightType::bf16;
    if (reference == "meta") options.reference = Reference::meta;
    return options;
}

void RequestArguments::add_to(CLI::App& command) {
    auto* source =
        command.add_option_group("Request", "What to ask; one of -p, --messages, --batch");
    source->add_option("-p,--prompt", prompt, "Raw text, with <|image|> where images stand")
        ->type_name("TEXT");
    messages_option =
        source
            ->add_option(
                "--messages", messages,
                "A JSON file with a list of {role, content}, rendered with the checkpoint's "
                "chat template")
            ->type_name("FILE");
    batch_option =
        source
            ->add_option(
                "--batch", batch,
                "One request a line: {\"prompt\": ..., \"images\": [...]} or {\"messages\": [...]}")
            ->type_name("FILE");
    source->require_option(1);
    command
        .add_option("--image", images,
                    "A picture for the next <|image|> place; may be given several times")
        ->type_name("FILE")
        ->allow_extra_args(false);
    command
        .add_option("--date", date,
                    "The chat template's date_string; default: today as \"26 Jul 2024\"")
        ->type_name("TEXT");
}

std::vector<Request> RequestArguments::read() const {
    if (batch_option->count() > 0) {
        if (!images.empty()) fail("--image does not go with --batch: name the images in ", batch);
        return read_batch_file(batch);
    }
    if (messages_option->count() > 0) return {read_messages_file(messages, images)};
    Request request;
    request.prompt = prompt;
    request.images = images;
    return {request};
}

}  // namespace mllama
