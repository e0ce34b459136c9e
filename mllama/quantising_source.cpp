#include "mllama/quantising_source.h"

#include <utility>

#include "kernels/error.h"

namespace mllama {
namespace {

constexpr int64_t layers_of_text = 7;    // q, k, v, o, gate, up, down
constexpr int64_t layers_of_vision = 6;  // q, k, v, o, fc1, fc2

int64_t count_layers(const QuantisationPlan& plan, const ModelConfig& config) {
    const VisionConfig& v = config.vision;
    int64_t count = 0;
    if (plan.text) count += layers_of_text * config.text.num_hidden_layers;
    if (plan.lm_head) ++count;
    if (plan.vision) count += layers_of_vision * (v.num_hidden_layers + v.num_global_layers);
    return count;
}

}  // namespace

QuantisingSource::QuantisingSource(const TensorSource& source, const QuantisationPlan& plan,
                                   const ModelConfig& config,
                                   std::function<void(int64_t, int64_t)> progress)
    : source_(source),
      plan_(plan),
      progress_(std::move(progress)),
      all_(count_layers(plan, config)) {}

Weight QuantisingSource::weight(const std::string& module, int64_t out_features,
                                int64_t in_features) const {
    Weight weight = source_.weight(module, out_features, in_features);
    const auto format = plan_.of(module, in_features);
    if (!format) return weight;
    plan_.check_can_become(module, weight);
    if (weight.coding == Coding::plain) {
        try {
            weight = quantised(weight.data, *format);
        } catch (const Error& error) {
            fail("tensor ", module, ".weight: ", error.what());
        }
        source_.let_go(module);
    }
    if (progress_) progress_(++done_, all_);
    return weight;
}

Weight QuantisingSource::weight_outline(const std::string& module, int64_t out_features,
                                        int64_t in_features) const {
    const Weight weight = source_.weight_outline(module, out_features, in_features);
    const auto format = plan_.of(module, in_features);
    if (!format) return weight;
    plan_.check_can_become(module, weight);
    if (weight.coding != Coding::plain) return weight;
    return quantised_outline(out_features, in_features, *format);
}

}  // namespace mllama
