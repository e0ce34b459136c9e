// The weights of a checkpoint directory: plain tensors, and the linear layers that were quantised
// when it was written. Views of the files, unconverted.
#pragma once

#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "mllama/quantisation_config.h"
#include "mllama/tensor_source.h"

namespace mllama {

/// Opens the checkpoint of a directory, with both published styles of tensor names read as the one
/// of the files: language_model.model.*, language_model.lm_head.weight, vision_model.*,
/// multi_modal_projector.*.
Checkpoint open_checkpoint(const std::string& checkpoint_dir);

/// Which layers are quantised is decided layer by layer, by the tensors that are there: see
/// quantised_formats.h.
class CheckpointWeights : public TensorSource {
  public:
    /// Both must outlive this; what it gives needs neither.
    CheckpointWeights(const Checkpoint& checkpoint, const QuantisationConfig& config)
        : checkpoint_(checkpoint), config_(config) {}

    [[nodiscard]] Tensor tensor(const std::string& name,
                                const std::vector<int64_t>& shape) const override {
        return checkpoint_.get(name, shape);
    }
    /// Error as well if a quantised layer has a scale that is infinite or no number.
    [[nodiscard]] Weight weight(const std::string& module, int64_t out_features,
                                int64_t in_features) const override;

    /// The same, but reads no scales.
    [[nodiscard]] Weight weight_outline(const std::string& module, int64_t out_features,
                                        int64_t in_features) const override;

    /// Of plain layers: their pages of the file.
    void let_go(const std::string& module) const override {
        checkpoint_.let_go(module + ".weight");
    }

    /// A layer that is quantised, of the sizes that its own tensors tell.
    struct Layer {
        std::string module;
        Weight weight;
        std::vector<std::string> tensors;  ///< the names of all that it is made of
        int64_t bytes = 0;                 ///< of these
    };
    /// All there are, in the order of the checkpoint. Throws as `weight`, but reads no
    /// scales.
    [[nodiscard]] std::vector<Layer> quantised_layers() const;

    [[nodiscard]] const Checkpoint& checkpoint() const { return checkpoint_; }

  private:
    const Checkpoint& checkpoint_;
    const QuantisationConfig& config_;
};

}  // namespace mllama
