// The vision tower: tiles of a picture to vision rows. A ViT over all tiles of a picture at once,
// local layers, then gated global ones.
//
//   pixel_values (tiles, 3, image_size, image_size)
//     ─ patch_embedding ─ + pre_tile ─ class token in front ─ + position ─ layernorm_pre
//     ─ pad each tile to a multiple of 8 rows ─► (tiles * padded_patches, hidden_size)
//     ─ num_hidden_layers local layers ──┬─ some states are kept (intermediate_layers_indices)
//     ─ layernorm_post ─ + post_tile     │
//     ─ num_global_layers gated layers ──┴─► final and kept states side by side
//                                            (tiles * num_patches, vision_output_dim)
//
// Source: MllamaVisionModel, modeling_mllama.py of transformers 4.56.2.
#pragma once

#include <functional>
#include <vector>

#include "mllama/config.h"
#include "mllama/image_processor.h"
#include "mllama/masks.h"
#include "mllama/weights.h"
#include "tensor/arena.h"

namespace mllama {

/// MllamaVisionEncoderLayer. Without gates (local layers) both are 1.
struct VisionEncoderLayer {
    LayerNorm input_layernorm;
    Linear q_proj, k_proj, v_proj, o_proj;  ///< (hidden_size, hidden_size)
    LayerNorm post_attention_layernorm;
    Mlp mlp;
    float gate_attn = 1;  ///< tanh of the stored gate
    float gate_ffn = 1;   ///< tanh of the stored gate

    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        input_layernorm.for_each_tensor(visit);
        for (Linear* linear : {&q_proj, &k_proj, &v_proj, &o_proj}) linear->for_each_tensor(visit);
        post_attention_layernorm.for_each_tensor(visit);
        mlp.for_each_tensor(visit);
    }

    /// h (positions, hidden_size), in place.
    void forward(Tensor& h, const VisionConfig& config, Visibility visible, const Tensor& key_bias,
                 Arena& scratch) const;
};

/// MllamaPrecomputedAspectRatioEmbedding: one vector a tile, by the picture's aspect ratio.
struct TileEmbedding {
    Tensor embedding;  ///< (num_aspect_ratio_ids, max_num_tiles * hidden_size)
    float gate = 0;    ///< tanh of the stored gate

    /// rows (n, hidden_size) += gate * embedding[aspect_ratio_id][tile]
    void add_to(Tensor& rows, int64_t aspect_ratio_id, int64_t tile) const;
};

/// MllamaPrecomputedPositionEmbedding: one vector a position, and one a position, tile and aspect
/// ratio.
struct PositionEmbedding {
    Tensor embedding;       ///< (num_patches, hidden_size)
    Tensor tile_embedding;  ///< (num_aspect_ratio_ids, max_num_tiles * num_patches * hidden_size)
    float gate = 0;         ///< tanh of the stored gate

    /// rows (num_patches, hidden_size) += (1 - gate) * embedding + gate *
    /// tile_embedding[aspect_ratio_id][tile]
    void add_to(Tensor& rows, int64_t aspect_ratio_id, int64_t tile) const;
};

/// What the tower makes of one picture, before the states are laid side by side.
struct VisionFeatures {
    TileLayout layout;
    int64_t num_patches = 0;
    int64_t padded_patches = 0;
    Tensor final_state;  ///< (tiles * padded_patches, hidden_size)
    std::vector<Tensor>
        intermediates;  ///< each like final_state, in the order of intermediate_layers_indices

    /// The rows of one tile: out (num_patches, vision_output_dim). Column hidden_size + h * n + k
    /// is feature h of the k-th of n intermediate states: the reference stacks them on the last
    /// axis.
    void tile_rows(int64_t tile, Tensor& out) const;
};

/// How far a picture is: layers done, of all.
using VisionProgress = std::function<void(int64_t done, int64_t all)>;

class VisionModel {
  public:
    VisionModel(const VisionConfig& config, const WeightLoader& weights, Reference reference);

    /// Runs the tower. The result lives in `scratch`. `share_padding`: padding tiles that start
    /// equal are computed once (exact); false takes the general path always, which is the plain
    /// version of the same.
    [[nodiscard]] VisionFeatures forward(const ProcessedImage& image, Arena& scratch,
                                         const VisionProgress& progress = {},
                                         bool share_padding = true) const;

    [[nodiscard]] const VisionConfig& config() const { return config_; }
    /// What the products of the layers are computed in.
    [[nodiscard]] Compute compute() const {
        return transformer_.empty() ? patch_embedding_.compute : transformer_[0].q_proj.compute;
    }

    /// Where the tower is computed; it moves by its tensors, whole.
    [[nodiscard]] Device device() const { return class_embedding_.device(); }
    /// Calls visit(Tensor&) for all weights.
    void for_each_tensor(const std::function<void(Tensor&)>& visit);

    /// Multiply-adds of one picture of `real_tiles` tiles, as they are really done.
    [[nodiscard]] double multiply_adds(int64_t real_tiles) const;

    /// Whether all tiles that a picture of this aspect ratio leaves unused have the same
    /// embeddings.
    [[nodiscard]] bool padding_tiles_equal(int64_t aspect_ratio_id) const;

  private:
    /// x (tiles * padded_patches, hidden_size): what the first layer sees.
    void embed(const ProcessedImage& image, const TileLayout& layout, Tensor& x,
               Arena& scratch) const;

    /// The embeddings by tile as the checkpoint has them, on the CPU wherever the tower is: which
    /// padding tiles are equal is found out there, when it is first asked.
    struct Tables {
        Tensor positions, before, behind;
    };

    VisionConfig config_;
    Reference reference_;
    Tables tables_;
    Linear patch_embedding_;  // (hidden_size, num_channels * patch_size * patch_size)
    Tensor class_embedding_;  // (hidden_size)
    PositionEmbedding gated_positional_embedding_;
    TileEmbedding pre_tile_positional_embedding_;
    TileEmbedding post_tile_positional_embedding_;
    LayerNorm layernorm_pre_;
    LayerNorm layernorm_post_;
    std::vector<VisionEncoderLayer> transformer_;         // num_hidden_layers
    std::vector<VisionEncoderLayer> global_transformer_;  // num_global_layers
};

}  // namespace mllama
