#include "kernels/limits.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "kernels/control_group.h"
#include "kernels/cpu.h"
#include "kernels/error.h"
#include "kernels/number_file.h"

namespace mllama {

Limits best(const Limits& a, const Limits& b) {
    Limits result;
    const Limits& reader = a.read_gb_s >= b.read_gb_s ? a : b;
    result.read_gb_s = reader.read_gb_s;
    result.read_streams = reader.read_streams;
    result.f32_gflop_s = std::max(a.f32_gflop_s, b.f32_gflop_s);
    result.bf16_gflop_s = std::max(a.bf16_gflop_s, b.bf16_gflop_s);
    result.int8_gop_s = std::max(a.int8_gop_s, b.int8_gop_s);
    return result;
}

namespace cpu {
namespace {

constexpr int64_t huge_page = int64_t{2} << 20;
constexpr int64_t stream_counts[] = {1, 2, 4, 8};

/// One float of each group of this many is 1, the others are 0: a sum that is exact and that no
/// reader can know without reading.
constexpr int64_t ones_apart = 1024;

/// Parts that a thread takes one after the other. Not a power of two: the streams of a part would
/// begin at the same place of the caches.
constexpr int64_t parts_of_a_thread = 7;

using Clock = std::chrono::steady_clock;

/// The shortest of up to `runs` runs; no more are begun after a tenth of a second.
template <class Work>
double best_seconds(int runs, const Work& work) {
    using Seconds = std::chrono::duration<double>;
    const auto begin = Clock::now();
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < runs && (i == 0 || Seconds(Clock::now() - begin).count() < 0.1); ++i) {
        const auto start = Clock::now();
        work();
        best = std::min(best, Seconds(Clock::now() - start).count());
    }
    return best;
}

/// 1e9 operations a second of a loop on all threads at once.
double peak_gop_s(const PeakLoop& loop, const char* type) {
    constexpr int64_t rounds = 1 << 19;
    const int64_t items = threads();
    const double multiply_adds = static_cast<double>(rounds * loop.multiply_adds);
    std::vector<double> results(static_cast<size_t>(items));
    const double seconds = best_seconds(10, [&] {
        parallel_for(items,
                     [&](int64_t i) { results[static_cast<size_t>(i)] = loop.run(rounds, 1); });
    });
    for (const double result : results) {
        if (result != multiply_adds) {
            fail("limit of ", type, " multiply-adds: expected a sum of ", multiply_adds, ", found ",
                 result);
        }
    }
    return 2 * multiply_adds * static_cast<double>(items) / seconds / 1e9;
}

/// What reads with so many streams.
using ReadSum = float (*)(const float* x, int64_t n);
ReadSum reader_of(int64_t streams) {
    const auto* place = std::find(std::begin(stream_counts), std::end(stream_counts), streams);
    return table().read_sum[place - std::begin(stream_counts)];
}

}  // namespace

void LimitProbe::Free::operator()(float* memory) const {
    std::free(memory);
}

LimitProbe::LimitProbe(int64_t bytes)
    : bytes_((std::max<int64_t>(bytes, 1 << 20) + huge_page - 1) / huge_page * huge_page) {
    const auto size = static_cast<size_t>(bytes_);
    memory_.reset(static_cast<float*>(std::aligned_alloc(static_cast<size_t>(huge_page), size)));
    if (memory_ == nullptr) fail("out of memory: ", bytes_, " bytes to read cannot be allocated");
    ::madvise(memory_.get(), size, MADV_HUGEPAGE);  // only advice
    // Touched by writing: pages that were only read would all be the same page of zeros.
    parallel_for(bytes_ / huge_page, [this](int64_t page) {
        constexpr int64_t floats = huge_page / int64_t{sizeof(float)};
        float* to = memory_.get() + page * floats;
        for (int64_t i = 0; i < floats; ++i) to[i] = i % ones_apart == 0 ? 1.0f : 0.0f;
    });
}

int64_t LimitProbe::default_bytes() {
    constexpr int64_t wanted = int64_t{1} << 30;
    const int64_t available = available_memory();
    return available > 0 ? std::min(wanted, available / 4) : wanted;
}

double LimitProbe::read_gb_s(int64_t streams) const {
    const ReadSum read_sum = reader_of(streams);
    const int64_t floats = bytes_ / int64_t{sizeof(float)};
    const int64_t parts = parts_of_a_thread * threads();
    const int64_t part = (floats + parts - 1) / parts;
    std::vector<float> sums(static_cast<size_t>(parts));
    const double seconds = best_seconds(2, [&] {
        parallel_for(parts, [&](int64_t i) {
            const int64_t begin = std::min(i * part, floats);
            sums[static_cast<size_t>(i)] =
                read_sum(memory_.get() + begin, std::min(part, floats - begin));
        });
    });
    double sum = 0.0;
    for (const float of_part : sums) sum += double{of_part};
    const auto expected = static_cast<double>(floats / ones_apart);
    if (sum != expected) fail("limit of reading: expected a sum of ", expected, ", found ", sum);
    return static_cast<double>(bytes_) / seconds / 1e9;
}

Reading fastest_reading(const std::function<double(int64_t streams)>& gb_s) {
    Reading fastest;
    for (const int64_t streams : stream_counts) {
        const double rate = gb_s(streams);
        if (rate > fastest.gb_s) fastest = {rate, streams};
    }
    return fastest;
}

Limits LimitProbe::measure() const {
    Limits limits;
    const Table& leaves = table();
    limits.f32_gflop_s = peak_gop_s(leaves.peak_f32, "f32");
    limits.bf16_gflop_s = peak_gop_s(leaves.peak_bf16, "bf16");
    limits.int8_gop_s = peak_gop_s(leaves.peak_int8, "int8");
    const Reading fastest = fastest_reading([this](int64_t streams) { return read_gb_s(streams); });
    limits.read_gb_s = fastest.gb_s;
    limits.read_streams = fastest.streams;
    return limits;
}

double read_gb_s(std::span<const MemoryPart> parts) {
    int64_t bytes = 0;
    for (const MemoryPart& part : parts) bytes += part.bytes;
    const int64_t shares = parts_of_a_thread * threads();
    std::vector<float> sums(static_cast<size_t>(shares));
    const auto rate = [&](int64_t streams) {
        const ReadSum read_sum = reader_of(streams);
        const double seconds = best_seconds(2, [&] {
            for (const MemoryPart& part : parts) {
                const auto* from = static_cast<const float*>(part.data);
                const int64_t floats = part.bytes / int64_t{sizeof(float)};
                const int64_t piece = pieces(floats, shares);
                parallel_for(shares, [&](int64_t i) {
                    const int64_t begin = std::min(i * piece, floats);
                    sums[static_cast<size_t>(i)] +=
                        read_sum(from + begin, std::min(piece, floats - begin));
                });
            }
        });
        return static_cast<double>(bytes) / seconds / 1e9;
    };
    return fastest_reading(rate).gb_s;
}

int64_t available_memory(const std::string& root) {
    const int64_t kb = number_in_file(root + "/proc/meminfo", "MemAvailable:");
    const int64_t left = group_memory_left(root);
    const int64_t least = kb >= 0 ? std::min(kb * 1024, left) : left;
    return least < std::numeric_limits<int64_t>::max() ? std::max<int64_t>(1, least) : 0;
}

int64_t last_level_cache() {
    // The kernel's own account; the C library multiplies the size on some processors.
    int64_t kb = -1;
    for (const char* index : {"2", "3", "4"}) {
        const std::string path =
            std::string("/sys/devices/system/cpu/cpu0/cache/index") + index + "/size";  // "32768K"
        kb = std::max(kb, number_in_file(path));
    }
    return kb > 0 ? kb * 1024 : int64_t{32} << 20;
}

}  // namespace cpu
}  // namespace mllama
