// Resizing a picture as Pillow's Image.resize does it, bit for bit.
//
// The method (Pillow, src/libImaging/Resample.c): an output pixel is the weighted mean of the input
// pixels under a filter that is centred on it and, when the picture shrinks, widened by the scale,
// so that every input pixel counts (antialiasing). It is separable: a pass along the rows and one
// along the columns. Weights are integers of 22 fractional bits, and each pass rounds its result to
// 8 bits. Equal to Pillow 13.0.0, also in the order of the passes; earlier versions differ by one
// level in pictures whose height shrinks much more than their width.
#pragma once

#include <cstdint>

#include "io/image_file.h"

namespace mllama {

/// Pillow's numbers, as `resample` of preprocessor_config.json gives them.
enum class ResampleFilter : int {
    nearest = 0,
    lanczos = 1,
    bilinear = 2,
    bicubic = 3,
    box = 4,
    hamming = 5
};

/// The picture at width x height pixels, both at least 1. A picture that has the size already is
/// copied. Errors: Error where the weights of one pass would need more than 2 GiB (Pillow refuses
/// there too): a side of many millions of pixels.
Image resize(const Image& image, int64_t width, int64_t height, ResampleFilter filter);

}  // namespace mllama
