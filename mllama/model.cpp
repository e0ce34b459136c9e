#include "mllama/model.h"

#include <algorithm>

#include "kernels/error.h"
#include "mllama/checkpoint_weights.h"
#include "mllama/quantising_source.h"
#include "tensor/gpu.h"

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
    // Before anything is converted or quantised, which takes minutes and memory.
    std::optional<DevicePlan> plan;
    std::shared_ptr<DeviceRegion> memory;
    if (options.device == Device::cuda) {
        Model sizes = outline(config, weights, options);
        try {
            plan = sizes.plan_layers(options.gpu_layers);
            memory = DeviceRegion::with_room(plan->bytes());
            gpu_take_workspace();
        } catch (const Error& error) {
            if (!options.device_or_cpu) throw;
            plan.reset();
            memory.reset();
            if (options.stays_on_cpu) options.stays_on_cpu(error.what());
        }
        if (plan && options.planned) options.planned(*plan);
    }
    const QuantisingSource source(weights, options.quantisation(), config, options.quantising);
    Model model(config, WeightLoader(source, options.weights, options.statistics), options);
    if (plan) {
        model.device_plan_ = plan;
        model.device_memory_ = memory;
        model.move_to_gpu(options);
    }
    return model;
}

/// The model with tensors that have no elements.
Model Model::outline(const ModelConfig& config, const TensorSource& weights,
                     const ModelOptions& options) {
    const QuantisingSource source(weights, options.quantisation(), config, {});
    const OutlineSource sizes(source);
    return {config, WeightLoader(sizes, options.weights), options};
}

DevicePlan Model::plan_gpu(const ModelConfig& config, const TensorSource& weights,
                           const ModelOptions& options) {
    return outline(config, weights, options).plan_layers(options.gpu_layers);
}

Model::Model(const ModelConfig& config, const WeightLoader& weights, const ModelOptions& options)
    : config_(config),
      vision_(config.vision, weights.with_type(options.vision()), options.reference),
      multi_modal_projector_(weights.linear_with_bias(
          "multi_modal_projector", config.text.hidden_size, config.vision.vision_output_dim)),
      text_(config, weights, options.reference),
      kv_dtype_(
          options.kv_dtype.value_or(text_.compute() == Compute::f32 ? DType::f32 : DType::bf16)),
      kv_pools_(static_cast<size_t>(config.text.num_hidden_layers)),
      workspace_(std::make_unique<TextModel::Workspace>()) {}

/// Calls visit for all weights of which the last `layers` text layers need a copy on the GPU.
void Model::for_each_tensor(int64_t layers, const std::function<void(Tensor&)>& visit) {
    const int64_t all = config_.text.num_hidden_layers;
    vision_.for_each_tensor(visit);
    multi_modal_projector_.for_each_tensor(visit);
    for (int64_t layer = all - layers; layer < all; ++layer)
        text_.for_each_tensor_of_layer(layer, visit);
    if (layers == all) text_.for_each_tensor_before(visit);
    if (layers > 0) text_.for_each_tensor_behind(visit);
}

DevicePlan Model::plan_layers(std::optional<int64_t> gpu_layers) {
    const int64_t all = config_.text.num_hidden_layers;
    const auto with_layers = [&](int64_t layers) {
        DevicePlan plan = begin_device_plan(config_, kv_dtype_, layers);
        for_each_tensor(layers, [&](Tensor& tensor) {
            plan.weights += round_up(tensor.bytes(), DeviceRegion::alignment);
        });
        return plan;
    };
    DevicePlan plan = with_layers(std::clamp<int64_t>(gpu_layers.value_or(all), 0, all));
    fit_device_plan(config_.text, plan, with_layers);
    return plan;
}

void Model::move_to_gpu(const ModelOptions& options) {
    const DevicePlan& plan = *device_plan_;
    const TextConfig& t = config_.text;
    int64_t done = 0;
    for_each_tensor(plan.layers, [&](Tensor& tensor) {
        tensor = tensor.to(Device::cuda);
        done += tensor.bytes();
        if (options.uploading) options.uploading(done, plan.weights);
    });
    workspace_->on(Device::cuda).reserve(plan.scratch);
    picture_ = Storage::allocate(plan.picture, Device::cuda);
    const KvLayout layout{t.num_key_value_heads, t.head_dim(), kv_dtype_};
    const int64_t picture_rows = config_.vision.max_patches();
    for (int64_t layer = t.num_hidden_layers - plan.layers; layer < t.num_hidden_layers; ++layer) {
        const int64_t keys = t.is_cross_attention(layer)
                                 ? plan.images * round_up(picture_rows, KvLayout::block)
                                 : plan.tokens;
        kv_pools_[static_cast<size_t>(layer)] = KvPool::take(layout, keys, Device::cuda);
    }
    text_.add_device(Device::cuda);
}

/// Room for the rows of a picture: in its place on the GPU, unless somebody keeps another there.
Tensor Model::picture_rows(const Shape& shape) const {
    if (picture_ && picture_.use_count() == 1) return {picture_, 0, shape, DType::f32};
    return Tensor::empty(shape, DType::f32, vision_.device());
}

VisionRows Model::encode_image(const ProcessedImage& image, const VisionProgress& progress) const {
    Arena& scratch = workspace_->on(vision_.device());
    const Arena::Scope scope(scratch);
    const VisionFeatures features = vision_.forward(image, scratch, progress);
    const int64_t num_patches = features.num_patches;
    const int64_t tiles = features.layout.tiles();
    VisionRows result{features.layout,
                      picture_rows({tiles * num_patches, config_.text.hidden_size})};
    Tensor tile_rows = scratch.take({num_patches, config_.vision.vision_output_dim});
    for (int64_t tile = 0; tile < tiles; ++tile) {
        features.tile_rows(tile, tile_rows);
        Tensor projected = result.rows.rows(tile * num_patches, (tile + 1) * num_patches);
        multi_modal_projector_.forward(tile_rows, projected);
    }
    return result;
}

void Model::add_image(Sequence& sequence, const VisionRows& image) const {
    text_.add_image(sequence, image, *workspace_);
}

Tensor Model::forward(std::span<const SequenceInput> batch, const ForwardTrace* trace) const {
    return text_.forward(batch, *workspace_, trace);
}

std::span<const int64_t> Model::most_probable(std::span<const SequenceInput> batch) const {
    return text_.most_probable(batch, *workspace_);
}

TopLogits Model::top_logits(std::span<const SequenceInput> batch, int64_t k) const {
    return text_.top_logits(batch, k, *workspace_);
}

Tensor Model::prefill(Sequence& sequence, std::span<const int64_t> ids, int64_t chunk,
                      const std::function<void(int64_t)>& progress) const {
    if (chunk == 0) chunk = prefill_chunk();
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
