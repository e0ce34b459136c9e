// GIF (GIF89a specification, CompuServe 1990): the first frame, on the whole screen.
#include <algorithm>
#include <array>

#include "io/bytes.h"
#include "io/image_formats.h"
#include "kernels/error.h"

namespace mllama {
namespace {

using Colour = std::array<uint8_t, 3>;

/// Up to 256 colours; entries that the file lacks are black, as in Pillow.
using Palette = std::array<Colour, 256>;

Palette grey_ramp() {
    Palette palette{};
    for (size_t i = 0; i < 256; ++i) palette[i].fill(static_cast<uint8_t>(i));
    return palette;
}

/// A colour table of 2^bits entries. One that holds (0,0,0), (1,1,1), ... makes Pillow read the
/// picture as grey: then indices beyond the table are grey levels too.
Palette read_palette(ByteReader& in, int flags) {
    const Palette ramp = grey_ramp();
    const int entries = 2 << (flags & 7);
    Palette palette{};
    bool is_ramp = true;
    for (size_t i = 0; i < static_cast<size_t>(entries); ++i) {
        for (uint8_t& sample : palette[i]) sample = in.u8();
        is_ramp = is_ramp && palette[i] == ramp[i];
    }
    return is_ramp ? ramp : palette;
}

/// The first frame before its pixels are decoded.
struct Frame {
    int64_t x = 0, y = 0, width = 0, height = 0;  // on the screen
    bool interlaced = false;
    Palette palette{};
    int transparent = -1;  // index, or none
};

/// Length-prefixed blocks up to an empty one, joined.
std::string read_blocks(ByteReader& in) {
    std::string data;
    for (size_t size = in.u8(); size != 0; size = in.u8()) data += in.take(size);
    return data;
}

/// Reads extensions up to the first image descriptor, and that. `palette` is the screen's.
Frame read_frame(ByteReader& in, const Palette& palette, const std::string& name) {
    constexpr int extension = 0x21, image = 0x2c, trailer = 0x3b, graphic_control = 0xf9;
    Frame frame;
    frame.palette = palette;
    for (int kind = in.u8(); kind != image; kind = in.u8()) {
        if (kind == trailer) fail(name, ": the GIF file has no picture");
        if (kind != extension) continue;  // padding between blocks
        const int label = in.u8();
        const std::string block = read_blocks(in);
        if (label == graphic_control && block.size() >= 4 && (block[0] & 1)) {
            frame.transparent = static_cast<uint8_t>(block[3]);
        }
    }
    frame.x = in.u16_little();
    frame.y = in.u16_little();
    frame.width = in.u16_little();
    frame.height = in.u16_little();
    const int flags = in.u8();
    frame.interlaced = (flags & 0x40) != 0;
    if (flags & 0x80) frame.palette = read_palette(in, flags);
    return frame;
}

/// Codes of 3 to 12 bits, least significant bit first.
class CodeReader {
  public:
    explicit CodeReader(std::string_view data) : data_(data) {}

    /// The next code, or -1 at the end of the data.
    int next(int bits) {
        while (bit_count_ < bits) {
            if (position_ == data_.size()) return -1;
            buffer_ |= static_cast<uint32_t>(static_cast<uint8_t>(data_[position_++]))
                       << bit_count_;
            bit_count_ += 8;
        }
        const auto code = static_cast<int>(buffer_ & ((1u << bits) - 1));
        buffer_ >>= bits;
        bit_count_ -= bits;
        return code;
    }

  private:
    std::string_view data_;
    size_t position_ = 0;
    uint32_t buffer_ = 0;
    int bit_count_ = 0;
};

/// The growing table of strings: each is an earlier string and one more index.
struct StringTable {
    static constexpr int max_entries = 4096;
    std::array<uint16_t, max_entries> prefix{};
    std::array<uint8_t, max_entries> last{};
    std::array<uint8_t, max_entries> first{};
    std::array<uint16_t, max_entries> length{};
    int size = 0;

    void clear(int literals) {
        for (int i = 0; i < literals; ++i) {
            const auto place = static_cast<size_t>(i);
            last[place] = first[place] = static_cast<uint8_t>(i);
            length[place] = 1;
        }
        size = literals + 2;  // the clear and the end code have no string
    }

    /// Adds string `code` followed by `index`, if there is room.
    void add(int code, uint8_t index) {
        if (size == max_entries) return;
        const auto place = static_cast<size_t>(size++), from = static_cast<size_t>(code);
        prefix[place] = static_cast<uint16_t>(code);
        last[place] = index;
        first[place] = first[from];
        length[place] = static_cast<uint16_t>(length[from] + 1);
    }

