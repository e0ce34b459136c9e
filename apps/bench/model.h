// The model that is timed: a checkpoint, or a published config.json with random weights.
#pragma once

#include <string>

#include "mllama/model.h"

namespace mllama {

/// The beginning of a model, for machines and evenings that the whole is too large for. Text: the
/// first `layers` layers, those of cross-attention among them. Vision: as many local layers, and
/// global ones in the proportion of the model, at least one if it has any; intermediate layers that
/// are gone are replaced by the last one that stays, so that the projector keeps its shape. A part
/// of the model that has no more than `layers` layers stays as it is.
[[nodiscard]] ModelConfig first_layers(ModelConfig config, int64_t layers);

/// Numbers in a checkpoint of this model: 10,670,220,835 for the 11B one.
[[nodiscard]] int64_t parameter_count(const ModelConfig& config);

/// Makes the model of a config in memory, its weights stored as bf16, or as f32 if that is what they
/// are wanted as. Throws Error if they would not fit into the memory that is free.
[[nodiscard]] Model random_model(const ModelConfig& config, const ModelOptions& options,
                                 const std::string& config_path);

}  // namespace mllama
