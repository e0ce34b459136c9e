#include "apps/cli.h"

#include <unistd.h>

#include <csignal>
#include <map>
#include <string_view>

#include "tensor/gpu.h"

namespace mllama {
namespace {

volatile std::sig_atomic_t interrupt_flag = 0;
volatile std::sig_atomic_t work_looks_at_flag = 0;
std::string_view last_words = "mllama: error: interrupted\n";  // fixed before the handler is there

/// Does only what a signal handler may. A second Ctrl-C means that somebody will not wait; the others
/// come twice by themselves (a shell and the terminal both hang up).
extern "C" void on_interrupt(int signal) {
    if (work_looks_at_flag && (!interrupt_flag || signal != SIGINT)) {
        interrupt_flag = 1;
        return;
    }
    const auto written = write(STDERR_FILENO, last_words.data(), last_words.size());
    static_cast<void>(written);
    _exit(1);
}

/// Has on_interrupt called, unless the signal is ignored.
void handle(int signal) {
    struct sigaction action {};
    sigaction(signal, nullptr, &action);
    if (action.sa_handler == SIG_IGN) return;
    action = {};
    action.sa_handler = on_interrupt;  // without SA_RESTART: a read from the terminal ends as well
    sigaction(signal, &action, nullptr);
}

}  // namespace

void end_on_interrupts() {
    if (isatty(STDERR_FILENO) == 1) last_words = "\nmllama: error: interrupted\n";  // behind its ^C
    handle(SIGINT);
}

void catch_terminations() {
    handle(SIGTERM);
    handle(SIGHUP);
}

void catch_interrupts() {
    work_looks_at_flag = 1;
}

bool interrupted() {
    return interrupt_flag != 0;
}

void clear_interrupt() {
    interrupt_flag = 0;
}

void add_gpu_layers(CLI::App& command, std::optional<int64_t>& gpu_layers) {
    command
        .add_option("--gpu-layers", gpu_layers,
                    "With a GPU: how many of the text layers are there, counted from the last; the "
                    "others stay on the CPU. Default: all")
        ->check(CLI::Range(int64_t{0}, int64_t{100000}))
        ->type_name("N");
}

void add_kv_dtype(CLI::App& command, std::string& kv_dtype) {
    command
        .add_option(
            "--kv-dtype", kv_dtype,
            "What keys and values are kept as: auto (bf16, or f32 if products are f32), f32, "
            "bf16, or int8 with a scale for each key, value and head")
        ->check(CLI::IsMember({"auto", "f32", "bf16", "int8"}))
        ->type_name("TYPE")
        ->capture_default_str();
}

std::optional<DType> kv_dtype_of(const std::string& name) {
    if (name == "f32") return DType::f32;
    if (name == "bf16") return DType::bf16;
    if (name == "int8") return DType::i8;
    return std::nullopt;
}

void ModelArguments::add_to(CLI::App& command) {
    command
        .add_option(
            "-m,--model", model,
            "Checkpoint directory as published: config.json, *.safetensors, tokenizer.json, ...; "
            "bf16, or quantised by compressed-tensors (4 and 8 bits, fp8), bitsandbytes (nf4) or "
            "GPTQ")
        ->required()
        ->type_name("DIR");
    command
        .add_option("--device", device,
                    "Where to compute: cpu, cuda (an NVIDIA GPU), or auto: the GPU if there is one "
                    "and the model fits")
        ->check(CLI::IsMember({"cpu", "cuda", "auto"}))
        ->type_name("NAME")
        ->capture_default_str();
    add_gpu_layers(command, gpu_layers);
    command
        .add_option("--dtype", dtype,
                    "How weights are held and computed with: auto (as stored), f32 (everything in "
                    "float32), bf16, or int8 or int4: text layers are quantised while they are "
                    "loaded (the last one to int8)")
        ->check(CLI::IsMember({"auto", "f32", "bf16", "int8", "int4"}))
        ->type_name("TYPE")
        ->capture_default_str();
    command
        .add_option("--vision-dtype", vision_dtype,
                    "The same for the vision tower: auto (f32 or bf16 if --dtype says so, else as "
                    "stored), bf16, int8")
        ->check(CLI::IsMember({"auto", "bf16", "int8"}))
        ->type_name("TYPE")
        ->capture_default_str();
    add_kv_dtype(command, kv_dtype);
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

namespace {

/// --device and --gpu-layers. A GPU that was asked for must be there.
void choose_device(const ModelArguments& arguments, ModelOptions& options) {
    options.gpu_layers = arguments.gpu_layers;
    if (arguments.device == "cpu") {
        if (arguments.gpu_layers)
            fail("--gpu-layers ", *arguments.gpu_layers,
                 ": --device cpu has no GPU to put them on");
        return;
    }
    const std::string reason = gpu_unavailable();
    const bool asked = arguments.device == "cuda" || arguments.gpu_layers.has_value();
    if (!reason.empty()) {
        if (arguments.device == "cuda") fail("--device cuda: ", reason, "; use --device cpu");
        if (asked) fail("--gpu-layers: ", reason);
        return;
    }
    options.device = Device::cuda;
    options.device_or_cpu = !asked;
}

}  // namespace

ModelOptions ModelArguments::apply() const {
    if (threads > 0) ops::set_threads(threads);
    static const std::map<std::string, WeightType> types = {{"auto", WeightType::as_stored},
                                                            {"f32", WeightType::f32},
                                                            {"bf16", WeightType::bf16},
                                                            {"int8", WeightType::int8},
                                                            {"int4", WeightType::int4}};
    ModelOptions options;
    options.weights = types.at(dtype);
    if (vision_dtype != "auto") options.vision_weights = types.at(vision_dtype);
    options.kv_dtype = kv_dtype_of(kv_dtype);
    choose_device(*this, options);
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
                    "A picture for the next <|image|> place; may be given several times. A batch "
                    "names its own")
        ->type_name("FILE")
        ->allow_extra_args(false)
        ->excludes(batch_option);
    command
        .add_option("--date", date,
                    "The chat template's date_string; default: today as \"26 Jul 2024\"")
        ->type_name("TEXT");
}

std::vector<Request> RequestArguments::read() const {
    if (batch_option->count() > 0) return read_batch_file(batch);
    if (messages_option->count() > 0) return {read_messages_file(messages, images)};
    Request request;
    request.prompt = prompt;
    request.images = images;
    return {request};
}

}  // namespace mllama
