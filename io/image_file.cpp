#include "io/image_file.h"

#include <utility>

#include "io/image_formats.h"
#include "io/read_file.h"
#include "kernels/error.h"

namespace mllama {
namespace {

/// "an empty file", or the first bytes in hexadecimal.
std::string describe_start(std::string_view bytes) {
    if (bytes.empty()) return "an empty file";
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text = "a file that starts with the bytes";
    for (const char byte : bytes.substr(0, 8)) {
        const auto value = static_cast<uint8_t>(byte);
        text += ' ';
        text += digits[value >> 4];
        text += digits[value & 15];
    }
    return text;
}

bool starts_with(std::string_view bytes, std::string_view signature) {
    return bytes.substr(0, signature.size()) == signature;
}

DecodedPicture decode_by_signature(std::string_view bytes, const std::string& name) {
    if (starts_with(bytes, "\x89PNG\r\n\x1a\n")) return decode_png(bytes, name);
    if (starts_with(bytes, "\xff\xd8\xff")) return decode_jpeg(bytes, name);
    if (starts_with(bytes, "GIF87a") || starts_with(bytes, "GIF89a"))
        return decode_gif(bytes, name);
    if (starts_with(bytes, "BM")) return decode_bmp(bytes, name);
    fail(name, ": not an image this program can read (expected PNG, JPEG, BMP or GIF, found ",
         describe_start(bytes), ")");
}

/// One sample over white, with Pillow's rounding (libImaging/AlphaComposite.c for an opaque white
/// background): (c a + 255 (255 - a)) / 255, rounded, where the division works on 7 more bits.
uint8_t over_white(uint32_t sample, uint32_t alpha) {
    const uint32_t scaled = (sample * alpha + 255 * (255 - alpha) + 128) << 7;
    return static_cast<uint8_t>(((scaled >> 8) + scaled) >> 8 >> 7);
}

/// RGBA (height, width, 4) becomes RGB (height, width, 3), in place.
void composite_on_white(DecodedPicture& picture) {
    std::vector<uint8_t>& samples = picture.samples;
    const size_t pixels = samples.size() / 4;
    for (size_t i = 0; i < pixels; ++i) {
        const uint32_t alpha = samples[4 * i + 3];
        for (size_t c = 0; c < 3; ++c) samples[3 * i + c] = over_white(samples[4 * i + c], alpha);
    }
    samples.resize(pixels * 3);
    samples.shrink_to_fit();
    picture.channels = 3;
}

/// How an orientation moves pixels: the picture is first mirrored along its diagonal where
/// `transpose` is set, then left to right and top to bottom.
struct Turn {
    bool transpose = false;
    bool flip_x = false;
    bool flip_y = false;
};

Turn turn_of(int orientation) {
    switch (orientation) {
        case 2:
            return {false, true, false};
        case 3:
            return {false, true, true};  // half a turn
        case 4:
            return {false, false, true};
        case 5:
            return {true, false, false};
        case 6:
            return {true, true, false};  // a quarter turn clockwise
        case 7:
            return {true, true, true};
        case 8:
            return {true, false, true};  // a quarter turn counter-clockwise
        default:
            return {};  // 1, and what is none of the eight
    }
}

/// Turns an RGB picture upright, as ImageOps.exif_transpose does.
Image upright(DecodedPicture&& picture) {
    const Turn turn = turn_of(picture.orientation);
    Image image{picture.width, picture.height, {}, picture.stored_as_rgb};
    if (!turn.transpose && !turn.flip_x && !turn.flip_y) {
        image.rgb = std::move(picture.samples);
        return image;
    }
    if (turn.transpose) std::swap(image.width, image.height);
    image.rgb.resize(picture.samples.size());
    uint8_t* out = image.rgb.data();
    for (int64_t y = 0; y < image.height; ++y) {
        for (int64_t x = 0; x < image.width; ++x) {
            const int64_t flipped_x = turn.flip_x ? image.width - 1 - x : x;
            const int64_t flipped_y = turn.flip_y ? image.height - 1 - y : y;
            const int64_t from_x = turn.transpose ? flipped_y : flipped_x;
            const int64_t from_y = turn.transpose ? flipped_x : flipped_y;
            const uint8_t* from = picture.samples.data() + (from_y * picture.width + from_x) * 3;
            for (int c = 0; c < 3; ++c) *out++ = from[c];
        }
    }
    return image;
}

}  // namespace

void check_picture_size(int64_t width, int64_t height, int64_t file_size, int64_t pixels_per_byte,
                        const std::string& name) {
    constexpr int64_t max_pixels = 178'956'970;  // Pillow raises DecompressionBombError above
    constexpr int64_t always_allowed =
        1 << 20;  // pixels; small pictures may be as empty as they like
    if (width <= 0 || height <= 0) {
        fail(name, ": expected a picture of at least 1x1 pixels, found ", width, "x", height);
    }
    if (width > max_pixels || height > max_pixels / width) {
        fail(name, ": expected at most ", max_pixels, " pixels, found ", width, "x", height);
    }
    if (width * height > always_allowed && width * height / pixels_per_byte > file_size) {
        fail(name, ": truncated or damaged: the header claims ", width, "x", height,
             " pixels, more than ", file_size, " bytes can hold");
    }
}

Image decode_image(std::string_view bytes, const std::string& name) {
    DecodedPicture picture = decode_by_signature(bytes, name);
    if (picture.channels == 4) composite_on_white(picture);
    return upright(std::move(picture));
}

Image load_image(const std::string& path) {
    return decode_image(read_input(path), path);
}

}  // namespace mllama
