// How often the device was asked for what keeps the host: for tests of what a token takes.
#pragma once

#include <atomic>
#include <cstdint>

namespace mllama::cuda {

struct Counts {
    std::atomic<int64_t> allocations{0};  ///< of its memory, or of pinned memory
    std::atomic<int64_t> uploads{0};      ///< copies to it
};

inline Counts counts;

}  // namespace mllama::cuda
