#include "mllama/resample.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace mllama {
namespace {

constexpr int channels = 3;

/// Fractional bits of a weight: 32 less 8 of a sample and 2 for weights below 0 and above 1 in sum.
constexpr int precision_bits = 32 - 8 - 2;

// The filters, as functions of the distance from the centre in (widened) pixels.

double box(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

double bilinear(double x) {
    x = std::abs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= std::numbers::pi;
    return std::sin(x) / x;
}

/// Sinc under a Hamming window. The two constants are single precision in Pillow, and so they are
/// here.
double hamming(double x) {
    x = std::abs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= std::numbers::pi;
    return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));
}

/// Keys' cubic convolution with a = -1/2 (IEEE Trans. ASSP 29, 1981).
double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

double lanczos(double x) {
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

struct Filter {
    double (*weight)(double);
    double support;  // it is 0 beyond this distance
};

Filter filter_of(ResampleFilter filter) {
    switch (filter) {
        case ResampleFilter::lanczos:
            return {lanczos, 3.0};
        case ResampleFilter::bilinear:
            return {bilinear, 1.0};
        case ResampleFilter::bicubic:
            return {bicubic, 2.0};
        case ResampleFilter::box:
            return {box, 0.5};
        case ResampleFilter::hamming:
            return {hamming, 1.0};
        case ResampleFilter::nearest:
            break;
    }
    assert(false && "nearest has no weights");
    return {box, 0.5};
}

/// One pass: output pixel i is the sum of weight[j] * input pixel (begin[i] + j) over its weights,
/// weight = weights[first[i]] ... weights[first[i + 1] - 1].
struct Weights {
    std::vector<int64_t> begin;    // (out_size)
    std::vector<int64_t> first;    // (out_size + 1)
    std::vector<int32_t> weights;  // fixed point, precision_bits fractional bits
};

int32_t to_fixed_point(double weight) {
    const double scaled = weight * (1 << precision_bits);
    return static_cast<int32_t>(weight < 0 ? -0.5 + scaled : 0.5 + scaled);
}

/// Half up, and towards 0 below -1/2: such positions lie outside the picture and become 0.
int64_t rounded(double position) {
    return static_cast<int64_t>(position + 0.5);  // NOLINT(bugprone-incorrect-roundings)
}

/// Refuses what Pillow refuses: an array of `most` weights for each output pixel beyond 2 GiB.
void check_weight_memory(int64_t in_size, int64_t out_size, double most) {
    const double bytes = static_cast<double>(out_size) * most * sizeof(double);
    if (bytes > std::numeric_limits<int32_t>::max()) {
        fail("cannot resize ", in_size, " pixels to ", out_size,
             ": the filter's weights would need more than 2 GiB");
    }
}

/// Resizing in_size pixels to out_size.
Weights compute_weights(int64_t in_size, int64_t out_size, const Filter& filter) {
    // Pillow keeps the resized box in single precision, which shows from 2^24 pixels on.
    const double scale =
        static_cast<double>(static_cast<float>(in_size)) / static_cast<double>(out_size);
    const double widening = std::max(scale, 1.0);
    const double inverse_widening = 1.0 / widening;
    const double support = filter.support * widening;
    check_weight_memory(in_size, out_size, 2 * std::ceil(support) + 1);

    Weights result;
    result.first.push_back(0);
    std::vector<double> weights;
    for (int64_t i = 0; i < out_size; ++i) {
        const double centre = (static_cast<double>(i) + 0.5) * scale;
        const int64_t begin = std::max<int64_t>(rounded(centre - support), 0);
        const int64_t end = std::min<int64_t>(rounded(centre + support), in_size);
        weights.clear();
        double sum = 0.0;
        for (int64_t x = 0; x < end - begin; ++x) {
            const double distance = static_cast<double>(x + begin) - centre + 0.5;
            weights.push_back(filter.weight(distance * inverse_widening));
            sum += weights.back();
        }
        for (const double weight : weights) {
            result.weights.push_back(to_fixed_point(sum != 0.0 ? weight / sum : weight));
        }
        result.begin.push_back(begin);
        result.first.push_back(static_cast<int64_t>(result.weights.size()));
    }
    return result;
}

/// A sum of samples times weights that started at one half, as a sample.
uint8_t to_sample(int32_t sum) {
    return static_cast<uint8_t>(std::clamp(sum >> precision_bits, 0, 255));
}

constexpr int32_t one_half = 1 << (precision_bits - 1);

/// Along each row: image (height, in_width, 3) to (height, out_width, 3).
Image resize_rows(const Image& image, int64_t out_width, const Weights& pass) {
    Image out{out_width, image.height, {}, image.stored_as_rgb};
    out.rgb.resize(static_cast<size_t>(out_width * image.height * channels));
    for (int64_t y = 0; y < image.height; ++y) {
        const uint8_t* row = image.rgb.data() + y * image.width * channels;
        uint8_t* to = out.rgb.data() + y * out_width * channels;
        for (size_t x = 0; x < static_cast<size_t>(out_width); ++x) {
            const uint8_t* from = row + pass.begin[x] * channels;
            int32_t red = one_half, green = one_half, blue = one_half;
            for (int64_t j = pass.first[x]; j < pass.first[x + 1]; ++j, from += channels) {
                const int32_t weight = pass.weights[static_cast<size_t>(j)];
                red += from[0] * weight;
                green += from[1] * weight;
                blue += from[2] * weight;
            }
            *to++ = to_sample(red);
            *to++ = to_sample(green);
            *to++ = to_sample(blue);
        }
    }
    return out;
}

/// Along each column: image (in_height, width, 3) to (out_height, width, 3). Whole rows are added
/// up, so that memory is read in order.
Image resize_columns(const Image& image, int64_t out_height, const Weights& pass) {
    const auto row_size = static_cast<size_t>(image.width * channels);
    Image out{image.width, out_height, {}, image.stored_as_rgb};
    out.rgb.resize(row_size * static_cast<size_t>(out_height));
    std::vector<int32_t> sums(row_size);
    for (size_t y = 0; y < static_cast<size_t>(out_height); ++y) {
        std::fill(sums.begin(), sums.end(), one_half);
        const uint8_t* from = image.rgb.data() + pass.begin[y] * image.width * channels;
        for (int64_t j = pass.first[y]; j < pass.first[y + 1]; ++j, from += row_size) {
            const int32_t weight = pass.weights[static_cast<size_t>(j)];
            for (size_t i = 0; i < row_size; ++i) sums[i] += from[i] * weight;
        }
        std::transform(sums.begin(), sums.end(), out.rgb.data() + y * row_size, to_sample);
    }
    return out;
}

/// For each output position the input position whose pixel it copies, or -1 for none. The position
/// is summed up step by step, as Pillow does (src/libImaging/Geometry.c, ImagingScaleAffine), so
/// that it rounds alike.
std::vector<int64_t> nearest_positions(int64_t in_size, int64_t out_size) {
    const double step =
        static_cast<double>(static_cast<float>(in_size)) / static_cast<double>(out_size);
    std::vector<int64_t> positions;
    double position = step * 0.5;
    for (int64_t i = 0; i < out_size; ++i, position += step) {
        const auto nearest = static_cast<int64_t>(position);
        positions.push_back(nearest < in_size ? nearest : -1);
    }
    return positions;
}

Image resize_nearest(const Image& image, int64_t width, int64_t height) {
    const std::vector<int64_t> columns = nearest_positions(image.width, width);
    const std::vector<int64_t> rows = nearest_positions(image.height, height);
    Image out{width, height, {}, image.stored_as_rgb};
    out.rgb.resize(
        static_cast<size_t>(width * height * channels));  // black where there is no input pixel
    uint8_t* to = out.rgb.data();
    for (const int64_t y : rows) {
        for (const int64_t x : columns) {
            if (x >= 0 && y >= 0)
                std::copy_n(image.rgb.data() + (y * image.width + x) * channels, channels, to);
            to += channels;
        }
    }
    return out;
}

/// The order of the passes matters to the last bit, because the first rounds to 8 bits. Rows come
/// first unless the height shrinks by more than twice what the width does (since Pillow 13; rows
/// always came first before).
bool columns_first(const Image& image, int64_t width, int64_t height) {
    return height < image.height && image.height - height > 2 * (image.width - width);
}

}  // namespace

Image resize(const Image& image, int64_t width, int64_t height, ResampleFilter filter) {
    assert(width > 0 && height > 0 && image.width > 0 && image.height > 0);
    if (width == image.width && height == image.height) return image;
    if (filter == ResampleFilter::nearest) return resize_nearest(image, width, height);
    const Filter shape = filter_of(filter);
    const auto rows_resized = [&](const Image& from) {
        return resize_rows(from, width, compute_weights(from.width, width, shape));
    };
    const auto columns_resized = [&](const Image& from) {
        return resize_columns(from, height, compute_weights(from.height, height, shape));
    };
    // A pass that keeps the size is left out.
    if (width == image.width) return columns_resized(image);
    if (height == image.height) return rows_resized(image);
    return columns_first(image, width, height) ? rows_resized(columns_resized(image))
                                               : columns_resized(rows_resized(image));
}

}  // namespace mllama
