// libFuzzer program for io/image_file and the image processor: no input may crash them or take
// memory out of proportion. First byte: what is done with the decoded picture. The rest: the file.
// The checksums of a PNG file are made right first, so that changes inside its chunks are seen at
// all.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "io/image_file.h"
#include "kernels/error.h"
#include "mllama/image_processor.h"

using namespace mllama;

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

uint32_t crc32(std::string_view bytes) {  // PNG, annex D, bit by bit
    uint32_t crc = 0xffffffffu;
    for (const char byte : bytes) {
        crc ^= static_cast<uint8_t>(byte);
        for (int k = 0; k < 8; ++k) crc = (crc & 1) ? 0xedb88320u ^ (crc >> 1) : crc >> 1;
    }
    return ~crc;
}

void mend_checksums(std::string& png) {
    size_t at = 8;
    while (at + 12 <= png.size()) {
        size_t length = 0;
        for (size_t i = 0; i < 4; ++i) length = length << 8 | static_cast<uint8_t>(png[at + i]);
        if (length > png.size() - at - 12) return;
        const uint32_t crc = crc32(std::string_view(png).substr(at + 4, 4 + length));
        for (size_t i = 0; i < 4; ++i)
            png[at + 8 + length + i] = static_cast<char>(crc >> (24 - 8 * i) & 0xff);
        at += 12 + length;
    }
}

void check_processing(const Image& image, int choice) {
    ImageProcessorConfig config;
    config.tile_size = 8 + choice % 5;
    config.resample = static_cast<ResampleFilter>(choice % 6);
    const ProcessedImage result = process(image, config);
    require(result.num_tiles == result.tiles_high * result.tiles_wide &&
            result.num_tiles <= config.max_image_tiles);
    require(static_cast<int64_t>(result.pixel_values.size()) ==
            result.num_tiles * 3 * config.tile_size * config.tile_size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    std::string file(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (file.starts_with("\x89PNG")) mend_checksums(file);
    try {
        const Image image = decode_image(file, "fuzz");
        require(static_cast<int64_t>(image.rgb.size()) == image.width * image.height * 3);
        if (image.width * image.height < 1 << 20) check_processing(image, data[0]);
    } catch (const Error&) {
    }
    return 0;
}
