// config.json of an Mllama checkpoint. The names of the members are the keys of the published files
// and the words in which every shape of this program is written. Source: configuration_mllama.py of
// transformers 4.56.2.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "mllama/quantisation_config.h"
#include "nn/rope.h"
#include "tensor/ops.h"

namespace mllama {

/// The vision tower: tiles of a picture to vision rows.
struct VisionConfig {
    int64_t hidden_size = 0;
    int64_t num_hidden_layers = 0;    ///< local layers
    int64_t num_global_layers = 0;    ///< gated layers behind them
    int64_t num_attention_heads = 0;  ///< "attention_heads" in published files
    int64_t num_channels = 0;
    int64_t intermediate_size = 0;
    int64_t vision_output_dim = 0;  ///< hidden_size * (1 + intermediate_layers_indices)
    int64_t image_size = 0;         ///< side of a tile, pixels
    int64_t patch_size = 0;         ///< side of a patch, pixels
    int64_t max_num_tiles = 0;
    float norm_eps = 0;
    Activation hidden_act = Activation::gelu;
    std::vector<int64_t> intermediate_layers_indices;
    std::vector<std::pair<int64_t, int64_t>>
        supported_aspect_ratios;  ///< (tiles high, tiles wide); id = index + 1

    [[nodiscard]] int64_t head_dim() const { return hidden_size / num_attention_heads; }
    [[nodiscard]] int64_t patches_per_side() const { return image_size / patch_size; }
    /// Positions of a tile: its patches and the class token. 1601 at 560 pixels.
    [[nodiscard]] int64_t num_patches() const {
        return patches_per_side() * patches_per_side() + 1;
    }
    /// Rows of a picture of all tiles: 6404.
    [[nodiscard]] int64_t max_patches() const { return max_num_tiles * num_patches(); }
    /// num_patches with the padding to a multiple of 8: 1608.
    [[nodiscard]] int64_t padded_patches() const { return (num_patches() + 7) / 8 * 8; }
    /// Pixels of a patch, all channels: the inputs of the patch embedding.
    [[nodiscard]] int64_t patch_pixels() const { return num_channels * patch_size * patch_size; }
    /// Rows of the tables that are indexed by aspect ratio id (0 is "no image").
    [[nodiscard]] int64_t num_aspect_ratio_ids() const {
        return static_cast<int64_t>(supported_aspect_ratios.size()) + 1;
    }
};

/// The text tower.
struct TextConfig {
    int64_t vocab_size = 0;  ///< rows of lm_head; embed_tokens has 8 more
    int64_t hidden_size = 0;
    int64_t num_hidden_layers = 0;
    int64_t num_attention_heads = 0;
    int64_t num_key_value_heads = 0;
    int64_t intermediate_size = 0;
    int64_t max_position_embeddings = 0;
    float rms_norm_eps = 0;
    Activation hidden_act = Activation::silu;
    RopeConfig rope;
    std::vector<int64_t> cross_attention_layers;  ///< sorted; these replace self-attention
    int64_t bos_token_id = -1;                    ///< -1: the file names none
    int64_t pad_token_id = -1;
    std::vector<int64_t> eos_token_ids;

    [[nodiscard]] int64_t head_dim() const { return hidden_size / num_attention_heads; }
    [[nodiscard]] int64_t kv_size() const { return num_key_value_heads * head_dim(); }
    [[nodiscard]] int64_t embedding_rows() const { return vocab_size + 8; }
    [[nodiscard]] bool is_cross_attention(int64_t layer) const;
};

struct ModelConfig {
    VisionConfig vision;
    TextConfig text;
    int64_t image_token_id = 0;
    QuantisationConfig quantisation;

    /// Reads DIR/config.json. Errors: Error naming the file and the key, expected and found; every
    /// value that shapes the computation is checked, and one that this program does not know (an
    /// activation, a rope_type, a quantisation) is an error.
    static ModelConfig load(const std::string& checkpoint_dir);
    static ModelConfig load_file(const std::string& config_path);
};

}  // namespace mllama
