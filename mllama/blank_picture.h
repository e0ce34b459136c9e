// Pictures that come from no file: for benches and tests.
#pragma once

#include "mllama/config.h"
#include "mllama/image_processor.h"

namespace mllama {

/// A picture in the tiles of supported_aspect_ratios[shape], as the processor would give it, all of its
/// pixels 0.
inline ProcessedImage blank_picture(const VisionConfig& config, size_t shape) {
    const auto [high, wide] = config.supported_aspect_ratios[shape];
    ProcessedImage image;
    image.tiles_high = high;
    image.tiles_wide = wide;
    image.num_tiles = high * wide;
    image.aspect_ratio_id = static_cast<int64_t>(shape) + 1;
    image.tile_size = config.image_size;
    image.pixel_values.resize(static_cast<size_t>(image.num_tiles * config.num_channels *
                                                  config.image_size * config.image_size));
    return image;
}

}  // namespace mllama
