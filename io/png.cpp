// PNG (ISO/IEC 15948). stb_image inflates and unfilters; the chunks are read here, because the
// colour rules are Pillow's: stb_image applies a transparent colour that Pillow leaves alone in RGB
// files and compares differently in grey ones.
#include <algorithm>
#include <array>
#include <cctype>
#include <optional>

#include "io/bytes.h"
#include "io/exif.h"
#include "io/image_formats.h"
#include "io/stb_decode.h"
#include "kernels/error.h"

namespace mllama {
namespace {

constexpr std::string_view signature = "\x89PNG\r\n\x1a\n";
constexpr int64_t max_text = 1 << 20;  // bytes of an inflated text chunk

enum ColourType : int {
    grey = 0,
    truecolour = 2,
    palette = 3,
    grey_alpha = 4,
    truecolour_alpha = 6
};

struct Header {
    int64_t width = 0, height = 0;
    int depth = 0;  // bits a sample
    int colour = 0;
    bool interlaced = false;
};

/// What the chunks of a file say, up to IEND.
struct PngFile {
    Header header;
    std::string_view colours;       // PLTE: 3 bytes an entry
    std::string_view transparency;  // tRNS
    std::string data;               // the IDAT chunks joined: one zlib stream
    std::string_view exif;          // eXIf
    std::string exif_text;  // the text chunk in which ImageMagick keeps EXIF, in hexadecimal
    std::string xmp;
};

/// CRC-32 as in PNG, annex D.
uint32_t crc32(std::string_view bytes) {
    static const std::array<uint32_t, 256> table = [] {
        std::array<uint32_t, 256> entries{};
        for (uint32_t n = 0; n < 256; ++n) {
            uint32_t c = n;
            for (int k = 0; k < 8; ++k) c = (c & 1) ? 0xedb88320u ^ (c >> 1) : c >> 1;
            entries[n] = c;
        }
        return entries;
    }();
    uint32_t crc = 0xffffffffu;
    for (const char byte : bytes)
        crc = table[(crc ^ static_cast<uint8_t>(byte)) & 0xff] ^ (crc >> 8);
    return ~crc;
}

int samples_per_pixel(int colour) {
    switch (colour) {
        case grey_alpha:
            return 2;
        case truecolour:
            return 3;
        case truecolour_alpha:
            return 4;
        default:
            return 1;
    }
}

bool valid_depth(int colour, int depth) {
    switch (colour) {
        case grey:
            return depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
        case palette:
            return depth == 1 || depth == 2 || depth == 4 || depth == 8;
        case truecolour:
        case grey_alpha:
        case truecolour_alpha:
            return depth == 8 || depth == 16;
        default:
            return false;
    }
}

Header parse_header(std::string_view chunk, const std::string& name) {
    ByteReader in(chunk, name);
    Header header;
    header.width = in.u32_big();
    header.height = in.u32_big();
    header.depth = in.u8();
    header.colour = in.u8();
    const int compression = in.u8();
    const int filter = in.u8();
    header.interlaced = in.u8() != 0;
    if (!valid_depth(header.colour, header.depth)) {
        fail(name, ": colour type ", header.colour, " with ", header.depth,
             " bits is not a PNG format");
    }
    if (compression != 0 || filter != 0) {
        fail(name, ": expected PNG compression and filter method 0, found ", compression, " and ",
             filter);
    }
    return header;
}

/// A text chunk's key and text (tEXt, zTXt, iTXt), if the key is one that can hold an orientation.
void read_text(std::string_view type, std::string_view chunk, PngFile& file) {
    const size_t end = chunk.find('\0');
    if (end == std::string_view::npos) return;
    const std::string_view key = chunk.substr(0, end);
    if (key != "Raw profile type exif" && key != "XML:com.adobe.xmp") return;
    std::string_view text = chunk.substr(end + 1);
    bool compressed = false;
    if (type == "zTXt") {
        if (text.empty()) return;
        compressed = true;
        text.remove_prefix(1);  // the method; only zlib exists
    } else if (type == "iTXt") {
        if (text.size() < 2) return;
        compressed = text[0] != 0;
        text.remove_prefix(2);                     // the flag and the method
        for (int field = 0; field < 2; ++field) {  // the language and the translated key
            const size_t zero = text.find('\0');
            if (zero == std::string_view::npos) return;
            text.remove_prefix(zero + 1);
        }
    }
    std::string value = compressed ? stb_inflate(text, max_text) : std::string(text);
    (key[0] == 'X' ? file.xmp : file.exif_text) = std::move(value);
}

/// Reads all chunks. Of several PLTE, tRNS or eXIf the last counts, of several runs of IDAT the
/// first.
PngFile read_chunks(std::string_view bytes, const std::string& name) {
    PngFile file;
    ByteReader in(bytes, name);
    in.take(signature.size());
    bool first = true, data_ended = false;
    for (std::string_view type; type != "IEND"; first = false) {
        const size_t length = in.u32_big();
        const size_t start = in.position();
        type = in.take(4);
        const std::string_view chunk = in.take(length);
        if (in.u32_big() != crc32(bytes.substr(start, 4 + length))) {
            fail(name, ": damaged: the checksum of the PNG chunk at byte ", start,
                 " does not match");
        }
        if (first != (type == "IHDR"))
            fail(name, ": expected one IHDR chunk, at the start of the PNG file");
        if (type == "IDAT") {
            if (!data_ended) file.data += chunk;
            continue;
        }
        data_ended = data_ended || !file.data.empty();
        if (type == "IHDR") file.header = parse_header(chunk, name);
        if (type == "PLTE") file.colours = chunk;
        if (type == "tRNS") file.transparency = chunk;
        if (type == "eXIf") file.exif = chunk;
        if (type == "tEXt" || type == "zTXt" || type == "iTXt") read_text(type, chunk, file);
    }
    return file;
}

/// Hexadecimal digits as bytes, from the fourth line of the text on (after a name and a length).
std::string unhex_profile(const std::string& text) {
    size_t at = 0;
    for (int line = 0; line < 3; ++line) {
        at = text.find('\n', at);
        if (at == std::string::npos) return {};
        ++at;
    }
    std::string bytes;
    int high = -1;
    for (const char c : text.substr(at)) {
        if (std::isspace(static_cast<unsigned char>(c))) continue;
        if (!std::isxdigit(static_cast<unsigned char>(c))) return {};
        const int digit = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
        if (high >= 0) bytes += static_cast<char>(high << 4 | digit);
        high = high >= 0 ? -1 : digit;
    }
    return bytes;
}

int orientation_of(const PngFile& file) {
    const std::string profile = unhex_profile(file.exif_text);
    if (const auto value = exif_orientation(file.exif.empty() ? profile : file.exif)) return *value;
    return xmp_orientation(file.xmp).value_or(1);
}

/// Deflate cannot shrink by more than a factor of 1032, so a short file that claims a large picture
/// is refused here.
void check_size(const PngFile& file, const std::string& name) {
    const Header& header = file.header;
    const auto size = static_cast<int64_t>(file.data.size());
    if (file.data.empty()) fail(name, ": truncated: the PNG file has no image data");
    check_picture_size(header.width, header.height, size, 1032 * 8, name);
    const int64_t row_bits = header.width * samples_per_pixel(header.colour) * header.depth;
    const int64_t needed = header.height * (1 + (row_bits + 7) / 8);
    if (needed / 1032 > size) {
        fail(name, ": truncated or damaged: ", header.width, "x", header.height, " pixels need ",
             needed, " bytes, more than ", size, " compressed bytes can hold");
    }
}

void append_chunk(std::string& out, std::string_view type, std::string_view chunk) {
    for (int shift = 24; shift >= 0; shift -= 8)
        out += static_cast<char>(chunk.size() >> shift & 0xff);
    out += type;
    out += chunk;
    out.append(4, '\0');  // stb_image does not look at the checksum
}

/// The palette with all 256 entries: those that the file lacks are black and opaque, as in Pillow.
std::pair<std::string, std::string> whole_palette(const PngFile& file, const std::string& name) {
    if (file.colours.size() < 3 || file.colours.size() > 768) {
        fail(name, ": expected a PNG palette of 1 to 256 colours, found ", file.colours.size(),
             " bytes");
    }
    std::string colours(file.colours.substr(0, file.colours.size() / 3 * 3));
    std::string alphas(file.transparency.substr(0, 256));
    colours.resize(768, '\0');
    alphas.resize(256, '\xff');
    return {colours, alphas};
}

/// The file with only what stb_image should see.
std::string plain_png(const PngFile& file, std::string_view header, const std::string& name) {
    std::string out(signature);
    std::string plain_header(header.substr(0, 13));
    plain_header[12] = file.header.interlaced ? 1 : 0;
    append_chunk(out, "IHDR", plain_header);
    if (file.header.colour == palette) {
        const auto [colours, alphas] = whole_palette(file, name);
        append_chunk(out, "PLTE", colours);
        if (!file.transparency.empty()) append_chunk(out, "tRNS", alphas);
    }
    append_chunk(out, "IDAT", file.data);
    append_chunk(out, "IEND", {});
    return out;
}

/// 16-bit grey is Pillow's mode "I;16", whose conversion to 8 bits clamps at 255 and does not
/// scale.
std::vector<uint8_t> clamped_grey(const std::string& plain, const std::string& name) {
    const StbPicture<uint16_t> wide = stb_decode_png_16(plain, name);
    std::vector<uint8_t> values(wide.samples.size());
    std::transform(wide.samples.begin(), wide.samples.end(), values.begin(),
                   [](uint16_t v) { return static_cast<uint8_t>(std::min<uint16_t>(v, 255)); });
    return values;
}

/// The grey level that is transparent: Pillow compares the low byte of tRNS with the 8-bit value,
/// also where fewer bits were widened to it; only in 1-bit files is a key other than 0 white.
std::optional<uint8_t> transparent_grey(const PngFile& file, const std::string& name) {
    if (file.transparency.empty()) return std::nullopt;
    ByteReader in(file.transparency, name);
    const uint16_t key = in.u16_big();
    if (file.header.depth == 1) return key ? 255 : 0;
    return static_cast<uint8_t>(key & 0xff);
}

/// values (height, width) as RGB, or as RGBA where `key` is transparent.
void spread_grey(const std::vector<uint8_t>& values, std::optional<uint8_t> key,
                 DecodedPicture& picture) {
    picture.channels = key ? 4 : 3;
    picture.samples.reserve(values.size() * static_cast<size_t>(picture.channels));
    for (const uint8_t value : values) {
        picture.samples.insert(picture.samples.end(), 3, value);
        if (key) picture.samples.push_back(value == *key ? 0 : 255);
    }
}

/// samples (height, width, 2), grey and alpha, as RGBA.
void spread_grey_alpha(const std::vector<uint8_t>& samples, DecodedPicture& picture) {
    picture.channels = 4;
    picture.samples.reserve(samples.size() * 2);
    for (size_t i = 0; i < samples.size(); i += 2) {
        picture.samples.insert(picture.samples.end(), 3, samples[i]);
        picture.samples.push_back(samples[i + 1]);
    }
}

}  // namespace

DecodedPicture decode_png(std::string_view bytes, const std::string& name) {
    const PngFile file = read_chunks(bytes, name);
    const Header& header = file.header;
    check_size(file, name);
    const std::string plain = plain_png(file, bytes.substr(signature.size() + 8), name);

    DecodedPicture picture{header.width,        header.height, 3, {}, header.colour == truecolour,
                           orientation_of(file)};
    if (header.colour == grey) {
        const auto key = transparent_grey(file, name);
        spread_grey(
            header.depth == 16 ? clamped_grey(plain, name) : stb_decode_png(plain, name).samples,
            key, picture);
        return picture;
    }
    StbPicture<uint8_t> decoded = stb_decode_png(plain, name);
    if (header.colour == grey_alpha) {
        spread_grey_alpha(decoded.samples, picture);
    } else {
        picture.channels = decoded.channels;
        picture.samples = std::move(decoded.samples);
    }
    return picture;
}

}  // namespace mllama
