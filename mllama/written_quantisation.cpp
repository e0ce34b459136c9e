#include "mllama/written_quantisation.h"

#include <algorithm>
#include <cassert>
#include <utility>
#include <vector>

namespace mllama {
namespace {

constexpr const char* lm_head = "re:.*lm_head$";
constexpr const char* projector = "re:.*multi_modal_projector$";
constexpr const char* vision = "re:.*vision_model.*";

/// language_model.model.layers.3.mlp.up_proj -> re:.*language_model.*\.mlp\.up_proj$
std::string expression(std::string_view module) {
    if (module.ends_with("lm_head")) return lm_head;
    const size_t last = module.rfind('.');
    const size_t before = module.rfind('.', last - 1);
    const std::string tower(module.substr(0, module.find('.')));
    return "re:.*" + tower + ".*\\" + std::string(module.substr(before, last - before)) + "\\" +
           std::string(module.substr(last)) + "$";
}

bool is_int4(const QuantisedFormat& format) {
    return format.coding == Coding::int4;
}

const char* written_format(const QuantisedFormat& format) {
    return is_int4(format) ? "pack-quantized" : "int-quantized";
}

OrderedJson weights_json(const QuantisedFormat& format) {
    const bool by_group = format.group_size != 0;
    OrderedJson json = {
        {"num_bits", is_int4(format) ? 4 : 8},        {"type", "int"},         {"symmetric", true},
        {"strategy", by_group ? "group" : "channel"}, {"group_size", nullptr}, {"dynamic", false}};
    if (by_group) json["group_size"] = format.group_size;
    return json;
}

/// int8 is multiplied with activations of int8, a scale a token, found as they come.
OrderedJson activations_json(const QuantisedFormat& format) {
    if (is_int4(format)) return nullptr;
    return {{"num_bits", 8},       {"type", "int"},         {"symmetric", true},
            {"strategy", "token"}, {"group_size", nullptr}, {"dynamic", true}};
}

OrderedJson scheme_json(const QuantisedFormat& format, const std::vector<std::string>& targets) {
    return {{"targets", targets},
            {"weights", weights_json(format)},
            {"input_activations", activations_json(format)},
            {"output_activations", nullptr}};
}

}  // namespace

bool WrittenQuantisation::add(std::string_view module, const QuantisedFormat& format) {
    const auto [entry, is_new] = formats_.try_emplace(expression(module), format);
    return is_new || entry->second == format;
}

OrderedJson WrittenQuantisation::to_json() const {
    std::vector<std::pair<QuantisedFormat, std::vector<std::string>>> schemes;
    std::vector<std::string> ignore = {lm_head, projector, vision};
    for (const auto& [target, format] : formats_) {
        const auto same = [&format = format](const auto& scheme) { return scheme.first == format; };
        auto scheme = std::find_if(schemes.begin(), schemes.end(), same);
        if (scheme == schemes.end()) scheme = schemes.insert(schemes.end(), {format, {}});
        scheme->second.push_back(target);
        if (target == lm_head) std::erase(ignore, lm_head);
        if (target.find("vision_model") != std::string::npos) std::erase(ignore, vision);
    }
    assert(!schemes.empty());
    OrderedJson groups = OrderedJson::object();
    for (const auto& [format, targets] : schemes) {
        groups["group_" + std::to_string(groups.size())] =
            scheme_json(format, schemes.size() == 1 ? std::vector<std::string>{"Linear"} : targets);
    }
    return {{"quant_method", "compressed-tensors"},
            {"format", written_format(schemes[0].first)},
            {"quantization_status", "compressed"},
            {"config_groups", groups},
            {"ignore", ignore},
            {"kv_cache_scheme", nullptr},
            {"global_compression_ratio", nullptr}};
}

}  // namespace mllama
