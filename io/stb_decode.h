// stb_image behind a C++ door: PNG samples, JPEG planes, and zlib streams, as vectors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mllama {

template <class Sample>
struct StbPicture {
    int64_t width = 0;
    int64_t height = 0;
    int64_t channels = 0;         ///< 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha
    std::vector<Sample> samples;  ///< (height, width, channels)
};

/// Decodes a PNG file to 8-bit samples in the file's own channels; of 16-bit samples the high byte.
/// Errors: Error "`name`: ..." with stb_image's reason.
StbPicture<uint8_t> stb_decode_png(std::string_view file, const std::string& name);

/// The same with 16-bit samples, for a PNG that has them.
StbPicture<uint16_t> stb_decode_png_16(std::string_view file, const std::string& name);

/// A component of a JPEG file, as it is stored: not upsampled, its colour not converted.
struct JpegPlane {
    int64_t width = 0, height = 0;  ///< samples that belong to the picture
    int64_t stride = 0;             ///< samples from row to row; a multiple of 8
    int64_t scale_x =
        1;  ///< pixels of the picture a sample: the largest sampling factor over this one's
    int64_t scale_y = 1;
    std::vector<uint8_t> samples;  ///< (height, stride)

    const uint8_t* row(int64_t y) const { return samples.data() + y * stride; }
};

/// coefficients (8, 8), dequantised, become samples (8, 8), rows `stride` apart.
using InverseDct = void (*)(uint8_t* samples, int stride, short coefficients[64]);

/// Decodes the components of a JPEG file, with the given inverse transform. Errors as
/// stb_decode_png.
std::vector<JpegPlane> stb_decode_jpeg(std::string_view file, InverseDct inverse_dct,
                                       const std::string& name);

/// Inflates a zlib stream; empty if it is damaged or larger than `limit` bytes.
std::string stb_inflate(std::string_view stream, int64_t limit);

}  // namespace mllama
