// BMP (Windows bitmaps and their OS/2 ancestor): 1, 4, 8, 16, 24 and 32 bits, plain, RLE and with
// colour masks, to the extent and with the colours of Pillow's BmpImagePlugin.py.
#include <algorithm>
#include <array>

#include "io/bytes.h"
#include "io/image_formats.h"
#include "kernels/error.h"

namespace mllama {
namespace {

enum Compression : uint32_t { plain = 0, rle8 = 1, rle4 = 2, masked = 3 };

using Palette =
    std::array<std::array<uint8_t, 3>, 256>;  // RGB; entries that the file lacks are black

struct BmpHeader {
    int64_t width = 0, height = 0;
    bool top_down = false;
    int bits = 0;  // a pixel
    uint32_t compression = plain;
    int64_t colours = 0;              // of the palette, as the header says
    int64_t palette_entry = 4;        // bytes: blue, green, red and (newer headers) padding
    std::array<uint32_t, 4> masks{};  // red, green, blue, alpha, with compression `masked`
    size_t palette_start = 0;         // positions in the file
    size_t data_start = 0;
};

/// The 12-byte header of OS/2.
void read_core_header(ByteReader& in, BmpHeader& header) {
    header.width = in.u16_little();
    header.height = in.u16_little();
    in.take(2);  // planes
    header.bits = in.u16_little();
    header.palette_entry = 3;
}

/// The headers of 40 bytes and more.
void read_info_header(ByteReader& in, size_t header_size, BmpHeader& header) {
    const size_t end = in.position() - 4 + header_size;
    header.width = in.u32_little();
    const uint32_t height = in.u32_little();
    header.top_down = height >> 24 == 0xff;  // a negative height
    header.height = header.top_down ? (int64_t{1} << 32) - height : height;
    in.take(2);  // planes
    header.bits = in.u16_little();
    header.compression = in.u32_little();
    in.take(12);  // size of the data, resolution
    header.colours = in.u32_little();
    in.take(4);  // important colours
    if (header.compression ==
        masked) {  // the masks follow a header of 40 bytes, and are within a longer one
        const size_t count = header_size >= 56 ? 4 : 3;
        for (size_t i = 0; i < count; ++i) header.masks[i] = in.u32_little();
    }
    in.seek(std::max(in.position(), end));
}

BmpHeader read_header(ByteReader& in, const std::string& name) {
    BmpHeader header;
    in.take(10);  // the signature, the size of the file, reserved
    header.data_start = in.u32_little();
    const size_t header_size = in.u32_little();
    if (header_size == 12) {
        read_core_header(in, header);
    } else if (header_size == 40 || header_size == 52 || header_size == 56 || header_size == 64 ||
               header_size == 108 || header_size == 124) {
        read_info_header(in, header_size, header);
    } else {
        fail(name, ": expected a BMP header of 12, 40, 52, 56, 64, 108 or 124 bytes, found ",
             header_size);
    }
    const int bits = header.bits;
    if (bits != 1 && bits != 4 && bits != 8 && bits != 16 && bits != 24 && bits != 32) {
        fail(name, ": expected a BMP of 1, 4, 8, 16, 24 or 32 bits a pixel, found ", bits);
    }
    const uint32_t compression = header.compression;
    if (compression > masked || (compression == rle8 && bits != 8) ||
        (compression == rle4 && bits != 4) || (compression == masked && bits < 16)) {
        fail(name, ": BMP compression ", compression, " with ", bits,
             " bits a pixel is not supported");
    }
    if (header.colours == 0) header.colours = int64_t{1} << std::min(bits, 16);
    header.palette_start = in.position();
    // Some writers leave the palette out of the offset of the data.
    if (header.data_start == 14 + header_size && bits <= 8) {
        header.data_start += static_cast<size_t>(header.palette_entry * header.colours);
    }
    if (header.data_start == 0) {
        const int64_t palette_size = bits <= 8 ? header.palette_entry * header.colours : 0;
        header.data_start = header.palette_start + static_cast<size_t>(palette_size);
    }
    return header;
}

Palette read_palette(ByteReader& in, const BmpHeader& header, const std::string& name) {
    if (header.colours < 1 || header.colours > 256) {
        fail(name, ": expected a BMP palette of 1 to 256 colours, found ", header.colours);
    }
    Palette palette{};
    in.seek(header.palette_start);
    for (size_t i = 0; i < static_cast<size_t>(header.colours); ++i) {
        const std::string_view entry = in.take(static_cast<size_t>(header.palette_entry));
        for (size_t c = 0; c < 3; ++c) palette[i][c] = static_cast<uint8_t>(entry[2 - c]);
    }
    return palette;
}

/// Run-length coded indices (height, width), in the order of the file. A pixel that is skipped has
/// index 0.
std::vector<uint8_t> decode_runs(ByteReader& in, const BmpHeader& header, const std::string& name) {
    const bool four_bits = header.compression == rle4;
    const auto width = static_cast<size_t>(header.width);
    const size_t count = width * static_cast<size_t>(header.height);
    std::vector<uint8_t> indices;
    size_t x = 0;  // in the row; may go beyond its end, where runs are cut
    while (indices.size() < count) {
        const size_t run = in.u8();
        const uint8_t value = in.u8();
        if (run != 0) {  // the value `run` times; with 4 bits its two halves in turn
            const size_t length = x >= width ? 0 : std::min(run, width - x);
            for (size_t i = 0; i < length; ++i) {
                const int half = i % 2 == 0 ? value >> 4 : value & 15;
                indices.push_back(four_bits ? static_cast<uint8_t>(half) : value);
            }
            x += length;
        } else if (value == 0) {  // the end of the row
            indices.resize((indices.size() + width - 1) / width * width);
            x = 0;
        } else if (value == 1) {  // the end of the picture
            break;
        } else if (value == 2) {  // a step to the right and up
            const size_t right = in.u8();
            const size_t up = in.u8();
            indices.resize(indices.size() + std::min(count - indices.size(), right + up * width));
            x = indices.size() % width;
        } else {  // `value` indices as they are, padded to 16 bits
            const size_t length = std::min<size_t>(value, count - indices.size());
            const std::string_view literal = in.take(four_bits ? (length + 1) / 2 : length);
            for (size_t i = 0; i < length; ++i) {
                const auto byte = static_cast<uint8_t>(literal[four_bits ? i / 2 : i]);
                const int half = i % 2 == 0 ? byte >> 4 : byte & 15;
                indices.push_back(four_bits ? static_cast<uint8_t>(half) : byte);
            }
            x += value;
            if (indices.size() < count && in.position() % 2 != 0) in.take(1);
        }
    }
    if (indices.size() < count) {
        fail(name, ": truncated: the BMP data ends after ", indices.size(), " of ", count,
             " pixels");
    }
    indices.resize(count);
    return indices;
}

/// A row of 1, 4 or 8 bits a pixel as indices (width).
void unpack_indices(std::string_view row, int bits, int64_t width, uint8_t* indices) {
    const int mask = (1 << bits) - 1;
    for (int64_t x = 0; x < width; ++x) {
        const int64_t bit = x * bits;
        const auto byte = static_cast<uint8_t>(row[static_cast<size_t>(bit / 8)]);
        indices[x] = static_cast<uint8_t>(byte >> (8 - bits - bit % 8) & mask);
    }
}

/// Where a sample lies in a pixel, and how many levels it has.
struct Field {
    int shift = 0;
    uint32_t max = 0;  // the value of full intensity; 0: there is no such sample

