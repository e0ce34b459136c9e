// How often the device was asked for what keeps the host: for tests of what a token takes.
#pragma once

#include <atomic>
#include <cstdint>

namespace mllama::cuda {

struct Counts {
    std::atomic<int64_t> allocations{0};         ///< of its memory
    std::atomic<int64_t> pinned_allocations{0};  ///< of memory of the process that it copies from
    std::atomic<int64_t> uploads{0};             ///< copies to it
};

inline Counts counts;

}  // namespace mllama::cuda
