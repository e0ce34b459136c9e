// What this machine can do at most: how fast it reads memory and multiplies, measured with the
// threads and the instruction-set table that the operations use. A speed means something beside its
// limit (Williams, Waterman & Patterson 2009, "Roofline"), and on a machine that is shared with
// others a limit holds for a moment: measure it next to what is compared with it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

namespace mllama {

/// Rates of all threads of a machine, or of a GPU. A multiply-add counts as two operations.
struct Limits {
    double read_gb_s = 0;      ///< 1e9 bytes a second, of memory far larger than the caches
    int64_t read_streams = 0;  ///< the streams a thread that read fastest: 1, 2, 4 or 8
    double f32_gflop_s = 0;    ///< 1e9 operations a second: products of float32
    double bf16_gflop_s = 0;   ///< of bfloat16; those of float32 where the table has none
    double int8_gop_s = 0;     ///< of int8, with sums of int32
};

/// The larger of each rate.
[[nodiscard]] Limits best(const Limits& a, const Limits& b);

namespace cpu {

/// A rate of reading, and the streams a thread that reached it.
struct Reading {
    double gb_s = 0;
    int64_t streams = 0;
};

/// The fastest of 1, 2, 4 and 8 streams a thread: which one is, differs from machine to machine.
[[nodiscard]] Reading fastest_reading(const std::function<double(int64_t streams)>& gb_s);

/// Memory to read, and the measurements.
class LimitProbe {
  public:
    /// Touches `bytes` of memory (at least 1 MiB), in huge pages where the system has them. Throws
    /// Error if there is not as much.
    explicit LimitProbe(int64_t bytes);

    /// Some 0.3 s: the best of a few readings of each. Throws Error if a loop does not give the
    /// result that its work has: such a rate would be that of something else.
    [[nodiscard]] Limits measure() const;

    [[nodiscard]] int64_t bytes() const { return bytes_; }

    /// 1 GiB, or a quarter of the memory that is free.
    [[nodiscard]] static int64_t default_bytes();

  private:
    struct Free {
        void operator()(float* memory) const;
    };
    [[nodiscard]] double read_gb_s(int64_t streams) const;

    int64_t bytes_;
    std::unique_ptr<float, Free> memory_;
};

/// Memory that is there already.
struct MemoryPart {
    const void* data = nullptr;
    int64_t bytes = 0;
};

/// 1e9 bytes a second of a plain read of these very bytes by all threads, one part after the other:
/// the best of a few readings with 1, 2, 4 and 8 streams a thread. Where memory is of several kinds
/// (other nodes, other page sizes), this is the limit of what works on them.
[[nodiscard]] double read_gb_s(std::span<const MemoryPart> parts);

/// Bytes of memory that this process may still take: of the system, or of a control group around it
/// if that is less; at least 1. 0 if unknown. `root`: see control_group.h.
[[nodiscard]] int64_t available_memory(const std::string& root = "");

/// Bytes of the last cache before memory, as one processor sees it; 32 MiB if unknown.
[[nodiscard]] int64_t last_level_cache();

}  // namespace cpu
}  // namespace mllama
