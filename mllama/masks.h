// Who may look at what, as rules over ranges. Nothing here is ever an array of queries x keys.
// Source: get_cross_attention_token_mask (processing_mllama.py), _prepare_cross_attention_mask and
// _prepare_aspect_ratio_attention_mask (modeling_mllama.py) of transformers 4.56.2.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/ops.h"

namespace mllama {

/// Where implementations disagree. `transformers` is transformers 4.56.2; `meta` is the code that
/// the weights were trained with:
/// - a text row that sees no image: transformers lets it attend to every image position, padding
///   tiles included, and drops only its feed-forward output; meta drops the attention output too
///   (transformers issue 39379).
/// - `intermediate_layers_indices`: transformers takes the output of the local layer of that index,
///   meta its input (as transformers did up to 4.54).
enum class Reference { transformers, meta };

/// The images [first, last) that a text row sees; empty: none.
struct ImageSpan {
    int64_t first = 0;
    int64_t last = 0;
    [[nodiscard]] bool empty() const { return first == last; }
};

/// Walks along a text and says which images each token sees: text between an image and the next
/// sees that image, images that follow each other are seen together, the last ones until the end,
/// generated tokens included.
class ImageRule {
  public:
    /// The span of the next token of the text.
    ImageSpan next(bool is_image_token);

    /// Images met so far.
    [[nodiscard]] int64_t images() const { return span_.last; }

  private:
    ImageSpan span_;
    bool after_image_ = false;
};

/// The rows of a picture in the vision tower, and as keys of cross-attention. Tiles that do not
/// exist in the picture are computed too (they influence the result), once for all of them where
/// they start equal.
struct TileLayout {
    int64_t real_tiles = 0;     ///< tiles of the picture
    int64_t padding_tiles = 0;  ///< tiles behind them that are computed: 0, 1 or all
    int64_t multiplicity = 1;   ///< how many tiles each padding tile stands for

    [[nodiscard]] int64_t tiles() const { return real_tiles + padding_tiles; }

    /// `share_padding`: the padding tiles start equal and stay equal, so one is computed for all.
    static TileLayout of(int64_t real_tiles, int64_t max_num_tiles, bool share_padding);
};

/// Attention inside the vision tower: only padding to padding is forbidden. A position is padding
/// if its tile is, or if it is one of the rows behind num_patches that round a tile up to
/// padded_patches.
KeyVisibility tile_visibility(const TileLayout& layout, int64_t num_patches,
                              int64_t padded_patches);

/// log(multiplicity) for the keys of padding tiles, 0 for others: `rows_per_tile` rows a tile.
/// Equal keys that are summed up in a softmax are one key with the logarithm of their number added
/// to its logit. Appends to `bias`.
void append_key_bias(const TileLayout& layout, int64_t rows_per_tile, std::vector<float>& bias);

}  // namespace mllama
