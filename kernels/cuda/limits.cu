// What the device can do at most.
#include <algorithm>
#include <chrono>
#include <functional>

#include "kernels/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/warp.h"
#include "kernels/cuda/workspace.h"
#include "kernels/error.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr int64_t loads = 8;  // of 16 bytes, in flight for each thread

/// A block reads threads * loads vectors: sums (blocks) keeps the compiler from reading nothing.
__global__ void read_kernel(const uint4* memory, uint32_t* sums) {
    after_previous();
    const int64_t first = static_cast<int64_t>(blockIdx.x) * threads * loads + threadIdx.x;
    uint32_t sum = 0;
    for (int64_t i = 0; i < loads; ++i) {
        const uint4 vector = memory[first + i * threads];
        sum += vector.x + vector.y + vector.z + vector.w;
    }
    if (sum != 0) sums[blockIdx.x] = sum;
}

/// Pseudo-random bits, of which those of `keep` are kept and those of `set` are 1. Zeros are multiplied faster
/// than numbers: a device that has less to do may run at a higher clock.
__global__ void fill_kernel(uint32_t* words, uint32_t keep, uint32_t set) {
    after_previous();
    uint32_t i = blockIdx.x * threads + threadIdx.x;
    i = (i ^ i >> 16) * 0x85EBCA6Bu;
    i = (i ^ i >> 13) * 0xC2B2AE35u;
    words[blockIdx.x * threads + threadIdx.x] = ((i ^ i >> 16) & keep) | set;
}

/// Seconds of `work` on the device: the best of a few.
double best_seconds(int times, const std::function<void()>& work) {
    work();  // what is only done once
    double best = 1e30;
    for (int i = 0; i < times; ++i) {
        synchronise();
        const auto start = std::chrono::steady_clock::now();
        work();
        synchronise();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::min(best, seconds.count());
    }
    return best;
}

/// Memory of the device for as long as this lives.
class Memory {
  public:
    explicit Memory(int64_t bytes) : data_(allocate(bytes)) { fill_zero(data_, bytes); }
    ~Memory() { release(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    template <class T>
    [[nodiscard]] T* as() const {
        return static_cast<T*>(data_);
    }

  private:
    void* data_;
};

/// Operations a second, in 1e9, of a product of square matrices.
double product_rate(int64_t size, const std::function<void(int64_t size)>& multiply) {
    const double operations = 2.0 * static_cast<double>(size * size) * static_cast<double>(size);
    return operations / best_seconds(5, [&] { multiply(size); }) / 1e9;
}

}  // namespace

Limits measure_limits() {
    constexpr int64_t bytes = int64_t{1} << (is_emulated ? 22 : 31);
    constexpr int64_t size = is_emulated ? 32 : 8192;
    Limits limits;
    {
        const int64_t blocks = bytes / 16 / (threads * loads);
        const Memory memory(bytes);
        const Memory sums(blocks * 4);
        const double seconds = best_seconds(5, [&] {
            launch("read", read_kernel, static_cast<unsigned>(blocks), threads, 0,
                   memory.as<uint4>(), sums.as<uint32_t>());
        });
        limits.read_gb_s = static_cast<double>(bytes) / seconds / 1e9;
        limits.read_streams = loads;
    }
    const Memory x(size * size * 4);
    const Memory w(size * size * 4);
    const auto fill = [&](uint32_t keep, uint32_t set) {
        for (const Memory* factor : {&x, &w}) {
            launch("fill", fill_kernel, static_cast<unsigned>(size * size / threads), threads, 0,
                   factor->as<uint32_t>(), keep, set);
        }
    };
    const Memory out(size * size * 4);
    const auto floats = [&](DType dtype) {
        return [&, dtype](int64_t n) {
            product(x.as<void>(), n, w.as<void>(), n, dtype, n, n, n, 1.0f, 0.0f, nullptr,
                    out.as<float>(), n);
        };
    };
    fill(0x807F807Fu, 0x3F803F80u);  // between 1 and 2, of either sign, as float32 and as bfloat16
    limits.f32_gflop_s = product_rate(is_emulated ? size : size / 2, floats(DType::f32));
    limits.bf16_gflop_s = product_rate(size, floats(DType::bf16));
    fill(0xFFFFFFFFu, 0);
    limits.int8_gop_s = product_rate(size, [&](int64_t n) {
        product_int8(x.as<int8_t>(), n, w.as<int8_t>(), n, n, n, n, out.as<int32_t>(), n);
    });
    return limits;
}

}  // namespace mllama::cuda
