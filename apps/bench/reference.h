// Both towers as plainly as they can be written, over kernels/reference.h: what the fast ones are
// compared with before they are timed. No batch, no cache, no chunks, no shared padding tiles; every
// step is one loop over all rows. Slow: for small models.
// Source: modeling_mllama.py of transformers 4.56.2.
#pragma once

#include <span>
#include <vector>

#include "mllama/config.h"
#include "mllama/image_processor.h"
#include "mllama/model.h"

namespace mllama {

/// A matrix of float32 in memory of its own.
struct Rows {
    int64_t count = 0;
    int64_t width = 0;
    std::vector<float> values;  ///< (count, width)

    Rows() = default;
    Rows(int64_t rows, int64_t columns)
        : count(rows), width(columns), values(static_cast<size_t>(rows * columns)) {}
    [[nodiscard]] float* row(int64_t r) { return values.data() + r * width; }
    [[nodiscard]] const float* row(int64_t r) const { return values.data() + r * width; }
};

class ReferenceModel {
  public:
    /// What the factors of attention's products are rounded to, and before that the text tower's keys
    /// and values, which are kept.
    struct AttentionTypes {
        Compute text, vision;
        DType kv_dtype;
    };

    /// Weights are held and computed with as `options` say. The source must outlive the model.
    ReferenceModel(const ModelConfig& config, const TensorSource& source,
                   const ModelOptions& options, AttentionTypes attention)
        : config_(config),
          source_(source),
          text_(source, options.weights),
          vision_(source, options.vision()),
          attention_(attention) {}

    /// Vision tower and projector: (max_num_tiles * num_patches, text hidden_size), the tiles of the
    /// picture first.
    [[nodiscard]] Rows encode_image(const ProcessedImage& image) const;

    /// Logits (ids, vocab_size) of a text whose first token stands for the picture, which has
    /// `real_tiles` tiles; or of one without (`vision` null).
    [[nodiscard]] Rows logits(std::span<const int64_t> ids, const Rows* vision,
                              int64_t real_tiles) const;

  private:
    // Text.
    void self_attention(const std::string& layer, const Rows& cos, const Rows& sin, Rows& h) const;
    void cross_attention(const std::string& layer, const Rows& vision, Rows& h) const;
    void text_mlp(const std::string& layer, float scale, Rows& h) const;
    [[nodiscard]] Rows rms_norm(const std::string& name, const Rows& x) const;
    void norm_heads(const std::string& name, Rows& x) const;
    // Vision.
    [[nodiscard]] Rows embed_tile(const ProcessedImage& image, int64_t tile) const;
    void vision_layer(const std::string& layer, bool gated, int64_t real_tiles, Rows& h) const;
    [[nodiscard]] Rows layer_norm(const std::string& name, float eps, const Rows& x) const;
    /// rows += scale * entry `tile` of row `aspect_ratio_id` of a table.
    void add_tile_entry(const std::string& table, int64_t width, float scale,
                        const ProcessedImage& image, int64_t tile, Rows& rows) const;
    // Both.
    [[nodiscard]] Rows linear(const std::string& name, const Rows& x, int64_t out_features,
                              bool with_bias = false,
                              Activation activation = Activation::none) const;
    /// h += scale * branch
    static void add(Rows& h, float scale, const Rows& branch);
    [[nodiscard]] Tensor weight(const std::string& name, const std::vector<int64_t>& shape) const {
        return source_.tensor(name, shape);
    }
    [[nodiscard]] float tanh_gate(const std::string& name) const;

    ModelConfig config_;
    const TensorSource& source_;
    WeightLoader text_, vision_;
    AttentionTypes attention_;
};

}  // namespace mllama
