#include "io/exif.h"

#include <cstddef>
#include <cstdint>

namespace mllama {
namespace {

constexpr uint16_t orientation_tag = 0x0112;

/// A TIFF block: fields of either byte order, absent where they would lie outside.
struct TiffBlock {
    std::string_view bytes;
    bool big_endian = false;

    std::optional<uint32_t> field(size_t position, size_t size) const {
        if (position > bytes.size() || size > bytes.size() - position) return std::nullopt;
        uint32_t value = 0;
        for (size_t i = 0; i < size; ++i) {
            const size_t place = big_endian ? position + i : position + size - 1 - i;
            value = value << 8 | static_cast<uint8_t>(bytes[place]);
        }
        return value;
    }
};

/// Bytes of one value of an integer TIFF type; 0 for the types that hold no number here.
size_t integer_size(uint32_t type) {
    switch (type) {
        case 6:
            return 1;  // SBYTE
        case 3:
        case 8:
            return 2;  // SHORT, SSHORT
        case 4:
        case 9:
        case 13:
            return 4;  // LONG, SLONG, IFD
        default:
            return 0;
    }
}

/// The value of the directory entry at `entry` if it is an orientation.
std::optional<int> entry_orientation(const TiffBlock& tiff, size_t entry) {
    const auto tag = tiff.field(entry, 2);
    const auto type = tiff.field(entry + 2, 2);
    const auto count = tiff.field(entry + 4, 4);
    if (!tag || !type || !count || *tag != orientation_tag || *count == 0) return std::nullopt;
    const size_t size = integer_size(*type);
    if (size == 0) return std::nullopt;
    size_t place = entry + 8;
    if (size * *count > 4) {  // the values do not fit in the entry, which then holds their offset
        const auto offset = tiff.field(place, 4);
        if (!offset) return std::nullopt;
        place = *offset;
    }
    const auto value = tiff.field(place, size);
    if (!value || *value > 255) return std::nullopt;
    return static_cast<int>(*value);
}

}  // namespace

std::optional<int> exif_orientation(std::string_view exif) {
    constexpr std::string_view prefix("Exif\0\0", 6);
    for (int i = 0; i < 2 && exif.substr(0, prefix.size()) == prefix; ++i) {
        exif.remove_prefix(prefix.size());
    }
    const std::string_view order = exif.substr(0, 2);
    if (order != "II" && order != "MM") return std::nullopt;
    const TiffBlock tiff{exif, order == "MM"};
    const auto directory = tiff.field(4, 4);
    if (!directory) return std::nullopt;
    const auto entries = tiff.field(*directory, 2);
    if (!entries) return std::nullopt;
    std::optional<int> orientation;
    for (size_t i = 0; i < *entries; ++i) {
        const size_t entry = size_t{*directory} + 2 + 12 * i;
        if (entry + 12 > exif.size()) break;
        if (const auto value = entry_orientation(tiff, entry)) orientation = value;
    }
    return orientation;
}

std::optional<int> xmp_orientation(std::string_view xmp) {
    constexpr std::string_view key = "tiff:Orientation";
    for (size_t at = xmp.find(key); at != std::string_view::npos; at = xmp.find(key, at + 1)) {
        std::string_view rest = xmp.substr(at + key.size());
        if (rest.substr(0, 2) == "=\"") {
            rest.remove_prefix(2);
        } else if (rest.substr(0, 1) == ">") {
            rest.remove_prefix(1);
        } else {
            continue;
        }
        if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
    }
    return std::nullopt;
}

}  // namespace mllama
