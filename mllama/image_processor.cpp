#include "mllama/image_processor.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "io/json_object.h"
#include "kernels/error.h"

namespace mllama {
namespace {

constexpr double largest_number =
    1e30;  // of a factor, mean or deviation; far from overflow in float32

/// Null stands for the default only in size, image_mean and image_std; elsewhere transformers
/// refuses it or takes it for false.
void check_nulls(const JsonObject& json, const Json& document) {
    for (const char* key : {"do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad",
                            "resample", "rescale_factor", "max_image_tiles"}) {
        if (document.contains(key) && document[key].is_null()) json.reject(key, "a value");
    }
}

/// do_resize and do_pad: the processor has no other way.
void require_true(const JsonObject& json, const char* key) {
    if (!json.boolean_or(key, true)) {
        json.reject(key, "true, because the Mllama processor cuts every picture to whole tiles");
    }
}

int64_t read_tile_size(const JsonObject& json, int64_t fallback) {
    constexpr int64_t max_tile_size = 8192;
    if (!json.has("size")) return fallback;
    const JsonObject size = json.object("size");
    const int64_t height = size.integer("height", 1, max_tile_size);
    const int64_t width = size.integer("width", 1, max_tile_size);
    if (json.value("size").size() != 2) json.reject("size", "no keys but height and width");
    if (height != width) json.reject("size", "equal height and width");
    return height;
}

/// Three numbers, or one for all three channels.
std::array<double, 3> read_channels(const JsonObject& json, const char* key,
                                    const std::array<double, 3>& fallback) {
    if (!json.has(key)) return fallback;
    std::array<double, 3> channels{};
    if (json.value(key).is_number()) {
        channels.fill(json.number(key, -largest_number, largest_number));
        return channels;
    }
    const std::vector<double> numbers = json.numbers(key);
    const auto in_range = [](double number) { return std::abs(number) <= largest_number; };
    if (numbers.size() != channels.size() ||
        !std::all_of(numbers.begin(), numbers.end(), in_range)) {
        json.reject(key, "a number, or one for each of three channels");
    }
    std::copy(numbers.begin(), numbers.end(), channels.begin());
    return channels;
}

void check_processor_type(const JsonObject& json) {
    const std::string type = json.text_or("image_processor_type", "MllamaImageProcessor");
    if (type != "MllamaImageProcessor" && type != "MllamaImageProcessorFast") {
        json.reject("image_processor_type", "\"MllamaImageProcessor\"");
    }
}

/// The scales at which a picture fills each grid without distortion, limited by the tighter side.
std::vector<double> scales_to_grids(int64_t width, int64_t height,
                                    const std::vector<TileGrid>& grids, int64_t tile_size) {
    std::vector<double> scales;
    for (const TileGrid& grid : grids) {
        const double scale_high =
            static_cast<double>(grid.high * tile_size) / static_cast<double>(height);
        const double scale_wide =
            static_cast<double>(grid.wide * tile_size) / static_cast<double>(width);
        scales.push_back(std::min(scale_high, scale_wide));
    }
    return scales;
}

TileGrid choose_grid(int64_t width, int64_t height, int64_t max_image_tiles, int64_t tile_size) {
    const std::vector<TileGrid> grids = supported_aspect_ratios(max_image_tiles);
    const std::vector<double> scales = scales_to_grids(width, height, grids, tile_size);
    // An upscaling (at least 1) is better than any downscaling; the smaller change is better in
    // either case.
    const auto better = [](double a, double b) {
        return (a >= 1) != (b >= 1) ? a >= 1 : a >= 1 ? a < b : a > b;
    };
    size_t best = 0;
    for (size_t i = 1; i < grids.size(); ++i) {
        const bool smaller = grids[i].high * grids[i].wide < grids[best].high * grids[best].wide;
        if (better(scales[i], scales[best]) || (scales[i] == scales[best] && smaller)) best = i;
    }
    return grids[best];
}

/// floor(length * scale), at least 1 and at most `limit`.
int64_t scaled_length(int64_t length, double scale, int64_t limit) {
    const auto scaled = static_cast<int64_t>(std::floor(static_cast<double>(length) * scale));
    return std::min(std::max<int64_t>(scaled, 1), limit);
}

/// What each of the 256 sample values becomes in each channel. The order of operations and their
/// types are numpy's: the product in float64 and then rounded, the normalisation in float32.
using ValueTable = std::array<std::array<float, 256>, 3>;

ValueTable value_table(const ImageProcessorConfig& config) {
    ValueTable table{};
    for (size_t c = 0; c < 3; ++c) {
        const auto mean = static_cast<float>(config.image_mean[c]);
        const auto deviation = static_cast<float>(config.image_std[c]);
        for (size_t v = 0; v < 256; ++v) {
            auto value = static_cast<float>(v);
            if (config.do_rescale)
                value = static_cast<float>(static_cast<double>(v) * config.rescale_factor);
            if (config.do_normalize) value = (value - mean) / deviation;
            table[c][v] = value;
        }
    }
    return table;
}

/// The tile at (row, column) of the grid, from `resized` (height, width, 3), which may end before
/// it does; what lies beyond is black. tile (3, tile_size, tile_size).
void cut_tile(const Image& resized, int64_t row, int64_t column, int64_t tile_size,
              const ValueTable& values, float* tile) {
    const int64_t top = row * tile_size, left = column * tile_size;
    const int64_t rows = std::clamp<int64_t>(resized.height - top, 0, tile_size);
    const int64_t columns = std::clamp<int64_t>(resized.width - left, 0, tile_size);
    for (size_t c = 0; c < 3; ++c) {
        float* plane = tile + static_cast<int64_t>(c) * tile_size * tile_size;
        std::fill_n(plane, tile_size * tile_size, values[c][0]);
        for (int64_t y = 0; y < rows; ++y) {
            const uint8_t* from = resized.rgb.data() + ((top + y) * resized.width + left) * 3;
            for (int64_t x = 0; x < columns; ++x)
                plane[y * tile_size + x] = values[c][from[3 * x + static_cast<int64_t>(c)]];
        }
    }
}

void check_image(const Image& image, const ImageProcessorConfig& config) {
    if (image.width <= 0 || image.height <= 0 ||
        static_cast<int64_t>(image.rgb.size()) / 3 / image.width != image.height) {
        fail("image: expected ", image.width, "x", image.height, " RGB pixels, found ",
             image.rgb.size(), " bytes");
    }
    if (!config.do_convert_rgb && !image.stored_as_rgb) {
        fail("image: expected an RGB picture, because do_convert_rgb is false, found another mode");
    }
}

}  // namespace

ImageProcessorConfig ImageProcessorConfig::from_json(const Json& document,
                                                     const std::string& path) {
    const JsonObject json(document, path);
    check_processor_type(json);
    check_nulls(json, document);
    require_true(json, "do_resize");
    require_true(json, "do_pad");

    ImageProcessorConfig config;
    config.do_convert_rgb = json.boolean_or("do_convert_rgb", config.do_convert_rgb);
    config.do_rescale = json.boolean_or("do_rescale", config.do_rescale);
    config.do_normalize = json.boolean_or("do_normalize", config.do_normalize);
    config.tile_size = read_tile_size(json, config.tile_size);
    config.resample = static_cast<ResampleFilter>(
        json.integer_or("resample", 0, 5, static_cast<int64_t>(config.resample)));
    config.rescale_factor =
        json.number_or("rescale_factor", -largest_number, largest_number, config.rescale_factor);
    config.image_mean = read_channels(json, "image_mean", config.image_mean);
    config.image_std = read_channels(json, "image_std", config.image_std);
    const auto is_zero = [](double deviation) { return static_cast<float>(deviation) == 0.0f; };
    if (config.do_normalize &&
        std::any_of(config.image_std.begin(), config.image_std.end(), is_zero)) {
        json.reject("image_std", "numbers other than 0, by which pixels are divided");
    }
    constexpr int64_t max_tiles = 1024, max_pixels = int64_t{1} << 26;
    config.max_image_tiles =
        json.integer_or("max_image_tiles", 1, max_tiles, config.max_image_tiles);
    const int64_t pixels = config.max_image_tiles * config.tile_size * config.tile_size;
    if (pixels > max_pixels) {
        fail(path, ": size and max_image_tiles: expected at most ", max_pixels,
             " pixels in all tiles of a picture, found ", pixels);
    }
    return config;
}

std::vector<TileGrid> supported_aspect_ratios(int64_t max_image_tiles) {
    std::vector<TileGrid> grids;
    for (int64_t high = 1; high <= max_image_tiles; ++high) {
        for (int64_t wide = 1; wide <= max_image_tiles / high; ++wide)
            grids.push_back({high, wide});
    }
    return grids;
}

Placement place_image(int64_t width, int64_t height, int64_t max_image_tiles, int64_t tile_size) {
    assert(width > 0 && height > 0 && max_image_tiles > 0 && tile_size > 0);
    const TileGrid grid = choose_grid(width, height, max_image_tiles, tile_size);
    const int64_t target_width = std::clamp(width, tile_size, grid.wide * tile_size);
    const int64_t target_height = std::clamp(height, tile_size, grid.high * tile_size);
    const double scale_wide = static_cast<double>(target_width) / static_cast<double>(width);
    const double scale_high = static_cast<double>(target_height) / static_cast<double>(height);
    if (scale_wide < scale_high)
        return {grid, target_width, scaled_length(height, scale_wide, target_height)};
    return {grid, scaled_length(width, scale_high, target_width), target_height};
}

ProcessedImage process(const Image& image, const ImageProcessorConfig& config) {
    check_image(image, config);
    const Placement place =
        place_image(image.width, image.height, config.max_image_tiles, config.tile_size);
    const Image resized = resize(image, place.width, place.height, config.resample);

    const std::vector<TileGrid> grids = supported_aspect_ratios(config.max_image_tiles);
    const auto index = std::find(grids.begin(), grids.end(), place.grid) - grids.begin();
    ProcessedImage result{place.grid.high, place.grid.wide,  place.grid.high * place.grid.wide,
                          index + 1,       config.tile_size, {}};
    const int64_t tile_values = 3 * config.tile_size * config.tile_size;
    result.pixel_values.resize(static_cast<size_t>(result.num_tiles * tile_values));
    const ValueTable values = value_table(config);
    float* tile = result.pixel_values.data();
    for (int64_t row = 0; row < place.grid.high; ++row) {
        for (int64_t column = 0; column < place.grid.wide; ++column, tile += tile_values) {
            cut_tile(resized, row, column, config.tile_size, values, tile);
        }
    }
    return result;
}

PackedImages pack_images(const std::vector<std::vector<ProcessedImage>>& samples,
                         int64_t max_image_tiles) {
    PackedImages packed;
    packed.batch = static_cast<int64_t>(samples.size());
    packed.max_tiles = max_image_tiles;
    for (const auto& images : samples) {
        packed.max_images = std::max(packed.max_images, static_cast<int64_t>(images.size()));
        for (const ProcessedImage& image : images) {
            if (packed.tile_size == 0) packed.tile_size = image.tile_size;
            if (image.tile_size != packed.tile_size || image.num_tiles > max_image_tiles) {
                fail("images: expected at most ", max_image_tiles, " tiles of ", packed.tile_size,
                     " pixels, found ", image.num_tiles, " of ", image.tile_size);
            }
        }
    }
    if (packed.max_images == 0) fail("images: expected at least one, found none");

    const auto slots = static_cast<size_t>(packed.batch * packed.max_images);
    const auto tile_values = static_cast<size_t>(3 * packed.tile_size * packed.tile_size);
    const auto tiles = static_cast<size_t>(max_image_tiles);
    packed.pixel_values.resize(slots * tiles * tile_values);
    packed.aspect_ratio_ids.resize(slots);
    packed.aspect_ratio_mask.resize(slots * tiles);
    for (size_t slot = 0; slot < slots; ++slot) packed.aspect_ratio_mask[slot * tiles] = 1;
    for (size_t sample = 0; sample < samples.size(); ++sample) {
        packed.num_tiles.emplace_back();
        for (size_t i = 0; i < samples[sample].size(); ++i) {
            const ProcessedImage& image = samples[sample][i];
            const size_t slot = sample * static_cast<size_t>(packed.max_images) + i;
            std::copy(
                image.pixel_values.begin(), image.pixel_values.end(),
                packed.pixel_values.begin() + static_cast<int64_t>(slot * tiles * tile_values));
            packed.aspect_ratio_ids[slot] = image.aspect_ratio_id;
            std::fill_n(packed.aspect_ratio_mask.begin() + static_cast<int64_t>(slot * tiles),
                        image.num_tiles, 1);
            packed.num_tiles.back().push_back(image.num_tiles);
        }
    }
    return packed;
}

}  // namespace mllama
