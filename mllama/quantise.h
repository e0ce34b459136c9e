// Which layers of the published model are quantised, and to what.
#pragma once

#include <optional>
#include <string_view>

#include "tensor/quantise.h"
#include "tensor/weight.h"

namespace mllama {

/// Which linear layers of the published model are quantised. The projector in between never is.
struct QuantisationPlan {
    std::optional<QuantisedFormat> text;     ///< self-attention, cross-attention and MLPs
    std::optional<QuantisedFormat> lm_head;  ///< its errors go straight into the logits
    std::optional<QuantisedFormat> vision;   ///< attention and MLPs of both transformers

    /// The format of the linear layer `module` ("vision_model.transformer.layers.0.mlp.fc1", names
    /// as open_checkpoint gives them) with rows of in_features, its group size one that fits; none:
    /// it stays as it is.
    [[nodiscard]] std::optional<QuantisedFormat> of(std::string_view module,
                                                    int64_t in_features) const;

    /// Throws Error that names the layer if its weight is quantised already, and to another type
    /// than it is to be: what is quantised can only stay so. lm_head's may be of any.
    void check_can_become(std::string_view module, const Weight& weight) const;
};

}  // namespace mllama
