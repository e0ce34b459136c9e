// Resizing, against Pillow's results and against a plain form of the rule.
#include "mllama/resample.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "image_goldens.h"
#include "temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

constexpr ResampleFilter all_filters[] = {ResampleFilter::nearest,  ResampleFilter::lanczos,
                                          ResampleFilter::bilinear, ResampleFilter::bicubic,
                                          ResampleFilter::box,      ResampleFilter::hamming};

Image constant(int64_t width, int64_t height, uint8_t value) {
    return {width, height, std::vector<uint8_t>(static_cast<size_t>(width * height * 3), value),
            true};
}

/// The rule in floating point, for the bilinear filter: output pixel (x, y) is the mean of all
/// input pixels under a triangle that is as wide as the scale, in both directions at once.
double plain_bilinear(const Image& image, int64_t width, int64_t height, int64_t x, int64_t y,
                      int64_t channel) {
    const auto weight = [](int64_t from, int64_t to, int64_t out, int64_t in) {
        const double scale = static_cast<double>(from) / static_cast<double>(to);
        const double distance =
            (static_cast<double>(in) + 0.5) - (static_cast<double>(out) + 0.5) * scale;
        return std::max(0.0, 1 - std::abs(distance) / std::max(scale, 1.0));
    };
    double sum = 0, weights = 0;
    for (int64_t in_y = 0; in_y < image.height; ++in_y) {
        for (int64_t in_x = 0; in_x < image.width; ++in_x) {
            const double w =
                weight(image.width, width, x, in_x) * weight(image.height, height, y, in_y);
            weights += w;
            sum += w * image.rgb[static_cast<size_t>((in_y * image.width + in_x) * 3 + channel)];
        }
    }
    return sum / weights;
}

}  // namespace

TEST_CASE("resize_equals_pillow_for_all_filters") {
    const ImageGoldens goldens("resample");
    REQUIRE(goldens.entries.size() >= 70);
    for (const Json& entry : goldens.entries) {
        CAPTURE(entry.dump());
        const Image image = noise(entry["from"][0], entry["from"][1], entry["seed"]);
        const auto width = entry["to"][0].get<int64_t>(), height = entry["to"][1].get<int64_t>();
        const Image resized =
            resize(image, width, height, static_cast<ResampleFilter>(entry["filter"].get<int>()));
        CHECK(resized.width == width);
        CHECK(resized.height == height);
        CHECK(resized.rgb ==
              goldens.expected<uint8_t>(entry, static_cast<size_t>(width * height * 3)));
    }
}

TEST_CASE("resize_bilinear_is_the_mean_under_a_triangle") {
    for (const auto& [width, height] :
         std::vector<std::pair<int64_t, int64_t>>{{7, 5}, {40, 31}, {13, 3}, {1, 1}}) {
        const Image image = noise(19, 17, 3);
        const Image resized = resize(image, width, height, ResampleFilter::bilinear);
        for (int64_t i = 0; i < width * height * 3; ++i) {
            const double expected =
                plain_bilinear(image, width, height, i / 3 % width, i / 3 / width, i % 3);
            CHECK(std::abs(resized.rgb[static_cast<size_t>(i)] - expected) <
                  1.01);  // each of two passes rounds
        }
    }
}

TEST_CASE("resize_keeps_a_constant_picture") {
    for (const ResampleFilter filter : all_filters) {
        for (const uint8_t value : std::vector<uint8_t>{0, 1, 128, 255}) {
            const Image resized = resize(constant(23, 11, value), 9, 37, filter);
            CHECK(resized.rgb == constant(9, 37, value).rgb);
        }
    }
}

TEST_CASE("resize_to_the_same_size_copies") {
    const Image image = noise(6, 4, 1);
    for (const ResampleFilter filter : all_filters)
        CHECK(resize(image, 6, 4, filter).rgb == image.rgb);
}

TEST_CASE("resize_extreme_shapes") {
    for (const ResampleFilter filter : all_filters) {
        CHECK(resize(noise(10000, 1, 2), 1, 1, filter).rgb.size() == 3);
        CHECK(resize(noise(1, 10000, 2), 3, 2, filter).rgb.size() == 18);
        CHECK(resize(noise(1, 1, 2), 100, 1, filter).rgb.size() == 300);
    }
}

TEST_CASE("resize_with_weights_beyond_2_gib_is_an_error") {
    const Image image = constant(60'000'000, 1, 0);
    CHECK(holds_all(error_of([&] { resize(image, 100, 1, ResampleFilter::lanczos); }),
                    {"60000000", "2 GiB"}));
}
