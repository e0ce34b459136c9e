#include "mllama/checkpoint_weights.h"

#include <algorithm>
#include <set>
#include <type_traits>

#include "kernels/error.h"
#include "mllama/quantised_formats.h"

namespace mllama {

Checkpoint open_checkpoint(const std::string& checkpoint_dir) {
    // In memory, transformers names the same tensors differently; some files are saved that way.
    return Checkpoint::open(checkpoint_dir,
                            {{"model.language_model.", "language_model.model."},
                             {"lm_head.", "language_model.lm_head."},
                             {"model.vision_model.", "vision_model."},
                             {"model.multi_modal_projector.", "multi_modal_projector."}});
}

void reject_tensor(const Checkpoint& checkpoint, const std::string& name,
                   const std::string& expected) {
    fail(checkpoint.where(name), ": expected ", expected, ", found ",
         printable(checkpoint.info(name).to_string()));
}

Tensor group_of_column(const Checkpoint& checkpoint, const std::string& name, int64_t in_features,
                       int64_t group_size, int64_t groups) {
    if (!checkpoint.has(name)) return {};
    const Tensor tensor = checkpoint.get(name, DType::i32, {in_features});
    const std::span<const int32_t> group(tensor.data<int32_t>(), static_cast<size_t>(in_features));
    bool in_order = true;
    for (size_t i = 0; i < group.size(); ++i) {
        if (group[i] < 0 || group[i] >= groups) {
            fail(checkpoint.where(name), ": expected groups in [0, ", groups - 1, "], found ",
                 group[i], " at column ", i);
        }
        in_order = in_order && group[i] == static_cast<int64_t>(i) / group_size;
    }
    return in_order ? Tensor() : tensor;
}

namespace {

/// Calls `function` with the config of the format, if the checkpoint has one.
template <class Result, class Function>
Result with_format(const QuantisationConfig& config, const Function& function) {
    return std::visit(
        [&](const auto& format) -> Result {
            if constexpr (std::is_same_v<std::decay_t<decltype(format)>, std::monostate>)
                return {};
            else
                return function(format);
        },
        config);
}

}  // namespace

Weight CheckpointWeights::weight(const std::string& module, int64_t out_features,
                                 int64_t in_features) const {
    const auto coded = with_format<Weight>(config_, [&](const auto& format) -> Weight {
        if (!quantised_shape(checkpoint_, format, module)) return {};
        return quantised_weight(checkpoint_, format, module, {out_features, in_features});
    });
    return coded.defined() ? coded : TensorSource::weight(module, out_features, in_features);
}

std::vector<CheckpointWeights::Layer> CheckpointWeights::quantised_layers() const {
    return with_format<std::vector<Layer>>(config_, [&](const auto& format) {
        std::vector<Layer> layers;
        std::set<std::string> seen;
        for (const std::string& name : checkpoint_.names()) {
            for (const std::string_view ending : tensor_names(format)) {
                if (!name.ends_with(ending)) continue;
                const std::string module = name.substr(0, name.size() - ending.size());
                if (!seen.insert(module).second) continue;
                const std::optional<LayerShape> shape =
                    quantised_shape(checkpoint_, format, module);
                if (!shape) continue;
                Layer layer{module, quantised_weight(checkpoint_, format, module, *shape), {}, 0};
                for (const std::string_view part : tensor_names(format)) {
                    const std::string tensor = module + std::string(part);
                    if (!checkpoint_.has(tensor)) continue;
                    layer.tensors.push_back(tensor);
                    layer.bytes += checkpoint_.info(tensor).bytes;
                }
                layers.push_back(std::move(layer));
            }
        }
        return layers;
    });
}

}  // namespace mllama
