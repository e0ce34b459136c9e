// The image processor, against MllamaImageProcessor of transformers.
#include "mllama/image_processor.h"

#include <doctest/doctest.h>

#include <cstring>
#include <limits>

#include "image_goldens.h"
#include "temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

ImageProcessorConfig config_of(const Json& json) {
    return ImageProcessorConfig::from_json(json, "p.json");
}

std::string config_error(const std::string& text) {
    return error_of([&] { config_of(parse_json(text, "p.json")); });
}

/// Equal to the last bit.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("processor_equals_transformers_to_the_last_bit") {
    const ImageGoldens goldens("processor");
    REQUIRE(goldens.entries.size() >= 40);
    for (const Json& entry : goldens.entries) {
        CAPTURE(entry.dump());
        const Image image = noise(entry["from"][0], entry["from"][1], entry["seed"]);
        const ProcessedImage result = process(image, config_of(entry["config"]));
        CHECK(result.num_tiles == entry["num_tiles"].get<int64_t>());
        CHECK(result.aspect_ratio_id == entry["aspect_ratio_id"].get<int64_t>());
        CHECK(result.tiles_high == entry["grid"][0].get<int64_t>());
        CHECK(result.tiles_wide == entry["grid"][1].get<int64_t>());
        CHECK(same_bits(result.pixel_values,
                        goldens.expected<float>(entry, result.pixel_values.size())));
        CHECK(static_cast<int64_t>(result.pixel_values.size()) ==
              result.num_tiles * 3 * result.tile_size * result.tile_size);
    }
}

TEST_CASE("pack_images_equals_transformers") {
    const ImageGoldens goldens("packing");
    REQUIRE(goldens.entries.size() >= 3);
    for (const Json& entry : goldens.entries) {
        CAPTURE(entry.dump());
        const ImageProcessorConfig config = config_of(entry["config"]);
        std::vector<std::vector<ProcessedImage>> samples;
        for (const Json& sample : entry["samples"]) {
            samples.emplace_back();
            for (const Json& size : sample) {
                const auto width = size[0].get<uint32_t>(), height = size[1].get<uint32_t>();
                samples.back().push_back(process(noise(width, height, width * height), config));
            }
        }
        const PackedImages packed = pack_images(samples, config.max_image_tiles);
        const std::vector<int64_t> shape{packed.batch,     packed.max_images, packed.max_tiles, 3,
                                         packed.tile_size, packed.tile_size};
        CHECK(shape == entry["shape"].get<std::vector<int64_t>>());
        CHECK(same_bits(packed.pixel_values,
                        goldens.expected<float>(entry, packed.pixel_values.size())));
        CHECK(packed.aspect_ratio_ids == entry["aspect_ratio_ids"].get<std::vector<int64_t>>());
        CHECK(packed.aspect_ratio_mask == entry["aspect_ratio_mask"].get<std::vector<int64_t>>());
        CHECK(packed.num_tiles == entry["num_tiles"].get<std::vector<std::vector<int64_t>>>());
    }
}

TEST_CASE("pack_images_of_a_sample_without_images_is_padding") {
    const ImageProcessorConfig config = config_of({{"size", {{"height", 4}, {"width", 4}}}});
    const PackedImages packed = pack_images({{}, {process(noise(4, 4, 1), config)}}, 4);
    CHECK(packed.aspect_ratio_ids == std::vector<int64_t>{0, 1});
    CHECK(packed.aspect_ratio_mask == std::vector<int64_t>{1, 0, 0, 0, 1, 0, 0, 0});
    CHECK(
        std::vector<float>(packed.pixel_values.begin(), packed.pixel_values.begin() + 4 * 3 * 16) ==
        std::vector<float>(4 * 3 * 16, 0.0f));
}

TEST_CASE("pack_images_errors") {
    const ImageProcessorConfig small = config_of({{"size", {{"height", 4}, {"width", 4}}}});
    const ImageProcessorConfig large = config_of({{"size", {{"height", 8}, {"width", 8}}}});
    const ProcessedImage a = process(noise(16, 4, 1), small), b = process(noise(4, 4, 1), large);
    CHECK(a.num_tiles == 4);
    CHECK(!error_of([&] { pack_images({{}, {}}, 4); }).empty());
    CHECK(!error_of([&] { pack_images({{a, b}}, 4); }).empty());
    CHECK(!error_of([&] { pack_images({{a}}, 3); }).empty());
}

TEST_CASE("supported_aspect_ratios_are_in_the_order_of_their_ids") {
    const std::vector<TileGrid> four{{1, 1}, {1, 2}, {1, 3}, {1, 4},
                                     {2, 1}, {2, 2}, {3, 1}, {4, 1}};
    CHECK(supported_aspect_ratios(4) == four);
    CHECK(supported_aspect_ratios(1) == std::vector<TileGrid>{{1, 1}});
}

TEST_CASE("place_image_chooses_grid_and_size") {
    const auto place = [](int64_t width, int64_t height) {
        return place_image(width, height, 4, 560);
    };
    CHECK(place(560, 560) == Placement{{1, 1}, 560, 560});
    CHECK(place(100, 50) ==
          Placement{{1, 1}, 560, 280});  // grows until a side is as long as a tile
    CHECK(place(600, 300) ==
          Placement{{1, 2}, 600, 300});  // fits, and stays as it is: a larger grid would not help
    CHECK(place(4000, 3000) == Placement{{2, 2}, 1120, 840});  // shrinks as little as possible
    CHECK(place(1, 10000) == Placement{{4, 1}, 1, 2240});      // no side is less than 1
    CHECK(place(10000, 1) == Placement{{1, 4}, 2240, 1});
    CHECK(place(1120, 560) == Placement{{1, 2}, 1120, 560});
}

