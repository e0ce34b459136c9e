#include "mllama/quantisation_config.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>

#include "io/json_object.h"
#include "kernels/error.h"

namespace mllama {
namespace {

constexpr int64_t largest_group = int64_t{1} << 24;  // no row is longer
constexpr size_t most_entries = 10000;               // of a list of names
// Of all expressions of a config: each of them is run on the name of every module.
constexpr int64_t most_steps = 10000;

/// Absent, null, false, or an empty list or object.
bool is_nothing(const JsonObject& json, std::string_view key) {
    if (!json.has(key)) return true;
    const Json& value = json.value(key);
    return value.is_boolean() ? !value.get<bool>() : value.is_structured() && value.empty();
}

/// Reads the lists of names of one config.
class NameLists {
  public:
    /// In their order, each text once. None if the key is absent.
    std::vector<ModulePattern> read(const JsonObject& json, std::string_view key);

  private:
    int64_t steps_ = 0;  // of all expressions so far
};

std::vector<ModulePattern> NameLists::read(const JsonObject& json, std::string_view key) {
    if (!json.has(key)) return {};
    const std::string expected = "a list of at most " + std::to_string(most_entries) + " names";
    const Json& list = json.value(key);
    if (!list.is_array() || list.size() > most_entries) json.reject(key, expected);
    const std::string where = json.where() + ": " + std::string(key);
    std::vector<ModulePattern> result;
    std::set<std::string> seen;
    for (const Json& entry : list) {
        if (!entry.is_string()) json.reject(key, expected);
        const auto text = entry.get<std::string>();
        if (!seen.insert(text).second) continue;
        result.emplace_back(text, where);
        steps_ += result.back().steps();
        if (steps_ > most_steps) {
            fail(where, ": expected expressions that compile to at most ", most_steps,
                 " steps together, found more");
        }
    }
    return result;
}

// ---- compressed-tensors ----

using Scheme = CompressedScheme;

/// What a module of the files is called: there, and in memory by transformers 4.52 and later.
std::vector<std::string> names_of(std::string_view module) {
    constexpr std::array<std::pair<std::string_view, std::string_view>, 4> in_memory = {
        {{"language_model.model.", "model.language_model."},
         {"language_model.lm_head", "lm_head"},
         {"vision_model.", "model.vision_model."},
         {"multi_modal_projector", "model.multi_modal_projector"}}};
    std::vector<std::string> names = {std::string(module)};
    for (const auto& [from, to] : in_memory) {
        if (module.starts_with(from))
            names.push_back(std::string(to) + std::string(module.substr(from.size())));
    }
    return names;
}

/// The class of all modules that are quantised, which targets and ignore lists may name.
constexpr std::string_view linear_class = "Linear";

bool matches_any(const ModulePattern& pattern, const std::vector<std::string>& names) {
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return pattern.matches(name); });
}

Scheme::Strategy strategy_of(const JsonObject& weights) {
    const int64_t group_size = weights.integer_or("group_size", -1, largest_group, -1);
    if (group_size == 0) weights.reject("group_size", "at least 1, or -1 for the whole row");
    const bool group = group_size > 0;
    // Without a name: as the writer infers it.
    const char* inferred = group ? "group" : weights.has("group_size") ? "channel" : "tensor";
    const std::string name = weights.text_or("strategy", inferred);
    if (name != "tensor" && name != "channel" && name != "group")
        weights.reject("strategy", "tensor, channel or group");
    if (name != "group" && group)
        weights.reject("group_size", "null, since strategy is not \"group\"");
    if (name == "tensor") return Scheme::Strategy::tensor;
    if (name == "channel") return Scheme::Strategy::channel;
    if (!group) weights.reject("group_size", "at least 1, since strategy is \"group\"");
    return Scheme::Strategy::group;
}

/// `all` has the format of the groups that name none.
Scheme::Format format_of(const JsonObject& group, const JsonObject& all,
                         const JsonObject& weights) {
    const JsonObject& named = group.has("format") ? group : all;
    const std::string name = named.text("format");
    const bool is_float = weights.text_or("type", "int") == "float";
    if (!is_float && weights.text_or("type", "int") != "int")
        weights.reject("type", "int or float");
    const int64_t bits = weights.integer_or("num_bits", 1, 64, 8);
    const auto expect = [&](bool expected_float, int64_t expected_bits) {
        if (is_float != expected_float)
            weights.reject("type", (expected_float ? "float" : "int") + (", of " + name));
        if (bits != expected_bits)
            weights.reject("num_bits", std::to_string(expected_bits) + ", of " + name);
    };
    if (name == "pack-quantized") {
        expect(false, 4);
        return Scheme::Format::packed_int4;
    }
    if (name == "int-quantized" || (name == "naive-quantized" && !is_float)) {
        expect(false, 8);
        return Scheme::Format::int8;
    }
    if (name == "float-quantized" || name == "naive-quantized") {
        expect(true, 8);
        return Scheme::Format::fp8;
    }
    named.reject("format", "pack-quantized, int-quantized or float-quantized");
}

/// Whether columns belong to groups by a g_idx, in their order of importance. "weight" (or "static")
/// is an order of the writer's work alone, which left the columns where they were.
bool has_activation_order(const JsonObject& weights) {
    if (!weights.has("actorder")) return false;
    const Json& order = weights.value("actorder");
    if (order.is_boolean()) return order.get<bool>();
    const std::string name = weights.text("actorder");
    if (name == "weight" || name == "static") return false;
    if (name != "group" && name != "dynamic") weights.reject("actorder", "group, weight or null");
    return true;
}

