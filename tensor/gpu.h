// The GPU as those above tensor/ may know it: whether there is one, and how much it holds.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/cuda.h"

namespace mllama {

/// Name, memory, compute capability.
using GpuInfo = cuda::DeviceInfo;

/// Why there is none to compute on, as a sentence; "" if there is one.
inline std::string gpu_unavailable() {
    return cuda::unavailable();
}

/// Throws Error if there is none.
inline GpuInfo gpu_info() {
    return cuda::device_info();
}

/// Device memory that operations take for themselves, and that the driver's own structures may.
inline constexpr int64_t gpu_overhead_bytes = cuda::workspace_bytes + (int64_t{288} << 20);

/// Takes what operations work in now: later somebody else may have it. Throws Error with figures.
inline void gpu_take_workspace() {
    cuda::take_workspace();
}

/// See cuda::measure_limits.
inline Limits gpu_limits() {
    return cuda::measure_limits();
}

/// Waits for everything that has been queued.
inline void gpu_synchronise() {
    cuda::synchronise();
}

}  // namespace mllama
