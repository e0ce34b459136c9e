// Division and multiples that round up: how sizes are cut into blocks, groups and words.
#pragma once

#include <cstdint>

namespace mllama {

/// n >= 0, the others > 0.
constexpr int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}
/// How many pieces of at most `piece` make n.
constexpr int64_t pieces(int64_t n, int64_t piece) {
    return (n + piece - 1) / piece;
}

}  // namespace mllama