    /// Appends the string of `code` to `out`.
    void append(int code, std::vector<uint8_t>& out) const {
        auto place = static_cast<size_t>(code);
        const size_t n = length[place];
        out.resize(out.size() + n);
        for (size_t i = 0; i < n; ++i) {
            out[out.size() - 1 - i] = last[place];
            place = prefix[place];
        }
    }
};

/// Lempel-Ziv-Welch with codes that grow (Welch, "A Technique for High-Performance Data
/// Compression", 1984), until `count` indices are there. Errors: Error if the data ends before, or
/// holds a code that is not in the table.
std::vector<uint8_t> decompress(std::string_view data, int literal_bits, size_t count,
                                const std::string& name) {
    if (literal_bits < 1 || literal_bits > 8) {
        fail(name, ": damaged: GIF indices of ", literal_bits, " bits");
    }
    const int clear = 1 << literal_bits, end = clear + 1;
    CodeReader codes(data);
    StringTable table;
    table.clear(clear);
    int bits = literal_bits + 1, previous = -1;
    std::vector<uint8_t> out;
    while (out.size() < count) {
        const int code = codes.next(bits);
        if (code < 0 || code == end) {
            fail(name, ": truncated: the GIF data ends after ", out.size(), " of ", count,
                 " pixels");
        }
        if (code == clear) {
            table.clear(clear);
            bits = literal_bits + 1;
            previous = -1;
            continue;
        }
        if (code > table.size || (code == table.size && previous < 0) ||
            (previous < 0 && code > clear) ||
            (code == table.size && table.size == StringTable::max_entries)) {
            fail(name, ": damaged: the GIF data holds a code that is not defined");
        }
        if (previous >= 0) {
            // A code that is just being defined is the previous string and its own first index once
            // more.
            const int known = code == table.size ? previous : code;
            table.add(previous, table.first[static_cast<size_t>(known)]);
        }
        table.append(code, out);
        previous = code;
        if (table.size == 1 << bits && bits < 12) ++bits;
    }
    out.resize(count);
    return out;
}

/// The rows in the order in which they are stored: four passes where interlaced, else top to
/// bottom.
std::vector<int64_t> row_order(int64_t height, bool interlaced) {
    struct Pass {
        int64_t start, step;
    };
    const std::vector<Pass> passes =
        interlaced ? std::vector<Pass>{{0, 8}, {4, 8}, {2, 4}, {1, 2}} : std::vector<Pass>{{0, 1}};
    std::vector<int64_t> rows;
    for (const Pass& pass : passes) {
        for (int64_t y = pass.start; y < height; y += pass.step) rows.push_back(y);
    }
    return rows;
}

}  // namespace

DecodedPicture decode_gif(std::string_view bytes, const std::string& name) {
    constexpr int64_t pixels_per_byte = 2731;  // strings of at most 4096 indices, 12 bits each
    ByteReader in(bytes, name);
    in.take(6);  // the signature
    int64_t width = in.u16_little(), height = in.u16_little();
    const int flags = in.u8();
    in.take(2);  // background index (not used by Pillow for the first frame) and pixel shape
    const Palette screen_palette = flags & 0x80 ? read_palette(in, flags) : grey_ramp();
    const Frame frame = read_frame(in, screen_palette, name);
    const int literal_bits = in.u8();
    width =
        std::max(width, frame.x + frame.width);  // a frame that does not fit enlarges the screen
    height = std::max(height, frame.y + frame.height);
    const auto size = static_cast<int64_t>(bytes.size());
    check_picture_size(frame.width, frame.height, size, pixels_per_byte, name);
    check_picture_size(width, height, size, pixels_per_byte, name);
    const std::vector<uint8_t> indices = decompress(
        read_blocks(in), literal_bits, static_cast<size_t>(frame.width * frame.height), name);

    Palette palette = frame.palette;
    if (frame.transparent >= 0)
        palette[static_cast<size_t>(frame.transparent)] = {255, 255, 255};  // on white
    // Where the frame does not reach, the screen holds the transparent index, or index 0.
    const Colour around = palette[static_cast<size_t>(std::max(frame.transparent, 0))];
    DecodedPicture picture{width, height, 3, {}, false, 1};
    picture.samples.reserve(static_cast<size_t>(width * height * 3));
    for (int64_t i = 0; i < width * height; ++i) {
        picture.samples.insert(picture.samples.end(), around.begin(), around.end());
    }
    const uint8_t* index = indices.data();
    for (const int64_t y : row_order(frame.height, frame.interlaced)) {
        uint8_t* out = picture.samples.data() + ((frame.y + y) * width + frame.x) * 3;
        for (int64_t x = 0; x < frame.width; ++x) {
            for (const uint8_t sample : palette[*index]) *out++ = sample;
            ++index;
        }
    }
    return picture;
}

}  // namespace mllama
