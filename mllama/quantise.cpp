#include "mllama/quantise.h"

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

}  // namespace mllama
