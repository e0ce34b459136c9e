// Orientation: how a camera was held, as files record it.
#pragma once

#include <optional>
#include <string_view>

namespace mllama {

/// The Orientation tag (0x0112) of an EXIF block: a TIFF header and its first directory, after at
/// most two "Exif\0\0" prefixes. None if it is not there or the block is not readable; the value is
/// not checked to be 1 to 8. (EXIF 2.32, section 4.6; TIFF 6.0, section 2.)
std::optional<int> exif_orientation(std::string_view exif);

/// The first tiff:Orientation of an XMP packet, as attribute or element, one digit. Used where EXIF
/// has none.
std::optional<int> xmp_orientation(std::string_view xmp);

}  // namespace mllama
