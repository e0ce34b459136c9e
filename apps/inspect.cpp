// mllama inspect: what is in a checkpoint directory, and the memory that it will need. Reads
// headers, and of quantised layers what tells how they are stored.
#include <cstdio>
#include <iostream>
#include <map>
#include <set>

#include "apps/cli.h"
#include "io/json.h"
#include "mllama/checkpoint_weights.h"
#include "mllama/memory_plan.h"
#include "mllama/model.h"
#include "tensor/gpu.h"

namespace mllama {
namespace {

struct Arguments {
    std::string model;
    bool json = false;
    bool tensors = false;
    int64_t context = 4096;
    std::string dtype = "auto", vision_dtype = "auto", kv_dtype = "auto";
    std::optional<int64_t> gpu_layers;  ///< none: all

    [[nodiscard]] ModelOptions options() const {
        ModelOptions options;
        options.gpu_layers = gpu_layers;
        if (dtype == "int8") options.weights = WeightType::int8;
        if (dtype == "int4") options.weights = WeightType::int4;
        if (vision_dtype == "int8") options.vision_weights = WeightType::int8;
        options.kv_dtype = kv_dtype_of(kv_dtype);
        return options;
    }
    /// As `generate` with these options would need it.
    [[nodiscard]] MemoryPlan plan(const ModelConfig& config,
                                  const CheckpointWeights& weights) const {
        const ModelOptions o = options();
        return plan_memory(config, weights, context, o.kv_dtype, o.quantisation());
    }
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

/// A checkpoint as it is reported: its quantised layers, and its other tensors.
struct Contents {
    const CheckpointWeights& weights;
    std::vector<CheckpointWeights::Layer> layers;
    std::vector<std::string> plain;  ///< names

