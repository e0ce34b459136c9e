#include "mllama/quantise.h"

#include "kernels/error.h"

namespace mllama {
namespace {

bool is_text_layer(std::string_view module) {
    return module.starts_with("language_model.model.layers.") && module.ends_with("_proj");
}

bool is_vision_layer(std::string_view module) {
    const bool layer = module.starts_with("vision_model.transformer.layers.") ||
                       module.starts_with("vision_model.global_transformer.layers.");
    return layer && (module.ends_with("_proj") || module.ends_with(".mlp.fc1") ||
                     module.ends_with(".mlp.fc2"));
}

}  // namespace

std::optional<QuantisedFormat> QuantisationPlan::of(std::string_view module,
                                                    int64_t in_features) const {
    std::optional<QuantisedFormat> format;
    if (module == "language_model.lm_head") format = lm_head;
    if (is_text_layer(module)) format = text;
    if (is_vision_layer(module)) format = vision;
    if (format) format->group_size = fitting_group_size(in_features, format->group_size);
    return format;
}

void QuantisationPlan::check_can_become(std::string_view module, const Weight& weight) const {
    const auto format = of(module, weight.cols);
    if (!format || weight.coding == Coding::plain || module.ends_with("lm_head")) return;
    if (weight.type_name() == format_name(*format)) return;
    fail("layer ", module, ": expected weights that are plain or of ", format_name(*format),
         ", as they are to be held, found ", weight.description());
}

}  // namespace mllama
