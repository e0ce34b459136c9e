// mllama inspect: what is in a checkpoint directory, and the memory that it will need. Reads
// headers only.
#include <cstdio>
#include <iostream>
#include <map>

#include "apps/cli.h"
#include "io/json.h"
#include "mllama/memory_plan.h"

namespace mllama {
namespace {

struct Arguments {
    std::string model;
    bool json = false;
    bool tensors = false;
    int64_t context = 4096;
};

/// "21.3 GB", "4.6 MB"
std::string bytes_text(int64_t bytes) {
    const char* const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    auto value = static_cast<double>(bytes);
    size_t unit = 0;
    while (value >= 1000 && unit + 1 < std::size(units)) {
        value /= 1000;
        ++unit;
    }
    char text[32];
    std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

/// language_model.model.layers.17.mlp.up_proj.weight ->
/// language_model.model.layers.*.mlp.up_proj.weight
std::string family(const std::string& name) {
    std::string result;
    for (size_t i = 0; i < name.size();) {
        const bool number =
            std::isdigit(static_cast<unsigned char>(name[i])) && i > 0 && name[i - 1] == '.';
        if (!number) {
            result += name[i++];
            continue;
        }
        result += '*';
        while (i < name.size() && std::isdigit(static_cast<unsigned char>(name[i]))) ++i;
    }
    return result;
}

struct Summary {
    int64_t tensors = 0;
    int64_t parameters = 0;
    int64_t bytes = 0;
    std::map<std::string, int64_t> bytes_by_dtype;
};

int64_t elements(const TensorInfo& info) {
    int64_t count = 1;
    for (const int64_t dim : info.shape) count *= dim;
    return count;
}

Summary summarise(const Checkpoint& checkpoint) {
    Summary summary;
    for (const std::string& name : checkpoint.names()) {
        const TensorInfo& info = checkpoint.info(name);
        ++summary.tensors;
        summary.parameters += elements(info);
        summary.bytes += info.bytes;
        summary.bytes_by_dtype[info.dtype_name] += info.bytes;
    }
    return summary;
}

OrderedJson json_report(const ModelConfig& config, const Checkpoint& checkpoint, int64_t context) {
    const Summary summary = summarise(checkpoint);
    const MemoryPlan plan = plan_memory(config, checkpoint, context);
    OrderedJson tensors = OrderedJson::array();
    for (const std::string& name : checkpoint.names()) {
        const TensorInfo& info = checkpoint.info(name);
        tensors.push_back({{"name", info.name},
                           {"dtype", info.dtype_name},
                           {"shape", info.shape},
                           {"bytes", info.bytes},
                           {"file", checkpoint.file(name)}});
    }
    const VisionConfig& v = config.vision;
    const TextConfig& t = config.text;
    return {{"architecture", "MllamaForConditionalGeneration"},
            {"tensor_count", summary.tensors},
            {"parameters", summary.parameters},
            {"bytes", summary.bytes},
            {"bytes_by_dtype", summary.bytes_by_dtype},
            {"vision",
             {{"image_size", v.image_size},
              {"patch_size", v.patch_size},
              {"max_num_tiles", v.max_num_tiles},
              {"hidden_size", v.hidden_size},
              {"num_hidden_layers", v.num_hidden_layers},
              {"num_global_layers", v.num_global_layers},
              {"num_attention_heads", v.num_attention_heads}}},
            {"text",
             {{"vocab_size", t.vocab_size},
              {"hidden_size", t.hidden_size},
              {"num_hidden_layers", t.num_hidden_layers},
              {"cross_attention_layers", t.cross_attention_layers},
              {"num_attention_heads", t.num_attention_heads},
              {"num_key_value_heads", t.num_key_value_heads},
              {"max_position_embeddings", t.max_position_embeddings}}},
            {"memory",
             {{"weights_mapped_bytes", plan.weights_mapped},
              {"weights_copied_bytes", plan.weights_copied},
              {"kv_bytes_per_token", plan.kv_per_token},
              {"kv_bytes_per_image", plan.kv_per_image},
              {"scratch_bytes", plan.scratch},
              {"context", context},
              {"anonymous_bytes", plan.anonymous(context, 1)}}},
            {"tensors", tensors}};
}

void print_architecture(const ModelConfig& config) {
    const VisionConfig& v = config.vision;
    const TextConfig& t = config.text;
    std::printf("Mllama (Llama 3.2 Vision)\n");
    std::printf(
        "  vision tower   up to %lld tiles of %lld pixels, patches of %lld; %lld + %lld layers of "
        "width %lld, %lld heads\n",
        static_cast<long long>(v.max_num_tiles), static_cast<long long>(v.image_size),
        static_cast<long long>(v.patch_size), static_cast<long long>(v.num_hidden_layers),
        static_cast<long long>(v.num_global_layers), static_cast<long long>(v.hidden_size),
        static_cast<long long>(v.num_attention_heads));
    std::printf(
        "  text tower     %lld layers of width %lld, %zu of them look at images; %lld heads, %lld "
        "of keys and values\n",
        static_cast<long long>(t.num_hidden_layers), static_cast<long long>(t.hidden_size),
        t.cross_attention_layers.size(), static_cast<long long>(t.num_attention_heads),
        static_cast<long long>(t.num_key_value_heads));
    std::printf("  vocabulary     %lld tokens, up to %lld positions\n",
                static_cast<long long>(t.vocab_size),
                static_cast<long long>(t.max_position_embeddings));
}

void print_tensors(const Checkpoint& checkpoint, bool all) {
    struct Family {
        int64_t count = 0;
        int64_t bytes = 0;
        std::string shape;
    };
    std::map<std::string, Family> families;
    for (const std::string& name : checkpoint.names()) {
        const TensorInfo& info = checkpoint.info(name);
        if (all) {
            std::printf("  %-90s %-24s %12s\n", printable(info.name).c_str(),
                        printable(info.to_string()).c_str(), bytes_text(info.bytes).c_str());
            continue;
        }
        Family& f = families[family(name)];
        ++f.count;
        f.bytes += info.bytes;
        f.shape = printable(info.to_string());
    }
    for (const auto& [name, f] : families) {
        std::printf("  %4lld x %-72s %-24s %12s\n", static_cast<long long>(f.count),
                    printable(name).c_str(), f.shape.c_str(), bytes_text(f.bytes).c_str());
    }
}

void run(const Arguments& arguments) {
    const ModelConfig config = ModelConfig::load(arguments.model);
    const Checkpoint checkpoint = open_checkpoint(arguments.model);
    if (arguments.json) {
        std::cout << json_report(config, checkpoint, arguments.context)
                         .dump(-1, ' ', false, OrderedJson::error_handler_t::replace)
                  << "\n";
        return;
    }
    const Summary summary = summarise(checkpoint);
    const MemoryPlan plan = plan_memory(config, checkpoint, arguments.context);
    print_architecture(config);
    std::printf("\n%lld tensors, %.2f billion parameters, %s in %zu files:",
                static_cast<long long>(summary.tensors),
                static_cast<double>(summary.parameters) / 1e9, bytes_text(summary.bytes).c_str(),
                checkpoint.files().size());
    for (const auto& [dtype, bytes] : summary.bytes_by_dtype)
        std::printf(" %s %s", printable(dtype).c_str(), bytes_text(bytes).c_str());
    std::printf("\n");
    print_tensors(checkpoint, arguments.tensors);
    std::printf("\nMemory it will need (--dtype auto):\n");
    std::printf(
        "  weights        %s mapped from the files: shared, given back when memory is short\n",
        bytes_text(plan.weights_mapped).c_str());
    std::printf("  converted      %s norms, biases and gates in float32\n",
                bytes_text(plan.weights_copied).c_str());
    std::printf("  keys, values   %s a token, %s an image of %lld tiles\n",
                bytes_text(plan.kv_per_token).c_str(), bytes_text(plan.kv_per_image).c_str(),
                static_cast<long long>(config.vision.max_num_tiles));
    std::printf("  scratch        %s, most of it while an image is encoded\n",
                bytes_text(plan.scratch).c_str());
    std::printf("  together       %s beside the mapped weights, for one image and %lld tokens\n",
                bytes_text(plan.anonymous(arguments.context, 1)).c_str(),
                static_cast<long long>(arguments.context));
}

}  // namespace

void add_inspect(CLI::App& app) {
    auto* command = app.add_subcommand(
        "inspect",
        "What is in a checkpoint: architecture, tensors, bytes, the memory it will need");
    auto arguments = std::make_shared<Arguments>();
    command->add_option("-m,--model", arguments->model, "Checkpoint directory")
        ->required()
        ->type_name("DIR");
    command->add_flag("--json", arguments->json, "One JSON object, with every tensor");
    command->add_flag("--tensors", arguments->tensors,
                      "Every tensor instead of one line for all layers");
    command->add_option("--context", arguments->context, "Tokens to plan the memory for")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
        ->type_name("N")
        ->capture_default_str();
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