/// Whether activations are to be rounded to int8 with a scale for each token, made as it runs.
/// Scales that were measured when the checkpoint was written are not known here.
bool rounds_to_int8(const JsonObject& group) {
    if (is_nothing(group, "input_activations")) return false;
    const JsonObject args = group.object("input_activations");
    if (!args.has("dynamic") || args.value("dynamic") != true)
        args.reject("dynamic", "true (scales of activations made as the model runs)");
    return args.text_or("type", "int") == "int" && args.integer_or("num_bits", 1, 64, 8) == 8 &&
           args.boolean_or("symmetric", true) && args.text_or("strategy", "tensor") == "token";
}

Scheme scheme_of(const JsonObject& group, const JsonObject& all) {
    if (!is_nothing(group, "output_activations")) group.reject("output_activations", "null");
    const JsonObject weights = group.object("weights");
    Scheme scheme;
    scheme.format = format_of(group, all, weights);
    scheme.strategy = strategy_of(weights);
    if (scheme.strategy == Scheme::Strategy::group)
        scheme.group_size = weights.integer("group_size", 1, largest_group);
    scheme.symmetric = weights.boolean_or("symmetric", true);
    const bool packed = scheme.format == Scheme::Format::packed_int4;
    if (!scheme.symmetric && (!packed || scheme.strategy == Scheme::Strategy::tensor)) {
        weights.reject("symmetric",
                       "true (zero points are known of pack-quantized by channel or group)");
    }
    scheme.activation_order = has_activation_order(weights);
    if (scheme.activation_order && scheme.strategy != Scheme::Strategy::group)
        weights.reject("actorder", "null or weight, since strategy is not \"group\"");
    const bool int8_activations = rounds_to_int8(group);
    scheme.int8_activations = scheme.format == Scheme::Format::int8 && int8_activations;
    return scheme;
}

/// What would change the computation or the files, and is not known here.
void check_nothing_else(const JsonObject& json) {
    const std::string status = json.text_or("quantization_status", "compressed");
    if (status != "compressed") json.reject("quantization_status", "compressed");
    for (const char* key : {"kv_cache_scheme", "transform_config"}) {
        if (!is_nothing(json, key)) json.reject(key, "null");
    }
    if (is_nothing(json, "sparsity_config")) return;
    const JsonObject sparsity = json.object("sparsity_config");
    if (sparsity.text_or("format", "dense") != "dense") sparsity.reject("format", "dense");
}

}  // namespace

CompressedTensorsConfig CompressedTensorsConfig::read(const JsonObject& json) {
    check_nothing_else(json);
    CompressedTensorsConfig config;
    NameLists lists;
    config.ignore_ = lists.read(json, "ignore");
    const JsonObject groups = json.object("config_groups");
    std::map<std::string, std::pair<ModulePattern, CompressedScheme>> by_text;
    for (const auto& [name, value] : json.value("config_groups").items()) {
        const JsonObject group = groups.object(name);
        const CompressedScheme scheme = scheme_of(group, json);
        for (const ModulePattern& target : lists.read(group, "targets"))
            by_text.insert_or_assign(target.text(), std::pair(target, scheme));
    }
    for (const bool expressions : {false, true}) {
        for (const auto& [text, entry] : by_text) {
            if (entry.first.is_expression() == expressions) config.targets_.push_back(entry);
        }
    }
    return config;
}

const CompressedScheme* CompressedTensorsConfig::scheme(std::string_view module) const {
    const std::vector<std::string> names = names_of(module);
    for (const ModulePattern& pattern : ignore_) {
        if (matches_any(pattern, names) || pattern.matches(linear_class)) return nullptr;
    }
    for (const auto& [pattern, scheme] : targets_) {
        if (matches_any(pattern, names)) return &scheme;
    }
    for (const auto& [pattern, scheme] : targets_) {
        if (pattern.matches(linear_class)) return &scheme;
    }
    return nullptr;
}

// ---- the others ----

GptqConfig GptqConfig::read(const JsonObject& json) {
    if (json.integer("bits", 1, 64) != 4) json.reject("bits", "4");
    GptqConfig config;
    config.group_size = json.integer_or("group_size", -1, largest_group, 128);
    if (config.group_size == 0) json.reject("group_size", "at least 1, or -1 for the whole row");
    config.activation_order = json.boolean_or("desc_act", false);
    const std::string_view key = json.either("checkpoint_format", "format");
    const std::string format = json.text_or(key, "gptq");
    if (format != "gptq" && format != "gptq_v2") json.reject(key, "gptq or gptq_v2");
    config.stores_zero_less_one = format == "gptq";
    if (json.text_or("pack_dtype", "int32") != "int32") json.reject("pack_dtype", "int32");
    if (is_nothing(json, "dynamic")) return config;
    // Exceptions for some layers: "-:PATTERN" were left as they were, which their tensors show.
    const JsonObject exceptions = json.object("dynamic");
    for (const auto& [pattern, changes] : json.value("dynamic").items()) {
        if (!pattern.starts_with("-:")) exceptions.reject(pattern, "the same for all layers");
    }
    return config;
}

BitsAndBytesConfig BitsAndBytesConfig::read(const JsonObject& json) {
    for (const char* key : {"load_in_8bit", "_load_in_8bit"}) {
        if (json.boolean_or(key, false)) json.reject(key, "false (4 bits are known: nf4)");
    }
    return {};
}

QuantisationConfig read_quantisation_config(const JsonObject& config) {
    if (!config.has("quantization_config")) return {};
    const JsonObject json = config.object("quantization_config");
    const std::string method = json.text("quant_method");
    if (method == "compressed-tensors") return CompressedTensorsConfig::read(json);
    if (method == "gptq") return GptqConfig::read(json);
    if (method == "bitsandbytes") return BitsAndBytesConfig::read(json);
    json.reject("quant_method", "compressed-tensors, gptq or bitsandbytes");
}

}  // namespace mllama