    explicit Contents(const CheckpointWeights& all) : weights(all), layers(all.quantised_layers()) {
        std::set<std::string> parts;
        for (const auto& layer : layers) parts.insert(layer.tensors.begin(), layer.tensors.end());
        for (const std::string& name : checkpoint().names()) {
            if (!parts.contains(name)) plain.push_back(name);
        }
    }
    [[nodiscard]] const Checkpoint& checkpoint() const { return weights.checkpoint(); }
};

struct Summary {
    int64_t tensors = 0;
    int64_t parameters = 0;
    int64_t bytes = 0;
    std::map<std::string, int64_t> bytes_by_type;  ///< of quantised layers with all their tensors
};

int64_t elements(const TensorInfo& info) {
    int64_t count = 1;
    for (const int64_t dim : info.shape) count *= dim;
    return count;
}

Summary summarise(const Contents& contents) {
    const Checkpoint& checkpoint = contents.checkpoint();
    Summary summary;
    summary.tensors = static_cast<int64_t>(checkpoint.names().size());
    summary.bytes = checkpoint.bytes();
    for (const std::string& name : contents.plain) {
        const TensorInfo& info = checkpoint.info(name);
        summary.parameters += elements(info);
        summary.bytes_by_type[info.dtype_name] += info.bytes;
    }
    for (const CheckpointWeights::Layer& layer : contents.layers) {
        summary.parameters += layer.weight.numel();
        summary.bytes_by_type[std::string(layer.weight.type_name())] += layer.bytes;
    }
    return summary;
}

/// "int4 (groups of 128, symmetric) 14336 x 4096"
std::string layer_text(const Weight& weight) {
    return weight.description() + " " + std::to_string(weight.rows) + " x " +
           std::to_string(weight.cols);
}

OrderedJson layers_report(const Contents& contents) {
    OrderedJson layers = OrderedJson::array();
    for (const CheckpointWeights::Layer& layer : contents.layers) {
        layers.push_back({{"name", layer.module},
                          {"type", layer.weight.type_name()},
                          {"format", layer.weight.description()},
                          {"shape", {layer.weight.rows, layer.weight.cols}},
                          {"bytes", layer.bytes}});
    }
    return layers;
}

/// The model on the GPU of this machine, as `generate` would have it there. Throws Error if there is no
/// GPU, or if it does not fit: the error says how many layers would.
DevicePlan plan_gpu(const ModelConfig& config, const CheckpointWeights& weights,
                    const Arguments& arguments) {
    const std::string reason = gpu_unavailable();
    if (!reason.empty()) fail(reason);
    return Model::plan_gpu(config, weights, arguments.options());
}

OrderedJson gpu_report(const ModelConfig& config, const CheckpointWeights& weights,
                       const Arguments& arguments) {
    if (!gpu_unavailable().empty()) return {{"unavailable", gpu_unavailable()}};
    const GpuInfo gpu = gpu_info();
    OrderedJson report = {
        {"name", gpu.name},
        {"compute_capability", std::to_string(gpu.major) + "." + std::to_string(gpu.minor)},
        {"memory_bytes", gpu.memory_bytes},
        {"free_bytes", gpu.free_bytes}};
    try {
        const DevicePlan plan = plan_gpu(config, weights, arguments);
        report["fits"] = true;
        report["bytes"] = plan.bytes() + plan.overhead;
        report["tokens"] = plan.tokens;
        report["images"] = plan.images;
    } catch (const Error& error) {
        report["fits"] = false;
        report["error"] = error.what();
    }
    return report;
}

void print_gpu(const ModelConfig& config, const CheckpointWeights& weights,
               const Arguments& arguments) {
    std::string text;
    try {
        const DevicePlan plan = plan_gpu(config, weights, arguments);
        text = plan.device + " (" + bytes_text(plan.free_bytes) + " free): " + plan.to_string();
    } catch (const Error& error) {
        text = error.what();
    }
    std::printf("\nOn the GPU (--device cuda):\n  %s\n", text.c_str());
}

OrderedJson json_report(const ModelConfig& config, const Contents& contents,
                        const Arguments& arguments) {
    const Checkpoint& checkpoint = contents.checkpoint();
    const Summary summary = summarise(contents);
    const MemoryPlan plan = arguments.plan(config, contents.weights);
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
            {"bytes_by_dtype", summary.bytes_by_type},
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
              {"weights_quantised_bytes", plan.weights_quantised},
              {"kv_bytes_per_token", plan.kv_per_token},
              {"kv_bytes_per_image", plan.kv_per_image},
              {"scratch_bytes", plan.scratch},
              {"context", arguments.context},
              {"anonymous_bytes", plan.anonymous(arguments.context, 1)}}},
            {"gpu", gpu_report(config, contents.weights, arguments)},
            {"quantised_layers", layers_report(contents)},
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

void print_tensors(const Checkpoint& checkpoint) {
    for (const std::string& name : checkpoint.names()) {
        const TensorInfo& info = checkpoint.info(name);
        std::printf("  %-90s %-24s %12s\n", printable(info.name).c_str(),
                    printable(info.to_string()).c_str(), bytes_text(info.bytes).c_str());
    }
}

/// One line for what all layers have: "  32 x language_model.model.layers.*.mlp.up_proj.weight".
void print_families(const Contents& contents) {
    struct Family {
        int64_t count = 0;
        int64_t bytes = 0;
    };
    std::map<std::pair<std::string, std::string>, Family> families;  // of a name and what it is
    const auto add = [&](const std::string& name, const std::string& what, int64_t bytes) {
        Family& f = families[{family(name), what}];
        ++f.count;
        f.bytes += bytes;
    };
    for (const std::string& name : contents.plain) {
        const TensorInfo& info = contents.checkpoint().info(name);
        add(name, printable(info.to_string()), info.bytes);
    }
    for (const CheckpointWeights::Layer& layer : contents.layers)
        add(layer.module, layer_text(layer.weight), layer.bytes);
    for (const auto& [key, f] : families) {
        std::printf("  %4lld x %-72s %-46s %12s\n", static_cast<long long>(f.count),
                    printable(key.first).c_str(), key.second.c_str(), bytes_text(f.bytes).c_str());
    }
}

void run(const Arguments& arguments) {
    const ModelConfig config = ModelConfig::load(arguments.model);
    const Checkpoint checkpoint = open_checkpoint(arguments.model);
    const CheckpointWeights weights(checkpoint, config.quantisation);
    const Contents contents(weights);
    if (arguments.json) {
        std::cout << json_report(config, contents, arguments)
                         .dump(-1, ' ', false, OrderedJson::error_handler_t::replace)
                  << "\n";
        return;
    }
    const Summary summary = summarise(contents);
    const MemoryPlan plan = arguments.plan(config, weights);
    print_architecture(config);
    std::printf("\n%lld tensors, %.2f billion parameters, %s in %zu files:",
                static_cast<long long>(summary.tensors),
                static_cast<double>(summary.parameters) / 1e9, bytes_text(summary.bytes).c_str(),
                checkpoint.files().size());
    for (const auto& [dtype, bytes] : summary.bytes_by_type)
        std::printf(" %s %s", printable(dtype).c_str(), bytes_text(bytes).c_str());
    std::printf("\n");
    if (arguments.tensors) {
        print_tensors(checkpoint);
    } else {
        print_families(contents);
    }
    std::printf("\nMemory it will need (--dtype %s):\n", arguments.dtype.c_str());
    std::printf(
        "  weights        %s mapped from the files: shared, given back when memory is short\n",
        bytes_text(plan.weights_mapped).c_str());
    if (plan.weights_quantised > 0) {
        std::printf("  quantised      %s made while the model is loaded\n",
                    bytes_text(plan.weights_quantised).c_str());
    }
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
    print_gpu(config, weights, arguments);
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
    command
        ->add_option("--dtype", arguments->dtype,
                     "Memory with text layers as stored (auto), or quantised while they are "
                     "loaded: int8, int4 (what is quantised already can only stay so)")
        ->check(CLI::IsMember({"auto", "int8", "int4"}))
        ->type_name("TYPE")
        ->capture_default_str();
    command
        ->add_option("--vision-dtype", arguments->vision_dtype,
                     "The same for the vision tower: auto, int8")
        ->check(CLI::IsMember({"auto", "int8"}))
        ->type_name("TYPE")
        ->capture_default_str();
    add_kv_dtype(*command, arguments->kv_dtype);
    add_gpu_layers(*command, arguments->gpu_layers);
    command->add_option("--context", arguments->context, "Tokens to plan the memory for")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
        ->type_name("N")
        ->capture_default_str();
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
