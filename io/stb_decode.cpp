#include "io/stb_decode.h"

#include <cstdlib>
#include <limits>
#include <memory>

#include "kernels/error.h"

// The implementation is compiled here and nowhere else, with internal linkage, so that a program
// that links this library and has its own stb_image does not clash. Its warnings are not ours.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
// Zeroed, so that a damaged file whose blocks are not all there gives the same picture every time.
#define STBI_MALLOC(size) std::calloc(1, size)
#define STBI_REALLOC(memory, size) std::realloc(memory, size)
#define STBI_FREE(memory) std::free(memory)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

namespace mllama {
namespace {

struct StbFree {
    void operator()(void* samples) const { stbi_image_free(samples); }
};

const stbi_uc* bytes_of(std::string_view file) {
    return reinterpret_cast<const stbi_uc*>(file.data());
}

/// The size as stb_image wants it.
int size_of(std::string_view file, const std::string& name) {
    if (file.size() > static_cast<size_t>(std::numeric_limits<int>::max())) {
        fail(name, ": expected less than 2 GiB, found ", file.size(), " bytes");
    }
    return static_cast<int>(file.size());
}

[[noreturn]] void fail_with_reason(const std::string& name) {
    const char* reason = stbi_failure_reason();
    fail(name, ": damaged, or of a kind that is not supported: ", reason ? reason : "unknown");
}

/// `load` is stbi_load_from_memory or its 16-bit sister.
template <class Sample, class Load>
StbPicture<Sample> decode_png(std::string_view file, const std::string& name, Load load) {
    int width = 0, height = 0, channels = 0;
    const std::unique_ptr<Sample, StbFree> samples(
        load(bytes_of(file), size_of(file, name), &width, &height, &channels, 0));
    if (!samples) fail_with_reason(name);
    StbPicture<Sample> picture{width, height, channels, {}};
    const int64_t count = picture.width * picture.height * picture.channels;
    picture.samples.assign(samples.get(), samples.get() + count);
    return picture;
}

/// stb_image's decoder state; its planes are freed at the end, whatever happens.
struct StbJpeg {
    stbi__context context{};
    stbi__jpeg state{};

    StbJpeg(std::string_view file, InverseDct inverse_dct, const std::string& name) {
        stbi__start_mem(&context, bytes_of(file), size_of(file, name));
        state.s = &context;
        stbi__setup_jpeg(&state);
        state.idct_block_kernel = inverse_dct;
    }
    ~StbJpeg() { stbi__cleanup_jpeg(&state); }
    StbJpeg(const StbJpeg&) = delete;
    StbJpeg& operator=(const StbJpeg&) = delete;
};

}  // namespace

StbPicture<uint8_t> stb_decode_png(std::string_view file, const std::string& name) {
    return decode_png<uint8_t>(file, name, stbi_load_from_memory);
}

StbPicture<uint16_t> stb_decode_png_16(std::string_view file, const std::string& name) {
    return decode_png<uint16_t>(file, name, stbi_load_16_from_memory);
}

std::vector<JpegPlane> stb_decode_jpeg(std::string_view file, InverseDct inverse_dct,
                                       const std::string& name) {
    const auto jpeg =
        std::make_unique<StbJpeg>(file, inverse_dct, name);  // too large for the stack
    if (!stbi__decode_jpeg_image(&jpeg->state)) fail_with_reason(name);
    std::vector<JpegPlane> planes;
    for (int i = 0; i < jpeg->context.img_n; ++i) {
        const auto& component = jpeg->state.img_comp[i];
        JpegPlane plane{component.x,
                        component.y,
                        component.w2,
                        jpeg->state.img_h_max / component.h,
                        jpeg->state.img_v_max / component.v,
                        {}};
        plane.samples.assign(component.data, component.data + plane.stride * plane.height);
        planes.push_back(std::move(plane));
    }
    return planes;
}

std::string stb_inflate(std::string_view stream, int64_t limit) {
    if (stream.size() > static_cast<size_t>(limit)) return {};
    std::string out(static_cast<size_t>(limit), '\0');
    const int size = stbi_zlib_decode_buffer(out.data(), static_cast<int>(limit), stream.data(),
                                             static_cast<int>(stream.size()));
    out.resize(static_cast<size_t>(size < 0 ? 0 : size));
    return out;
}

}  // namespace mllama