TEST_CASE("process_pads_with_black_and_not_with_zero") {
    const ImageProcessorConfig config = config_of(
        {{"size", {{"height", 8}, {"width", 8}}}, {"image_mean", 0.25}, {"image_std", 0.5}});
    const ProcessedImage result = process(noise(8, 2, 1), config);
    REQUIRE(result.num_tiles == 1);
    CHECK(result.pixel_values[2 * 8] == -0.5f);  // the third row is padding: (0 - 0.25) / 0.5
    CHECK(result.pixel_values.back() == -0.5f);
}

TEST_CASE("process_errors") {
    ImageProcessorConfig config;
    CHECK(holds_all(error_of([&] { process(Image{}, config); }), {"0x0"}));
    CHECK(holds_all(error_of([&] {
                        process(Image{5, 5, {1, 2, 3}, true}, config);
                    }),
                    {"5x5", "3 bytes"}));
    config.do_convert_rgb = false;
    Image image = noise(4, 4, 1);
    CHECK(process(image, config).num_tiles == 1);
    image.stored_as_rgb = false;
    CHECK(holds_all(error_of([&] { process(image, config); }), {"do_convert_rgb"}));
}

TEST_CASE("processor_config_defaults_and_published_values") {
    const ImageProcessorConfig defaults = config_of(Json::object());
    CHECK(defaults.tile_size == 224);
    CHECK(defaults.max_image_tiles == 4);
    CHECK(defaults.resample == ResampleFilter::bilinear);
    CHECK(defaults.rescale_factor == 1.0 / 255.0);
    CHECK(defaults.image_mean == std::array<double, 3>{0.5, 0.5, 0.5});
    const ImageProcessorConfig published = config_of(parse_json(R"({
        "do_convert_rgb": true, "do_normalize": true, "do_pad": true,
        "do_rescale": true, "do_resize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "MllamaImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711], "max_image_tiles": 4, "resample": 2,
        "rescale_factor": 0.00392156862745098, "size": {"height": 560, "width": 560}})",
                                                                "p.json"));
    CHECK(published.tile_size == 560);
    CHECK(published.image_std[2] == 0.27577711);
    CHECK(config_of({{"image_mean", nullptr}, {"size", nullptr}, {"unknown_key", 3}}).tile_size ==
          224);
    CHECK(config_of({{"do_normalize", false}, {"image_std", 0}}).do_normalize ==
          false);  // divides nothing
}

TEST_CASE("processor_config_errors_name_file_and_key") {
    const std::vector<std::pair<std::string, std::string>> cases{
        {R"([])", "p.json"},
        {R"({"do_resize": false})", "do_resize"},
        {R"({"do_pad": false})", "do_pad"},
        {R"({"do_rescale": 1})", "do_rescale"},
        {R"({"do_normalize": null})", "do_normalize"},
        {R"({"do_convert_rgb": "yes"})", "do_convert_rgb"},
        {R"({"size": 560})", "size"},
        {R"({"size": {"shortest_edge": 560}})", "height"},
        {R"({"size": {"height": 560, "width": 448}})", "size"},
        {R"({"size": {"height": 560, "width": 560, "depth": 1}})", "size"},
        {R"({"size": {"height": 0, "width": 0}})", "height"},
        {R"({"size": {"height": 560.5, "width": 560.5}})", "height"},
        {R"({"size": {"height": 100000000, "width": 100000000}})", "height"},
        {R"({"resample": 6})", "resample"},
        {R"({"resample": -1})", "resample"},
        {R"({"resample": 7})", "resample"},
        {R"({"resample": "bilinear"})", "resample"},
        {R"({"resample": null})", "resample"},
        {R"({"rescale_factor": null})", "rescale_factor"},
        {R"({"rescale_factor": "1/255"})", "rescale_factor"},
        {R"({"rescale_factor": 1e300})", "rescale_factor"},
        {R"({"image_mean": [0.5, 0.5]})", "image_mean"},
        {R"({"image_mean": [0.5, 0.5, "x"]})", "image_mean"},
        {R"({"image_mean": {}})", "image_mean"},
        {R"({"image_std": [0.5, 0, 0.5]})", "image_std"},
        {R"({"image_std": 0})", "image_std"},
        {R"({"image_std": 1e-60})", "image_std"},
        {R"({"max_image_tiles": 0})", "max_image_tiles"},
        {R"({"max_image_tiles": 18446744073709551615})", "max_image_tiles"},
        {R"({"max_image_tiles": 1000, "size": {"height": 8000, "width": 8000}})",
         "max_image_tiles"},
        {R"({"image_processor_type": "CLIPImageProcessor"})", "image_processor_type"},
    };
    for (const auto& [text, key] : cases) {
        CAPTURE(text);
        const std::string message = config_error(text);
        CHECK(message.starts_with("p.json: "));
        CHECK(holds_all(message, {key}));
    }
}
