#include "mllama/model.h"

#include <algorithm>

#include "mllama/checkpoint_weights.h"
#include "mllama/quantising_source.h"

namespace mllama {

WeightType ModelOptions::vision() const {
    if (vision_weights) return *vision_weights;
    const bool quantises = weights == WeightType::int8 || weights == WeightType::int4;
    return quantises ? WeightType::as_stored : weights;
}

QuantisationPlan ModelOptions::quantisation() const {
    QuantisationPlan plan;
    if (weights == WeightType::int8) plan.text = int8_rows;
    if (weights == WeightType::int4) plan.text = QuantisedFormat{Coding::int4, group_size};
    if (plan.text) plan.lm_head = int8_rows;
    if (vision() == WeightType::int8) plan.vision = int8_rows;
    return plan;
}

Model Model::load(const std::string& checkpoint_dir, const ModelOptions& options) {
    const ModelConfig config = ModelConfig::load(checkpoint_dir);
    const Checkpoint checkpoint = open_checkpoint(checkpoint_dir);
    return build(config, CheckpointWeights(checkpoint, config.quantisation), options);
}

Model Model::build(const ModelConfig& config, const TensorSource& weights,
                   const ModelOptions& options) {
    const QuantisingSource source(weights, options.quantisation(), config, options.quantising);
    return {config, WeightLoader(source, options.weights, options.statistics), options};
}

Model::Model(const ModelConfig& config, const WeightLoader& weights, const ModelOptions& options)
    : config_(config),
      vision_(config.vision, weights.with_type(options.vision()), options.reference),
      multi_modal_projector_(weights.linear_with_bias(
          "multi_modal_projector", config.text.hidden_size, config.vision.vision_output_dim)),
      text_(config, weights, options.reference),
      kv_dtype_(
          options.kv_dtype.value_or(text_.compute() == Compute::f32 ? DType::f32 : DType::bf16)),
      workspace_(std::make_unique<TextModel::Workspace>()) {}

VisionRows Model::encode_image(const ProcessedImage& image, const VisionProgress& progress) const {
    const Arena::Scope scope(workspace_->arena);
    const VisionFeatures features = vision_.forward(image, workspace_->arena, progress);
    const int64_t num_patches = features.num_patches;
    const int64_t tiles = features.layout.tiles();
    VisionRows result{features.layout,
                      Tensor::empty({tiles * num_patches, config_.text.hidden_size}, DType::f32)};
    Tensor tile_rows = workspace_->arena.take({num_patches, config_.vision.vision_output_dim});
    for (int64_t tile = 0; tile < tiles; ++tile) {
        features.tile_rows(tile, tile_rows);
        Tensor projected = result.rows.rows(tile * num_patches, (tile + 1) * num_patches);
        multi_modal_projector_.forward(tile_rows, projected);
    }
    return result;
}

void Model::add_image(Sequence& sequence, const VisionRows& image) const {
    const Arena::Scope scope(workspace_->arena);
    text_.add_image(sequence, image, workspace_->arena);
}

Tensor Model::forward(std::span<const SequenceInput> batch, const ForwardTrace* trace) const {
    return text_.forward(batch, *workspace_, trace);
}

Tensor Model::prefill(Sequence& sequence, std::span<const int64_t> ids, int64_t chunk,
                      const std::function<void(int64_t)>& progress) const {
    Tensor logits;
    for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(chunk)) {
        const size_t count = std::min(static_cast<size_t>(chunk), ids.size() - begin);
        const bool last = begin + count == ids.size();
        const SequenceInput input{&sequence, ids.subspan(begin, count), last ? 1 : 0};
        logits = forward({&input, 1});
        if (progress) progress(static_cast<int64_t>(begin + count));
    }
    return logits;
}

}  // namespace mllama
