// Pictures from files: PNG, JPEG, BMP and GIF (the first frame) become 8-bit RGB on white.
//
// The result is what Pillow 13 gives after ImageOps.exif_transpose and the RGB conversion of
// transformers' Mllama processor (models/mllama/image_processing_mllama.py, convert_to_rgb): a
// picture that is not RGB goes through RGBA and is composited on white. Equal to the last bit, JPEG
// included: its decoding follows libjpeg's arithmetic.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mllama {

/// An 8-bit RGB picture.
struct Image {
    int64_t width = 0;         ///< pixels
    int64_t height = 0;        ///< pixels
    std::vector<uint8_t> rgb;  ///< (height, width, 3)
    /// False when the file holds another mode (grey, palette, alpha, CMYK) and was converted. The
    /// processor's do_convert_rgb = false accepts only pictures that are RGB already.
    bool stored_as_rgb = true;
};

/// Reads a picture, a file or what a pipe holds: decoded, turned upright (EXIF or XMP orientation),
/// converted to RGB. Errors: Error that names the path, for a file that cannot be read, is no
/// picture, is truncated or damaged, uses a feature that is not supported, or claims more than
/// 178,956,970 pixels or more than its size can hold.
Image load_image(const std::string& path);

/// The same from memory; `name` stands for the path in messages.
Image decode_image(std::string_view bytes, const std::string& name);

}  // namespace mllama
