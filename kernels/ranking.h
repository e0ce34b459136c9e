// Numbers in the order of size, the first one first of equal ones: what argmax and top_k compare.
#pragma once

#include <bit>
#include <cstdint>

namespace mllama {

/// Numbers that top_k finds at most: what a block of a GPU sorts has room for several times that.
inline constexpr int64_t most_top_k = 1024;

/// A number that orders as the float does: -0 as 0, a NaN above all.
constexpr uint32_t ordered(float value) {
    if (value != value) return 0xFFFFFFFFu;
    const auto bits = std::bit_cast<uint32_t>(value + 0.0f);  // -0 as 0
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

/// The larger of two ranks is of the larger float, or of the smaller index. Never 0.
constexpr uint64_t rank_of(float value, uint32_t index) {
    return uint64_t{ordered(value)} << 32 | ~index;
}
constexpr uint32_t index_of(uint64_t rank) {
    return ~static_cast<uint32_t>(rank);
}
constexpr bool is_rank_of_nan(uint64_t rank) {
    return rank >> 32 == 0xFFFFFFFFu;
}

}  // namespace mllama
