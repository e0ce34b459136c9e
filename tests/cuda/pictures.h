// Pictures for tests of models.
#pragma once

#include <doctest/doctest.h>

#include "mllama/blank_picture.h"

namespace mllama::test {

/// A picture of so many tiles, in the last shape that has as many.
inline ProcessedImage picture_of_tiles(const VisionConfig& config, int64_t tiles) {
    size_t shape = config.supported_aspect_ratios.size() - 1;
    const auto tiles_of = [&](size_t i) {
        return config.supported_aspect_ratios[i].first * config.supported_aspect_ratios[i].second;
    };
    while (shape > 0 && tiles_of(shape) != tiles) --shape;
    REQUIRE(tiles_of(shape) == tiles);
    return blank_picture(config, shape);
}

}  // namespace mllama::test
