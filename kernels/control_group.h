// What the control groups of this process allow it (Linux, versions 1 and 2; both may be mounted).
#pragma once

#include <cstdint>
#include <string>

namespace mllama::cpu {

/// The processors' worth of time that the process may use: the smallest limit of its group and of
/// those around it. Infinite without one. `root`: what stands before /proc and /sys, for tests.
[[nodiscard]] double group_processors(const std::string& root = "");

/// Bytes that the process may still take before a group around it is full, contents of files that
/// could be dropped not counted as used: the smallest of all. The largest int64_t without a limit.
[[nodiscard]] int64_t group_memory_left(const std::string& root = "");

}  // namespace mllama::cpu
