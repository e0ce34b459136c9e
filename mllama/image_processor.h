// A picture becomes the tiles that the vision tower sees, equal to the last bit to
// MllamaImageProcessor of transformers 4.56.2 (models/mllama/image_processing_mllama.py):
//
//   choose a grid of tiles -> resize to fit -> pad with black, right and below -> rescale ->
//   normalise -> cut into tiles
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "io/image_file.h"
#include "mllama/resample.h"

namespace mllama {

/// The contents of preprocessor_config.json; the defaults are the processor's.
struct ImageProcessorConfig {
    bool do_convert_rgb = true;
    int64_t tile_size = 224;  ///< `size`: height and width of a tile in pixels, which must be equal
    ResampleFilter resample = ResampleFilter::bilinear;
    bool do_rescale = true;
    double rescale_factor = 1.0 / 255.0;
    bool do_normalize = true;
    std::array<double, 3> image_mean{0.5, 0.5, 0.5};  ///< red, green, blue
    std::array<double, 3> image_std{0.5, 0.5, 0.5};
    int64_t max_image_tiles = 4;

    /// Reads the object of the file `path`; keys that are missing keep their defaults, keys of
    /// other processors are left alone. Errors: Error that names path and key, for a value of the
    /// wrong type or range; do_resize and do_pad must be true, as in transformers; all tiles of a
    /// picture may have at most 2^26 pixels together.
    static ImageProcessorConfig from_json(const nlohmann::json& document, const std::string& path);
};

/// A grid of tiles.
struct TileGrid {
    int64_t high = 1;
    int64_t wide = 1;
    bool operator==(const TileGrid&) const = default;
};

/// All grids of at most max_image_tiles tiles, in the order that defines their ids: the id of entry
/// i is i + 1.
std::vector<TileGrid> supported_aspect_ratios(int64_t max_image_tiles);

/// Where a picture goes: the grid and the size it is resized to, which fits the grid.
struct Placement {
    TileGrid grid;
    int64_t width = 0;   ///< pixels, at most grid.wide * tile_size
    int64_t height = 0;  ///< pixels, at most grid.high * tile_size
    bool operator==(const Placement&) const = default;
};

/// The grid that needs the smallest upscaling, if one holds the picture as it is; else the smallest
/// downscaling; the smallest area among equals. A picture that fits grows only until a side is as
/// long as a tile.
Placement place_image(int64_t width, int64_t height, int64_t max_image_tiles, int64_t tile_size);

/// A picture in tiles. The vision tower takes max_image_tiles of them; those beyond num_tiles are
/// zeros.
struct ProcessedImage {
    int64_t tiles_high = 0;
    int64_t tiles_wide = 0;
    int64_t num_tiles = 0;            ///< tiles_high * tiles_wide
    int64_t aspect_ratio_id = 0;      ///< 1 + index in supported_aspect_ratios
    int64_t tile_size = 0;            ///< pixels
    std::vector<float> pixel_values;  ///< (num_tiles, 3, tile_size, tile_size), tiles row by row
};

/// Errors: Error for an empty picture, for one not stored as RGB when do_convert_rgb is false
/// (transformers fails there too), and those of resize.
ProcessedImage process(const Image& image, const ImageProcessorConfig& config);

/// A batch as the processor returns it. A sample has up to max_images pictures; missing ones have
/// zeros, the id 0, and a mask of one tile.
struct PackedImages {
    int64_t batch = 0;
    int64_t max_images = 0;
    int64_t max_tiles = 0;  ///< max_image_tiles
    int64_t tile_size = 0;
    std::vector<float> pixel_values;  ///< (batch, max_images, max_tiles, 3, tile_size, tile_size)
    std::vector<int64_t> aspect_ratio_ids;   ///< (batch, max_images)
    std::vector<int64_t> aspect_ratio_mask;  ///< (batch, max_images, max_tiles), 1: a real tile
    std::vector<std::vector<int64_t>> num_tiles;  ///< (batch, images of the sample)
};

/// Packs the pictures of each sample. Errors: Error if there is no picture at all, if tile sizes
/// differ, or if a picture has more than max_image_tiles tiles.
PackedImages pack_images(const std::vector<std::vector<ProcessedImage>>& samples,
                         int64_t max_image_tiles);

}  // namespace mllama
