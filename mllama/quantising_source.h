// Weights that are quantised when they are loaded.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mllama/config.h"
#include "mllama/quantise.h"
#include "mllama/tensor_source.h"

namespace mllama {

/// Gives what another source gives, the plain linear layers of a plan quantised: new memory, for
/// which the source lets go of its own. A layer that is quantised already is given as it is.
class QuantisingSource : public TensorSource {
  public:
    /// The source must outlive this. `progress`: layers quantised, of all that the plan has in a
    /// model of this config.
    QuantisingSource(const TensorSource& source, const QuantisationPlan& plan,
                     const ModelConfig& config,
                     std::function<void(int64_t done, int64_t all)> progress);

    [[nodiscard]] Tensor tensor(const std::string& name,
                                const std::vector<int64_t>& shape) const override {
        return source_.tensor(name, shape);
    }
    [[nodiscard]] Tensor outline(const std::string& name,
                                 const std::vector<int64_t>& shape) const override {
        return source_.outline(name, shape);
    }
    [[nodiscard]] Weight weight_outline(const std::string& module, int64_t out_features,
                                        int64_t in_features) const override;
    /// Throws Error naming the layer if it is quantised already to another coding than the plan's
    /// (lm_head may be), or has an element that is not finite.
    [[nodiscard]] Weight weight(const std::string& module, int64_t out_features,
                                int64_t in_features) const override;

  private:
    const TensorSource& source_;
    QuantisationPlan plan_;
    std::function<void(int64_t done, int64_t all)> progress_;
    int64_t all_;
    mutable int64_t done_ = 0;  // layers, for `progress`
};

}  // namespace mllama
