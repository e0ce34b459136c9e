#include "mllama/masks.h"

#include <cmath>

namespace mllama {

ImageSpan ImageRule::next(bool is_image_token) {
    if (is_image_token) {
        if (!after_image_) span_.first = span_.last;
        ++span_.last;
    }
    after_image_ = is_image_token;
    return span_;
}

TileLayout TileLayout::of(int64_t real_tiles, int64_t max_num_tiles, bool share_padding) {
    const int64_t missing = max_num_tiles - real_tiles;
    if (share_padding && missing > 1) return {real_tiles, 1, missing};
    return {real_tiles, missing, 1};
}

KeyVisibility tile_visibility(const TileLayout& layout, int64_t num_patches,
                              int64_t padded_patches) {
    const KeyRange everything{0, layout.tiles() * padded_patches};
    std::vector<KeyRange> real_positions;
    for (int64_t tile = 0; tile < layout.real_tiles; ++tile) {
        const int64_t begin = tile * padded_patches;
        real_positions.push_back({begin, begin + num_patches});
    }
    KeyVisibility visible;
    for (int64_t tile = 0; tile < layout.tiles(); ++tile) {
        for (int64_t position = 0; position < padded_patches; ++position) {
            if (tile < layout.real_tiles && position < num_patches) {
                visible.add_query(everything);
            } else {
                visible.add_query(real_positions);
            }
        }
    }
    return visible;
}

void append_key_bias(const TileLayout& layout, int64_t rows_per_tile, std::vector<float>& bias) {
    const auto weight = static_cast<float>(std::log(static_cast<double>(layout.multiplicity)));
    bias.insert(bias.end(), static_cast<size_t>(layout.real_tiles * rows_per_tile), 0.0f);
    bias.insert(bias.end(), static_cast<size_t>(layout.padding_tiles * rows_per_tile), weight);
}

}  // namespace mllama
