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

/// The first element whose exponent is all ones (infinite or NaN), or n. First a pass without a
/// branch, which is the only one of good weights, and as fast as memory is.
template <class Bits>
int64_t first_not_finite(const Bits* bits, int64_t n, Bits exponent) {
    Bits found = 0;
    for (int64_t i = 0; i < n; ++i) found |= static_cast<Bits>((bits[i] & exponent) == exponent);
    if (found == 0) return n;
    return std::find_if(bits, bits + n, [&](Bits b) { return (b & exponent) == exponent; }) - bits;
}

int64_t first_not_finite(const Tensor& tensor) {
    const auto bits16 = [&] { return static_cast<const uint16_t*>(tensor.data()); };
    switch (tensor.dtype()) {
        case DType::bf16:
            return first_not_finite<uint16_t>(bits16(), tensor.numel(), 0x7F80);
        case DType::f16:
            return first_not_finite<uint16_t>(bits16(), tensor.numel(), 0x7C00);
        default:
            return first_not_finite<uint32_t>(static_cast<const uint32_t*>(tensor.data()),
                                              tensor.numel(), 0x7F800000);
    }
}

/// What a quantised layer stores in floats: scales, and tables of what codes mean. A whole row would
/// be lost by one that is not finite.
void check_finite(const Checkpoint& checkpoint, const std::string& name) {
    const TensorInfo& info = checkpoint.info(name);
    if (!info.dtype || !is_float(*info.dtype)) return;
    const Tensor tensor = checkpoint.get(name, Shape(info.shape));
    const int64_t wrong = first_not_finite(tensor);
    if (wrong < tensor.numel())
        fail(checkpoint.where(name), ": expected finite numbers, found another as element ", wrong);
}

[[noreturn]] void reject_undeclared(const Checkpoint& checkpoint, const std::string& name) {
    fail(checkpoint.where(name),
         ": expected a quantization_config in config.json that tells how this layer is quantised, ",
         "found none that names it");
}

/// Throws Error if a layer that is plain by the config is a quantised one by its tensors.
void check_is_plain(const Checkpoint& checkpoint, const std::string& module) {
    const std::string weight = module + ".weight";
    if (checkpoint.has(weight)) {
        const TensorInfo& info = checkpoint.info(weight);
        if (info.dtype && !is_float(*info.dtype)) reject_undeclared(checkpoint, weight);
        return;
    }
    for (const std::string_view ending : {".weight_packed", ".qweight"}) {
        const std::string name = module + std::string(ending);
        if (checkpoint.has(name)) reject_undeclared(checkpoint, name);
    }
}

}  // namespace

Weight CheckpointWeights::weight(const std::string& module, int64_t out_features,
                                 int64_t in_features) const {
    const Weight weight = weight_outline(module, out_features, in_features);
    if (weight.coding == Coding::plain) return weight;
    with_format<bool>(config_, [&](const auto& format) {
        for (const std::string_view part : tensor_names(format)) {
            const std::string name = module + std::string(part);
            if (checkpoint_.has(name)) check_finite(checkpoint_, name);
        }
        return true;
    });
    return weight;
}

Weight CheckpointWeights::weight_outline(const std::string& module, int64_t out_features,
                                         int64_t in_features) const {
    const auto coded = with_format<Weight>(config_, [&](const auto& format) -> Weight {
        if (!quantised_shape(checkpoint_, format, module)) return {};
        return quantised_weight(checkpoint_, format, module, {out_features, in_features});
    });
    if (coded.defined()) return coded;
    check_is_plain(checkpoint_, module);
    return tensor(module + ".weight", {out_features, in_features});
}

std::vector<CheckpointWeights::Layer> CheckpointWeights::quantised_layers() const {
    std::vector<Layer> layers = with_format<std::vector<Layer>>(config_, [&](const auto& format) {
        std::vector<Layer> found;
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
                found.push_back(std::move(layer));
            }
        }
        return found;
    });
    std::set<std::string> modules;
    for (const Layer& layer : layers) modules.insert(layer.module);
    for (const std::string& name : checkpoint_.names()) {
        const std::string module = name.substr(0, name.rfind('.'));
        if (!modules.contains(module)) check_is_plain(checkpoint_, module);
    }
    return layers;
}

}  // namespace mllama