    uint8_t sample(uint32_t pixel) const {
        return static_cast<uint8_t>((pixel >> shift & max) * 255 / max);
    }
};

Field field_of_mask(uint32_t mask) {
    Field field;
    if (mask == 0) return field;
    while ((mask >> field.shift & 1) == 0) ++field.shift;
    field.max = mask >> field.shift;
    return field;
}

/// Red, green, blue, alpha of a 16-, 24- or 32-bit pixel. The supported masks are 5-5-5 and 5-6-5
/// bits, and whole bytes.
std::array<Field, 4> pixel_fields(const BmpHeader& header, const std::string& name) {
    std::array<uint32_t, 4> masks = header.masks;
    const bool no_masks = masks[0] == 0 && masks[1] == 0 && masks[2] == 0 && masks[3] == 0;
    const std::array<uint32_t, 3> five{0x7c00, 0x3e0, 0x1f}, six{0xf800, 0x7e0, 0x1f};
    if (header.compression != masked) {
        masks = {0xff0000, 0xff00, 0xff, 0};
        if (header.bits == 16) masks = {five[0], five[1], five[2], 0};
    } else if (header.bits == 32 && no_masks) {
        masks = {0xff0000, 0xff00, 0xff, 0xff000000};
    }
    std::array<Field, 4> fields;
    bool whole_bytes = true;
    for (size_t i = 0; i < 4; ++i) {
        fields[i] = field_of_mask(masks[i]);
        whole_bytes = whole_bytes && ((fields[i].max == 255 && fields[i].shift % 8 == 0) ||
                                      (i == 3 && masks[i] == 0));
    }
    const std::array<uint32_t, 3> colours{masks[0], masks[1], masks[2]};
    if (header.bits == 16 ? colours != five && colours != six : !whole_bytes) {
        fail(name, ": the colour masks of the BMP file are not supported");
    }
    if (header.bits != 32) fields[3] = Field{};
    return fields;
}

/// A row of 16, 24 or 32 bits a pixel as samples (width, 3 or 4).
void unpack_pixels(std::string_view row, int bits, int64_t width,
                   const std::array<Field, 4>& fields, uint8_t* samples) {
    const auto size = static_cast<size_t>(bits / 8);
    for (int64_t x = 0; x < width; ++x) {
        uint32_t pixel = 0;
        for (size_t i = size; i-- > 0;) {
            pixel = pixel << 8 | static_cast<uint8_t>(row[static_cast<size_t>(x) * size + i]);
        }
        for (const Field& field : fields) {
            if (field.max != 0) *samples++ = field.sample(pixel);
        }
    }
}

void decode_palette_picture(ByteReader& in, const BmpHeader& header, const std::string& name,
                            DecodedPicture& picture) {
    const Palette palette = read_palette(in, header, name);
    in.seek(header.data_start);
    std::vector<uint8_t> runs;
    if (header.compression != plain) runs = decode_runs(in, header, name);
    const auto stride = static_cast<size_t>((header.width * header.bits + 31) / 32 * 4);
    std::vector<uint8_t> indices(static_cast<size_t>(header.width));
    picture.samples.resize(static_cast<size_t>(header.width * header.height * 3));
    for (int64_t row = 0; row < header.height; ++row) {
        if (runs.empty()) {
            unpack_indices(in.take(stride), header.bits, header.width, indices.data());
        } else {
            std::copy_n(runs.begin() + row * header.width, header.width, indices.begin());
        }
        const int64_t y = header.top_down ? row : header.height - 1 - row;
        uint8_t* out = picture.samples.data() + y * header.width * 3;
        for (const uint8_t index : indices) out = std::copy_n(palette[index].begin(), 3, out);
    }
}

void decode_direct_picture(ByteReader& in, const BmpHeader& header, const std::string& name,
                           DecodedPicture& picture) {
    const std::array<Field, 4> fields = pixel_fields(header, name);
    picture.channels = fields[3].max != 0 ? 4 : 3;
    picture.stored_as_rgb = picture.channels == 3;
    in.seek(header.data_start);
    const auto stride = static_cast<size_t>((header.width * header.bits + 31) / 32 * 4);
    picture.samples.resize(static_cast<size_t>(header.width * header.height * picture.channels));
    for (int64_t row = 0; row < header.height; ++row) {
        const int64_t y = header.top_down ? row : header.height - 1 - row;
        unpack_pixels(in.take(stride), header.bits, header.width, fields,
                      picture.samples.data() + y * header.width * picture.channels);
    }
}

}  // namespace

DecodedPicture decode_bmp(std::string_view bytes, const std::string& name) {
    ByteReader in(bytes, name);
    const BmpHeader header = read_header(in, name);
    const bool runs = header.compression == rle8 || header.compression == rle4;
    // Plain rows lie there in full. Runs could in theory skip any area; no real file holds so
    // little.
    const int64_t pixels_per_byte = runs ? 1024 : std::max(1, 8 / header.bits);
    check_picture_size(header.width, header.height, static_cast<int64_t>(bytes.size()),
                       pixels_per_byte, name);
    DecodedPicture picture{header.width, header.height, 3, {}, false, 1};
    if (header.bits <= 8) {
        decode_palette_picture(in, header, name, picture);
    } else {
        decode_direct_picture(in, header, name, picture);
    }
    return picture;
}

}  // namespace mllama
