// The whole model: vision tower, projector, text tower. Numbers in, numbers out; text and pictures
// are the business of mllama.h. Source: MllamaForConditionalGeneration, modeling_mllama.py of
// transformers 4.56.2.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "mllama/config.h"
#include "mllama/device_plan.h"
#include "mllama/memory_plan.h"
#include "mllama/quantise.h"
#include "mllama/text.h"
#include "mllama/vision.h"
#include "tensor/device_memory.h"

namespace mllama {

struct ModelOptions {
    WeightType weights = WeightType::as_stored;
    Reference reference = Reference::transformers;
    /// What keys and values are kept as: f32, bf16 or i8; none: bf16 where products are, else f32.
    std::optional<DType> kv_dtype = std::nullopt;
    /// The vision tower's: f32, bf16 or int8; none: as `weights` if that is f32 or bf16, as stored
    /// otherwise.
    std::optional<WeightType> vision_weights = std::nullopt;
    int64_t group_size = 128;  ///< of weights that are quantised to int4
    std::function<void(int64_t done, int64_t all)> quantising = {};  ///< layers, while they are

    /// Where to compute. `device_or_cpu`: on the CPU after all if the device has too little memory.
    Device device = Device::cpu;
    bool device_or_cpu = false;
    /// How many text layers, counted from the last, are on the GPU; none: all of them.
    std::optional<int64_t> gpu_layers = std::nullopt;
    std::function<void(const DevicePlan& plan)> planned = {};  ///< before anything is moved there
    std::function<void(const std::string& why)> stays_on_cpu = {};   ///< of device_or_cpu
    std::function<void(int64_t bytes, int64_t all)> uploading = {};  ///< while weights are

    InputStatistics statistics = {};  ///< of linear layers, for those who want to look inside

    [[nodiscard]] WeightType vision() const;
    /// What is quantised when it is loaded.
    [[nodiscard]] QuantisationPlan quantisation() const;
};

/// Serves one thread at a time. Models on a GPU share its stream and what operations work in: all of
/// them together serve one thread at a time.
class Model {
  public:
    /// Maps the checkpoint of a directory. Errors: Error naming file and tensor or key, expected
    /// and found.
    static Model load(const std::string& checkpoint_dir, const ModelOptions& options);

    /// The same with weights from elsewhere.
    static Model build(const ModelConfig& config, const TensorSource& weights,
                       const ModelOptions& options);

    /// What the GPU will hold of it, from the sizes of tensors alone: nothing is read, converted or
    /// quantised. Throws Error with figures if it does not fit, or if there is no GPU.
    static DevicePlan plan_gpu(const ModelConfig& config, const TensorSource& weights,
                               const ModelOptions& options);

    [[nodiscard]] const ModelConfig& config() const { return config_; }
    [[nodiscard]] const VisionModel& vision() const { return vision_; }
    [[nodiscard]] const TextModel& text() const { return text_; }
    /// What keys and values are kept as.
    [[nodiscard]] DType kv_dtype() const { return kv_dtype_; }
    /// "f32", "bf16", "f16", "int8", ...: what the text tower's weights are.
    [[nodiscard]] std::string_view weight_type_name() const { return text_.weight_type_name(); }

    [[nodiscard]] Sequence new_sequence() const {
        return {config_.text, kv_dtype_, text_.layer_devices(), kv_pools_};
    }

    /// What is on a GPU; none: nothing.
    [[nodiscard]] const std::optional<DevicePlan>& device_plan() const { return device_plan_; }
    /// Rows of a forward that are worth being fed together.
    [[nodiscard]] int64_t prefill_chunk() const { return prefill_rows(device()); }
    /// Where the model is computed, most of it where layers stay on the CPU.
    [[nodiscard]] Device device() const { return device_plan_ ? Device::cuda : Device::cpu; }

    /// Vision tower and projector: rows (tiles * num_patches, text hidden_size). On a GPU one picture's
    /// rows have their place in the plan: let them go before the next one is encoded.
    VisionRows encode_image(const ProcessedImage& image, const VisionProgress& progress = {}) const;

    /// Gives a sequence its next picture.
    void add_image(Sequence& sequence, const VisionRows& image) const;

    /// See TextModel::forward. The result is valid until the next call.
    Tensor forward(std::span<const SequenceInput> batch, const ForwardTrace* trace = nullptr) const;
    /// See TextModel::most_probable.
    std::span<const int64_t> most_probable(std::span<const SequenceInput> batch) const;
    /// See TextModel::top_logits.
    TopLogits top_logits(std::span<const SequenceInput> batch, int64_t k) const;
    Tensor on_host(const Tensor& logits) const { return text_.on_host(logits, *workspace_); }
    /// See TextModel::reserve_tokens.
    void reserve_tokens(int64_t rows) const { text_.reserve_tokens(rows, *workspace_); }
    void reserve_top_logits(int64_t rows, int64_t k) const {
        text_.reserve_top_logits(rows, k, *workspace_);
    }
    void reserve_logits(int64_t rows) const { text_.reserve_logits(rows, *workspace_); }
    /// The steps of decoding that a GPU repeats, for tests.
    [[nodiscard]] const Recording& recording() const { return workspace_->recording; }

    /// Feeds a long text in chunks of at most `chunk` rows (0: prefill_chunk()) and returns the
    /// logits (1, vocab_size) of its last token.
    Tensor prefill(Sequence& sequence, std::span<const int64_t> ids, int64_t chunk = 0,
                   const std::function<void(int64_t done)>& progress = {}) const;

  private:
    Model(const ModelConfig& config, const WeightLoader& weights, const ModelOptions& options);
    static Model outline(const ModelConfig& config, const TensorSource& weights,
                         const ModelOptions& options);
    [[nodiscard]] DevicePlan plan_layers(std::optional<int64_t> gpu_layers);
    [[nodiscard]] Tensor picture_rows(const Shape& shape) const;
    void move_to_gpu(const ModelOptions& options);
    void for_each_tensor(int64_t layers, const std::function<void(Tensor&)>& visit);

    ModelConfig config_;
    VisionModel vision_;
    Linear multi_modal_projector_;  // (text hidden_size, vision_output_dim) with bias
    TextModel text_;
    DType kv_dtype_;
    std::optional<DevicePlan> device_plan_;
    std::shared_ptr<DeviceRegion> device_memory_;    // what the plan says
    std::vector<std::shared_ptr<KvPool>> kv_pools_;  // by layer; null for those on the CPU
    std::shared_ptr<Storage> picture_;               // of encode_image, on a GPU
    // Of whichever call runs.
    std::unique_ptr<TextModel::Workspace> workspace_;
};

}  // namespace mllama
