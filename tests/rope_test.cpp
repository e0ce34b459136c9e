#include "nn/rope.h"

#include <doctest/doctest.h>

#include <cmath>

using namespace mllama;

TEST_CASE("rope_standard_frequencies_are_powers_of_theta") {
    const RotaryEmbedding rope(8, {.theta = 10000});
    REQUIRE(rope.inverse_frequencies().numel() == 4);
    const float* f = rope.inverse_frequencies().data<float>();
    for (size_t i = 0; i < 4; ++i) {
        CHECK(f[i] ==
              doctest::Approx(std::pow(10000.0, -2.0 * static_cast<double>(i) / 8)).epsilon(1e-6));
    }
}

TEST_CASE("rope_llama3_keeps_short_divides_long_and_blends_between") {
    RopeConfig config{.type = RopeConfig::Type::llama3,
                      .theta = 500000,
                      .factor = 8,
                      .low_freq_factor = 1,
                      .high_freq_factor = 4,
                      .original_max_position_embeddings = 8192};
    const RotaryEmbedding stretched(128, config);
    config.type = RopeConfig::Type::standard;
    const RotaryEmbedding plain(128, config);
    int kept = 0;
    int divided = 0;
    int blended = 0;
    for (size_t i = 0; i < 64; ++i) {
        const double frequency = plain.inverse_frequencies().data<float>()[i];
        const double wavelength = 2 * M_PI / frequency;
        const double ratio = stretched.inverse_frequencies().data<float>()[i] / frequency;
        if (wavelength < 8192.0 / 4) {
            CHECK(ratio == doctest::Approx(1.0));
            ++kept;
        } else if (wavelength > 8192.0) {
            CHECK(ratio == doctest::Approx(1.0 / 8));
            ++divided;
        } else {
            const double smooth = (8192 / wavelength - 1) / 3;
            CHECK(ratio == doctest::Approx((1 - smooth) / 8 + smooth).epsilon(1e-4));
            ++blended;
        }
    }
    CHECK(kept > 0);
    CHECK(divided > 0);
    CHECK(blended > 0);
}

TEST_CASE("rope_angles_are_position_times_frequency") {
    const RotaryEmbedding rope(6, {.theta = 500000});
    const std::vector<int64_t> positions = {0, 1, 131071};
    Tensor cos = Tensor::empty({3, 3}, DType::f32);
    Tensor sin = Tensor::empty({3, 3}, DType::f32);
    rope.angles(Tensor::from(positions), cos, sin);
    for (size_t p = 0; p < 3; ++p) {
        for (size_t i = 0; i < 3; ++i) {
            const float angle =
                rope.inverse_frequencies().data<float>()[i] * static_cast<float>(positions[p]);
            CHECK(cos.data<float>()[p * 3 + i] ==
                  doctest::Approx(std::cos(static_cast<double>(angle))).epsilon(1e-6));
            CHECK(sin.data<float>()[p * 3 + i] ==
                  doctest::Approx(std::sin(static_cast<double>(angle))).epsilon(1e-6));
        }
    }
}
