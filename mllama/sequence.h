// What the text tower keeps of one text: keys and values by position for self-attention, by image
// for cross-attention.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "mllama/config.h"
#include "mllama/masks.h"
#include "nn/kv_cache.h"

namespace mllama {

/// A picture as the cross-attention layers see it: rows of its computed tiles, real ones first.
struct VisionRows {
    TileLayout layout;
    Tensor rows;  ///< (tiles * num_patches, text hidden_size), behind the projector
};

/// Where a picture's keys stand in the cross-attention caches.
struct ImageKeys {
    int64_t begin = 0;
    int64_t real_end = 0;  ///< keys of real tiles end here
    int64_t end = 0;       ///< keys of padding tiles end here
};

/// One conversation or sample. Independent of all others: what it is batched with never changes it.
class Sequence {
  public:
    /// `kv_dtype`: what keys and values are rounded to; `devices`: by layer, where they are kept;
    /// `pools`: by layer, see KvCache; may be null.
    Sequence(const TextConfig& config, DType kv_dtype, const std::vector<Device>& devices,
             const std::vector<std::shared_ptr<KvPool>>& pools);

    /// Makes room for `positions` tokens in all.
    void reserve(int64_t positions);

    /// Forgets the tokens from `ids.size()` on; `ids` are the tokens that stay. Pictures stay.
    void truncate(std::span<const int64_t> ids, int64_t image_token_id);

    /// Tokens whose keys and values are cached.
    [[nodiscard]] int64_t length() const { return length_; }
    [[nodiscard]] bool has_images() const { return !images_.empty(); }
    [[nodiscard]] int64_t num_images() const { return static_cast<int64_t>(images_.size()); }

    // For the text tower.
    std::vector<KvCache> self_attention;   ///< by layer; empty ones for cross-attention layers
    std::vector<KvCache> cross_attention;  ///< by layer; empty ones for self-attention layers
    ImageRule image_rule;                  ///< which images the next token sees

    /// Registers a picture whose keys have been appended to every cross-attention cache.
    void add_image(const TileLayout& layout, int64_t rows_per_tile);
    /// The tokens of a forward are in the caches.
    void advance(int64_t tokens) { length_ += tokens; }
    [[nodiscard]] const std::vector<ImageKeys>& images() const { return images_; }
    /// (keys) f32: log of how many tiles a padding tile stands for; undefined if that is nowhere
    /// more than one, and on a device that no cross-attention layer uses.
    [[nodiscard]] const Tensor& key_bias(Device device) const { return key_bias_[device]; }

  private:
    int64_t length_ = 0;
    std::vector<ImageKeys> images_;
    std::vector<float> bias_;
    PerDevice<Tensor> key_bias_;
};

}  // namespace mllama
