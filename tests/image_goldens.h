// What the tests of pictures share: the goldens of tests/goldens/image, and the pictures that they
// are made from.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "io/image_file.h"
#include "io/json.h"

namespace mllama::test {

inline std::string image_goldens() {
    return std::string(MLLAMA_TEST_DATA) + "/goldens/image/";
}

/// NAME.json and NAME.bin (make_image_goldens.py): entries, and the values that they point to.
struct ImageGoldens {
    Json entries;
    std::string values;

    explicit ImageGoldens(const std::string& name)
        : entries(read_json_file(image_goldens() + name + ".json")),
          values(read_file(image_goldens() + name + ".bin")) {}

    /// `count` values at the entry's offset.
    template <class Value>
    std::vector<Value> expected(const Json& entry, size_t count) const {
        std::vector<Value> result(count);
        const auto offset = entry["offset"].get<size_t>();
        if (offset + count * sizeof(Value) > values.size())
            fail("the goldens end before ", entry.dump());
        std::memcpy(result.data(), values.data() + offset, count * sizeof(Value));
        return result;
    }
};

/// The picture of noise() in make_image_goldens.py: the high bytes of a linear congruential
/// sequence.
inline Image noise(int64_t width, int64_t height, uint32_t seed) {
    Image image{width, height, {}, true};
    for (int64_t i = 0; i < width * height * 3; ++i) {
        seed = seed * 1664525 + 1013904223;
        image.rgb.push_back(static_cast<uint8_t>(seed >> 24));
    }
    return image;
}

}  // namespace mllama::test
