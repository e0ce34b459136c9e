// The decoders behind image_file.h, one a format, and what they share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mllama {

/// A picture as a decoder leaves it: not yet upright, not yet on white.
struct DecodedPicture {
    int64_t width = 0;
    int64_t height = 0;
    int64_t channels = 3;          ///< 3: RGB; 4: RGB and alpha, not premultiplied
    std::vector<uint8_t> samples;  ///< (height, width, channels)
    bool stored_as_rgb = true;     ///< Pillow's mode of the file is "RGB"
    int orientation = 1;           ///< EXIF orientation, 1 (upright) to 8
};

/// Each decodes the bytes of a whole file that starts with its format's signature.
/// Errors: Error "`name`: ..." for anything that is damaged, truncated or unsupported.
DecodedPicture decode_png(std::string_view bytes, const std::string& name);
DecodedPicture decode_jpeg(std::string_view bytes, const std::string& name);
DecodedPicture decode_bmp(std::string_view bytes, const std::string& name);
DecodedPicture decode_gif(std::string_view bytes, const std::string& name);

/// Call before memory is taken for a picture of the claimed size. Errors: Error when a side is not
/// positive, when there are more than 178,956,970 pixels (Pillow's limit), or more than `file_size`
/// bytes can hold at `pixels_per_byte`, the best that the format's compression can do.
void check_picture_size(int64_t width, int64_t height, int64_t file_size, int64_t pixels_per_byte,
                        const std::string& name);

}  // namespace mllama
