#include "nn/rope.h"

#include <cassert>
#include <cmath>
#include <numbers>
#include <vector>

namespace mllama {
namespace {

/// One frequency stretched as Llama 3.1 does, in float32 like the reference.
float stretch(float frequency, const RopeConfig& config) {
    const auto original = static_cast<double>(config.original_max_position_embeddings);
    const auto longest_kept = static_cast<float>(original / config.high_freq_factor);
    const auto shortest_divided = static_cast<float>(original / config.low_freq_factor);
    const auto factor = static_cast<float>(config.factor);
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength < longest_kept) return frequency;
    if (wavelength > shortest_divided) return frequency / factor;
    const auto low = static_cast<float>(config.low_freq_factor);
    const auto range = static_cast<float>(config.high_freq_factor - config.low_freq_factor);
    const float smooth = (static_cast<float>(original) / wavelength - low) / range;
    return (1 - smooth) * frequency / factor + smooth * frequency;
}

}  // namespace

RotaryEmbedding::RotaryEmbedding(int64_t head_dim, const RopeConfig& config) {
    assert(head_dim % 2 == 0);
    std::vector<float> frequencies;
    for (int64_t i = 0; i < head_dim; i += 2) {
        const float exponent = static_cast<float>(i) / static_cast<float>(head_dim);
        const auto power =
            static_cast<float>(std::pow(config.theta, static_cast<double>(exponent)));
        const float frequency = 1.0f / power;
        frequencies.push_back(config.type == RopeConfig::Type::llama3 ? stretch(frequency, config)
                                                                      : frequency);
    }
    inverse_frequencies_[Device::cpu] = Tensor::from(frequencies);
}

}  // namespace mllama
