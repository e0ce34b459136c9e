// Pictures from files, against what Pillow makes of the same files.
#include "io/image_file.h"

#include <doctest/doctest.h>

#include <set>

#include "image_goldens.h"
#include "temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

std::string picture_path(const std::string& file) {
    return image_goldens() + "files/" + file;
}

const ImageGoldens& pictures() {
    static const ImageGoldens goldens("pictures");
    return goldens;
}

/// Checks all goldens whose file ends with `ending` and returns how many there are.
int check_pictures(const std::string& ending) {
    int count = 0;
    for (const Json& entry : pictures().entries) {
        const auto file = entry["file"].get<std::string>();
        if (entry.contains("error") || !file.ends_with(ending)) continue;
        ++count;
        CAPTURE(file);
        const Image image = load_image(picture_path(file));
        REQUIRE(image.width == entry["width"].get<int64_t>());
        REQUIRE(image.height == entry["height"].get<int64_t>());
        CHECK(image.stored_as_rgb == entry["stored_as_rgb"].get<bool>());
        const size_t size = static_cast<size_t>(image.width * image.height * 3);
        CHECK(image.rgb == pictures().expected<uint8_t>(entry, size));
    }
    return count;
}

/// A part of a golden picture's bytes, with one byte changed.
std::string changed(const std::string& bytes, size_t position, char value) {
    std::string result = bytes;
    result[position] = value;
    return result;
}

std::string decode_error(std::string_view bytes) {
    return error_of([&] { decode_image(bytes, "x.png"); });
}

}  // namespace

TEST_CASE("png_of_every_colour_type_and_depth_equals_pillow") {
    CHECK(check_pictures(".png") >= 45);
}

TEST_CASE("jpeg_equals_pillow_with_libjpeg") {
    CHECK(check_pictures(".jpg") >= 30);
}

TEST_CASE("gif_first_frame_equals_pillow") {
    CHECK(check_pictures(".gif") >= 11);
}

TEST_CASE("bmp_of_every_header_and_depth_equals_pillow") {
    CHECK(check_pictures(".bmp") >= 20);
}

TEST_CASE("image_broken_files_are_errors_that_name_the_file") {
    int count = 0;
    for (const Json& entry : pictures().entries) {
        if (!entry.contains("error")) continue;
        ++count;
        const std::string path = picture_path(entry["file"].get<std::string>());
        CAPTURE(path);
        const std::string message = error_of([&] { load_image(path); });
        CHECK(message.starts_with(path + ": "));
        CHECK(message.find('\n') == std::string::npos);
    }
    CHECK(count >= 20);
}

TEST_CASE("image_messages_say_what_was_found") {
    CHECK(decode_error("") ==
          "x.png: not an image this program can read (expected PNG, JPEG, BMP or GIF, found an "
          "empty file)");
    CHECK(holds_all(decode_error("hello"),
                    {"found a file that starts with the bytes 68 65 6c 6c 6f)"}));
    const auto broken = [](const char* file) {
        return error_of([&] { load_image(picture_path(std::string("broken_") + file)); });
    };
    CHECK(holds_all(broken("bomb.png"), {"30000x30000"}));
    CHECK(holds_all(broken("bomb.jpg"), {"12288x12288"}));
    CHECK(holds_all(broken("bomb.gif"), {"12287x12287"}));
    CHECK(holds_all(broken("bomb.bmp"), {"12000x12000"}));
    CHECK(holds_all(broken("damaged.png"), {"checksum"}));
    for (const char* file :
         {"truncated.png", "truncated.jpg", "no_end.jpg", "truncated_progressive.jpg",
          "headers_only.jpg", "truncated.gif", "header.gif", "truncated.bmp", "header.bmp"}) {
        CAPTURE(file);
        CHECK(holds_all(broken(file), {"truncated"}));
    }
    CHECK(
        holds_all(error_of([] { load_image("/no/such/picture.png"); }), {"/no/such/picture.png"}));
    CHECK(!error_of([] { load_image(image_goldens()); }).empty());  // a directory
}

TEST_CASE("image_truncated_anywhere_is_an_error") {
    // A JPEG file ends with its end marker, a PNG file with IEND: nothing shorter is whole.
    for (const char* file :
         {"baseline_75_2.jpg", "progressive.jpg", "rgb_8.png", "palette_4_alpha.png"}) {
        const std::string bytes = read_file(picture_path(file));
        CAPTURE(file);
        for (size_t size = 0; size < bytes.size(); ++size) {
            CAPTURE(size);
            CHECK(!decode_error(std::string_view(bytes).substr(0, size)).empty());
        }
    }
    // GIF and BMP may end once all pixels are there.
    for (const char* file : {"plain.gif", "rgb_24.bmp"}) {
        const std::string bytes = read_file(picture_path(file));
        CAPTURE(file);
        for (size_t size = 0; size + 5 < bytes.size(); ++size) {
            CAPTURE(size);
            CHECK(!decode_error(std::string_view(bytes).substr(0, size)).empty());
        }
    }
}

TEST_CASE("image_with_any_changed_byte_is_a_picture_or_an_error") {
    std::set<std::string> outcomes;
    for (const char* file : {"baseline_75_2.jpg", "progressive_grey.jpg", "palette_4_alpha.png",
                             "orientation_profile_compressed.png", "partial_transparent.gif",
                             "runs_8.bmp", "mask_rgba.bmp", "orientation_6.jpg"}) {
        const std::string bytes = read_file(picture_path(file));
        for (size_t i = 0; i < bytes.size(); ++i) {
            for (const int value : {0, 1, 0x7f, 0xff}) {
                try {
                    const Image image =
                        decode_image(changed(bytes, i, static_cast<char>(value)), "x");
                    REQUIRE(static_cast<int64_t>(image.rgb.size()) ==
                            image.width * image.height * 3);
                    outcomes.insert("picture");
                } catch (const Error&) {
                    outcomes.insert("error");
                }
            }
        }
    }
    CHECK(outcomes.size() == 2);
}

TEST_CASE("image_orientation_moves_every_pixel") {
    // The corner that each orientation shows at the top left, by ImageOps.exif_transpose; width and
    // height swap from 5 on.
    const Image upright = load_image(picture_path("orientation_1.jpg"));
    const auto pixel = [](const Image& image, int64_t x, int64_t y) {
        const auto* p = image.rgb.data() + (y * image.width + x) * 3;
        return std::vector<uint8_t>(p, p + 3);
    };
    const int64_t right = upright.width - 1, bottom = upright.height - 1;
    const std::vector<std::pair<int64_t, int64_t>> corners{
        {0, 0}, {right, 0},  {right, bottom}, {0, bottom},
        {0, 0}, {0, bottom}, {right, bottom}, {right, 0}};
    for (size_t orientation = 1; orientation <= 8; ++orientation) {
        CAPTURE(orientation);
        const Image turned =
            load_image(picture_path("orientation_" + std::to_string(orientation) + ".jpg"));
        CHECK(turned.width == (orientation < 5 ? upright.width : upright.height));
        CHECK(pixel(turned, 0, 0) ==
              pixel(upright, corners[orientation - 1].first, corners[orientation - 1].second));
    }
}
