// JPEG (ITU-T T.81). stb_image undoes the entropy coding. What follows is done here with libjpeg's
// arithmetic, because that is what Pillow uses and stb_image rounds differently: the inverse DCT,
// the interpolation of subsampled colour (libjpeg's "fancy upsampling", jdsample.c), and the
// conversion to RGB (jdcolor.c).
//
// The segments are walked first: for the claimed size, for the orientation and the colour space,
// and to find the end, because stb_image fills the rest of a truncated file with grey and says
// nothing.
#include <algorithm>
#include <array>
#include <optional>

#include "io/bytes.h"
#include "io/exif.h"
#include "io/image_formats.h"
#include "io/inverse_dct.h"
#include "io/stb_decode.h"
#include "kernels/error.h"

namespace mllama {
namespace {

enum Marker : int { dht = 0xc4, eoi = 0xd9, sos = 0xda, app0 = 0xe0, app1 = 0xe1, app14 = 0xee };

/// What the segments before the first scan say.
struct JpegHeader {
    int64_t width = 0, height = 0;
    int components = 0;
    std::array<int, 4> ids{};            // of the components
    bool jfif = false;                   // there is a JFIF segment
    std::string exif;                    // all EXIF segments joined
    std::string_view xmp;                // the last XMP segment
    std::optional<int> adobe_transform;  // of the last Adobe segment: 0 none, 1 YCbCr, 2 YCCK
};

bool is_frame(int marker) {  // SOF0 to SOF15, without DHT, JPG and DAC that lie between them
    return marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
}

bool has_no_length(int marker) {
    return marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8);
}

/// Moves behind the next marker and returns it. Bytes that are none are skipped: entropy-coded data
/// (in which 0xff is followed by 0, or by a restart marker, 0xd0 to 0xd7), and junk.
int next_marker(ByteReader& in) {
    for (;;) {
        while (in.u8() != 0xff) {
        }
        int code = in.u8();
        while (code == 0xff) code = in.u8();  // any number of fill bytes
        if (code != 0 && !(code >= 0xd0 && code <= 0xd7)) return code;
    }
}

void read_frame(std::string_view segment, JpegHeader& header, const std::string& name) {
    ByteReader in(segment, name);
    const int depth = in.u8();
    if (header.components != 0) fail(name, ": expected one frame in the JPEG file, found more");
    header.height = in.u16_big();
    header.width = in.u16_big();
    header.components = in.u8();
    if (depth != 8) fail(name, ": expected a JPEG of 8 bits a sample, found ", depth);
    if (header.components != 1 && header.components != 3 && header.components != 4) {
        fail(name, ": expected a JPEG of 1, 3 or 4 components, found ", header.components);
    }
    for (size_t i = 0; i < static_cast<size_t>(header.components); ++i) {
        header.ids[i] = in.u8();
        in.take(2);  // sampling factors, quantisation table
    }
}

void read_application_data(int marker, std::string_view segment, JpegHeader& header) {
    constexpr std::string_view exif("Exif\0\0", 6);
    constexpr std::string_view xmp("http://ns.adobe.com/xap/1.0/\0", 29);
    if (marker == app0 && segment.substr(0, 4) == "JFIF") {
        header.jfif = true;
    } else if (marker == app1 && segment.substr(0, exif.size()) == exif) {
        header.exif += segment.substr(header.exif.empty() ? 0 : exif.size());
    } else if (marker == app1 && segment.substr(0, xmp.size()) == xmp) {
        header.xmp = segment.substr(xmp.size());
    } else if (marker == app14 && segment.size() >= 12 && segment.substr(0, 5) == "Adobe") {
        header.adobe_transform = static_cast<uint8_t>(segment[11]);
    }
}

/// Huffman tables: each has a class and number, 16 counts of codes, and that many symbols.
/// stb_image 2.27 writes beyond its table when there are more than 256.
void check_huffman_tables(std::string_view segment, const std::string& name) {
    ByteReader in(segment, name);
    while (in.left() > 0) {
        in.take(1);
        size_t codes = 0;
        for (int length = 1; length <= 16; ++length) codes += in.u8();
        if (codes > 256) fail(name, ": damaged: a JPEG Huffman table of ", codes, " codes");
        in.take(codes);
    }
}

/// Reads the segments of the whole file, up to the end marker. Errors: Error if it is not there.
JpegHeader read_segments(std::string_view bytes, const std::string& name) {
    JpegHeader header;
    ByteReader in(bytes, name);
    in.take(2);  // the start marker
    bool in_scans = false;
    for (int marker = next_marker(in); marker != eoi; marker = next_marker(in)) {
        if (has_no_length(marker)) continue;
        const int length = in.u16_big();  // counts itself
        if (length < 2) fail(name, ": damaged: a JPEG segment of length ", length);
        const std::string_view segment = in.take(static_cast<size_t>(length) - 2);
        if (marker == dht) check_huffman_tables(segment, name);
        in_scans = in_scans || marker == sos;
        if (in_scans) continue;
        if (is_frame(marker)) read_frame(segment, header, name);
        read_application_data(marker, segment, header);
    }
    if (!in_scans || header.components == 0)
        fail(name, ": truncated: the JPEG file has no picture");
    return header;
}

int orientation_of(const JpegHeader& header) {
    if (const auto value = exif_orientation(header.exif)) return *value;
    return xmp_orientation(header.xmp).value_or(1);
}

/// Doubles a row of `width` sums, which are 2^bits times the samples: a new sample is 3/4 of the
/// nearer and 1/4 of the farther old one. Left ones round with `bias_left`, right ones with
/// `bias_right` (of 4 * 2^bits). out (2 width)
void double_row(const int* sums, int64_t width, int bits, int bias_left, int bias_right,
                uint8_t* out) {
    const auto mix = [&](int near, int far, int bias) {
        return static_cast<uint8_t>((3 * near + far + bias) >> (bits + 2));
    };
    out[0] = mix(sums[0], sums[0], bias_left);
    for (int64_t x = 0; x + 1 < width; ++x) {
        out[2 * x + 1] = mix(sums[x], sums[x + 1], bias_right);
        out[2 * x + 2] = mix(sums[x + 1], sums[x], bias_left);
    }
    out[2 * width - 1] = mix(sums[width - 1], sums[width - 1], bias_right);
}

/// Row y of the picture, of one component. `sums` and `out` are scratch for at least a row of the
/// plane in full size.
void upsample_row(const JpegPlane& plane, int64_t y, std::vector<int>& sums,
                  std::vector<uint8_t>& out) {
    const int64_t near_y = y / plane.scale_y;
    const uint8_t* near = plane.row(near_y);
    // Of two new rows in an old one's place, the upper leans to the old row above, the lower to the
    // one below.
    const bool upper = y % plane.scale_y == 0;
    const uint8_t* far =
        plane.row(std::clamp<int64_t>(near_y + (upper ? -1 : 1), 0, plane.height - 1));
    const bool wide_enough =
        plane.width > 2;  // libjpeg only repeats the samples of very narrow pictures
    if (plane.scale_x == 1 && plane.scale_y == 2) {
        for (int64_t x = 0; x < plane.width; ++x) {
            out[static_cast<size_t>(x)] =
                static_cast<uint8_t>((3 * near[x] + far[x] + (upper ? 1 : 2)) / 4);
        }
    } else if (plane.scale_x == 2 && plane.scale_y == 1 && wide_enough) {
        std::copy_n(near, plane.width, sums.begin());
        double_row(sums.data(), plane.width, 0, 1, 2, out.data());
    } else if (plane.scale_x == 2 && plane.scale_y == 2 && wide_enough) {
        for (int64_t x = 0; x < plane.width; ++x)
            sums[static_cast<size_t>(x)] = 3 * near[x] + far[x];
        double_row(sums.data(), plane.width, 2, 8, 7, out.data());
    } else {
        for (int64_t x = 0; x < plane.width; ++x)
            std::fill_n(out.begin() + x * plane.scale_x, plane.scale_x, near[x]);
    }
}

uint8_t clamp_to_byte(int value) {
    return static_cast<uint8_t>(std::clamp(value, 0, 255));
}

/// ITU-R BT.601 in full range, as JFIF has it, with 16 fractional bits.
std::array<uint8_t, 3> ycbcr_to_rgb(int luma, int blue_difference, int red_difference) {
    constexpr int red_of_cr = 91881;     // 1.40200
    constexpr int green_of_cb = -22554;  // -0.34414
    constexpr int green_of_cr = -46802;  // -0.71414
    constexpr int blue_of_cb = 116130;   // 1.77200
    constexpr int half = 1 << 15;
    const int cb = blue_difference - 128, cr = red_difference - 128;
    return {clamp_to_byte(luma + ((red_of_cr * cr + half) >> 16)),
            clamp_to_byte(luma + ((green_of_cb * cb + green_of_cr * cr + half) >> 16)),
            clamp_to_byte(luma + ((blue_of_cb * cb + half) >> 16))};
}

/// a b / 255, rounded.
int product_of_255(int a, int b) {
    const int product = a * b + 128;
    return ((product >> 8) + product) >> 8;
}

enum class ColourSpace { grey, rgb, ycbcr, cmyk, ycck };

/// libjpeg's guess (jdapimin.c, default_decompress_parms).
ColourSpace colour_space_of(const JpegHeader& header) {
    const std::array<int, 4>& id = header.ids;
    switch (header.components) {
        case 1:
            return ColourSpace::grey;
        case 3:
            if (header.jfif) return ColourSpace::ycbcr;
            if (header.adobe_transform)
                return *header.adobe_transform == 0 ? ColourSpace::rgb : ColourSpace::ycbcr;
            return id[0] == 'R' && id[1] == 'G' && id[2] == 'B' ? ColourSpace::rgb
                                                                : ColourSpace::ycbcr;
        default:
            return header.adobe_transform.value_or(0) == 0 ? ColourSpace::cmyk : ColourSpace::ycck;
    }
}

/// Inks as RGB. They are stored inverted, as Adobe does and Pillow assumes.
std::array<uint8_t, 3> cmyk_to_rgb(const std::array<uint8_t, 3>& inks, int light) {
    std::array<uint8_t, 3> rgb{};
    for (size_t c = 0; c < 3; ++c) rgb[c] = clamp_to_byte(light - product_of_255(inks[c], light));
    return rgb;
}

/// A row of the picture: rows (components, width at least) become out (width, 3).
void convert_row(ColourSpace space, const std::array<std::vector<uint8_t>, 4>& rows, int64_t width,
                 uint8_t* out) {
    const uint8_t *a = rows[0].data(), *b = rows[1].data(), *c = rows[2].data(),
                  *d = rows[3].data();
    const auto each_pixel = [&](const auto& to_rgb) {
        for (int64_t x = 0; x < width; ++x) {
            const std::array<uint8_t, 3> rgb = to_rgb(x);
            for (size_t i = 0; i < 3; ++i) *out++ = rgb[i];
        }
    };
    using Rgb = std::array<uint8_t, 3>;
    switch (space) {
        case ColourSpace::grey:
            return each_pixel([&](int64_t x) { return Rgb{a[x], a[x], a[x]}; });
        case ColourSpace::rgb:
            return each_pixel([&](int64_t x) { return Rgb{a[x], b[x], c[x]}; });
        case ColourSpace::ycbcr:
            return each_pixel([&](int64_t x) { return ycbcr_to_rgb(a[x], b[x], c[x]); });
        case ColourSpace::cmyk:
            return each_pixel([&](int64_t x) {
                const auto inverted = [](int ink) { return static_cast<uint8_t>(255 - ink); };
                return cmyk_to_rgb({inverted(a[x]), inverted(b[x]), inverted(c[x])}, d[x]);
            });
        case ColourSpace::ycck:
            return each_pixel(
                [&](int64_t x) { return cmyk_to_rgb(ycbcr_to_rgb(a[x], b[x], c[x]), d[x]); });
    }
}

}  // namespace

DecodedPicture decode_jpeg(std::string_view bytes, const std::string& name) {
    const JpegHeader header = read_segments(bytes, name);
    // A block of 8x8 samples takes at least one bit, and the components together at least a block
    // in 113 pixels.
    check_picture_size(header.width, header.height, static_cast<int64_t>(bytes.size()), 1024, name);
    const std::vector<JpegPlane> planes = stb_decode_jpeg(bytes, inverse_dct, name);
    const ColourSpace space = colour_space_of(header);

    DecodedPicture picture{header.width, header.height,          3,
                           {},           header.components == 3, orientation_of(header)};
    picture.samples.resize(static_cast<size_t>(header.width * header.height * 3));
    std::array<std::vector<uint8_t>, 4> rows;
    for (auto& row : rows)
        row.resize(static_cast<size_t>(header.width + 16));  // the last sample may reach beyond
    std::vector<int> sums(rows[0].size());
    for (int64_t y = 0; y < header.height; ++y) {
        for (size_t c = 0; c < planes.size(); ++c) upsample_row(planes[c], y, sums, rows[c]);
        convert_row(space, rows, header.width, picture.samples.data() + y * header.width * 3);
    }
    return picture;
}

}  // namespace mllama
