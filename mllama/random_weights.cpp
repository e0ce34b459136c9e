#include "mllama/random_weights.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <string_view>
#include <type_traits>

#include "tensor/ops.h"

namespace mllama {
namespace {

constexpr size_t quantile_count = 4096;  // 12 bits of a random number choose one
constexpr int64_t values_of_a_number = 4;
constexpr int64_t block = int64_t{1} << 18;  // elements that a thread makes at a time

/// SplitMix64 (Steele, Lea & Flood 2014): number `index` of the sequence of `key`.
uint64_t random_number(uint64_t key, uint64_t index) {
    uint64_t z = key + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/// FNV-1a.
uint64_t hash(std::string_view text, uint64_t seed) {
    uint64_t h = 0xCBF29CE484222325u ^ random_number(seed, 0);
    for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
    return h;
}

/// The x with P(X < x) = p for a standard normal X: by halving, since the distribution is monotone.
double normal_quantile(double p) {
    double low = -8.0;
    double high = 8.0;
    for (int i = 0; i < 50; ++i) {
        const double middle = 0.5 * (low + high);
        (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
    }
    return 0.5 * (low + high);
}

bool contains(const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

RandomWeights::RandomWeights(const ModelConfig& config, DType dtype, uint64_t seed)
    : vision_(config.vision), dtype_(dtype), seed_(seed) {
    assert(dtype == DType::bf16 || dtype == DType::f32);
    for (size_t i = 0; i < quantile_count; ++i) {
        const double p = (static_cast<double>(i) + 0.5) / static_cast<double>(quantile_count);
        quantiles_.push_back(static_cast<float>(normal_quantile(p)));
    }
}

template <class Element>
void RandomWeights::fill(Tensor& tensor, uint64_t key, float mean, float deviation) const {
    std::vector<Element> values;
    for (const float quantile : quantiles_) {
        const float value = mean + deviation * quantile;
        if constexpr (std::is_same_v<Element, float>) {
            values.push_back(value);
        } else {
            values.push_back(f32_to_bf16(value));
        }
    }
    const int64_t n = tensor.numel();
    Element* to = tensor.data<Element>();
    ops::parallel_for((n + block - 1) / block, [&](int64_t b) {
        const int64_t end = std::min(n, (b + 1) * block);
        for (int64_t i = b * block; i < end; i += values_of_a_number) {
            uint64_t bits = random_number(key, static_cast<uint64_t>(i / values_of_a_number));
            const int64_t stop = std::min(i + values_of_a_number, end);
            for (int64_t j = i; j < stop; ++j, bits >>= 16) to[j] = values[bits % quantile_count];
        }
    });
}

void RandomWeights::clear_unused_tiles(Tensor& table) const {
    const int64_t tile_bytes =
        table.cols() / vision_.max_num_tiles * dtype_size(dtype_);  // of one aspect ratio id
    for (size_t i = 0; i < vision_.supported_aspect_ratios.size(); ++i) {
        const auto [high, wide] = vision_.supported_aspect_ratios[i];
        const auto id = static_cast<int64_t>(i) + 1;
        Tensor row = table.rows(id, id + 1);
        auto* bytes = static_cast<std::byte*>(row.data());
        std::fill(bytes + high * wide * tile_bytes, bytes + vision_.max_num_tiles * tile_bytes,
                  std::byte{0});
    }
}

Tensor RandomWeights::tensor(const std::string& name, const std::vector<int64_t>& shape) const {
    const Shape wanted(shape);
    Tensor tensor(Storage::allocate(wanted.numel() * dtype_size(dtype_), Storage::Pages::huge), 0,
                  wanted, dtype_);
    const uint64_t key = hash(name, seed_);
    const bool by_aspect_ratio =
        contains(name, "tile_embedding") || contains(name, "tile_positional_embedding.embedding");
    float mean = 0.0f;
    float deviation = 0.1f;
    if (wanted.numel() == 1) {
        mean = 0.25f + 0.5f * static_cast<float>(random_number(key, 0) >> 40) * 0x1p-24f;
        deviation = 0.0f;
    } else if (wanted.rank() == 1) {
        if (contains(name, "norm") && name.ends_with(".weight")) mean = 1.0f;
    } else if (contains(name, "embed") && !contains(name, "patch_embedding")) {
        deviation = 0.5f;
    } else {
        const double in = static_cast<double>(wanted.numel()) / static_cast<double>(wanted[0]);
        deviation = static_cast<float>(1.0 / std::sqrt(in));
    }
    if (dtype_ == DType::f32) {
        fill<float>(tensor, key, mean, deviation);
    } else {
        fill<uint16_t>(tensor, key, mean, deviation);
    }
    if (by_aspect_ratio) clear_unused_tiles(tensor);
    return tensor;
}

}  // namespace mllama
