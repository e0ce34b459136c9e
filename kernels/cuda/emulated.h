// The words of CUDA C++ that our kernels use, as plain C++ on the CPU: for tests without a GPU, and
// under AddressSanitizer. Each thread of a block is a fiber; a fiber runs until it must wait for
// others. A block's threads run in ascending or in descending order (order.h): a kernel that
// lacks a barrier gives different results for the two, and a barrier that not all threads
// reach is reported instead of hanging.
//
// Shared memory declared in a kernel is static, so that its ends are guarded; dynamic shared memory
// is filled with NaN for each block.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// The running thread's place, set by the scheduler. blockDim has one dimension.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};

namespace mllama::cuda {

inline constexpr bool is_emulated = true;

namespace emulated {

/// Runs all blocks of a grid, one after the other. Throws Error for threads that wait for ever.
void run(const char* name, dim3 grid, unsigned threads, int64_t shared_bytes,
         const std::function<void()>& kernel);

/// Runs `work`, or adds it to the recording if there is one. Whatever touches memory of the device
/// goes through here.
void queue(std::function<void()> work);

/// Makes the device one that has so much memory left.
void set_free_bytes(int64_t bytes);

/// Waits for all threads of the block.
void block_barrier();

/// Waits for `threads` threads of the block that call it with this id.
void group_barrier(unsigned id, unsigned threads);

/// Waits until ready(), which other threads of the block bring about: they call notify() then.
void wait_until(const std::function<bool()>& ready);
void notify();

/// Queues what the hardware does beside the threads, as late as it may: `work` runs when nobody can go
/// on without it.
void bring_late(std::function<void()> work);

/// Queues work of this thread, which runs when the thread waits for it: what it reads may not change
/// until then, and what it writes is not there. end_group() ends a group; run_groups() runs all but
/// the last `but` of those.
void run_late(std::function<void()> work);
void end_group();
void run_groups(size_t but);

/// Gives every lane of the warp what each lane brings: [lane] begins `exchange_bytes * lane` bytes
/// into the result, which is valid until the lane's next but one exchange.
inline constexpr size_t exchange_bytes = 64;
const std::byte* exchange(const void* mine, size_t bytes);

template <class T>
T of_lane(T mine, unsigned lane) {
    static_assert(sizeof(T) <= exchange_bytes);
    const std::byte* all = exchange(&mine, sizeof(T));
    T result;
    std::memcpy(&result, all + lane % 32 * exchange_bytes, sizeof(T));
    return result;
}

std::byte* dynamic_shared();
void after_previous();

}  // namespace emulated

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            int64_t shared_bytes, Arguments... arguments) {
    emulated::queue([=] {
        emulated::run(name, grid, threads, shared_bytes,
                      [&] { kernel(static_cast<Parameters>(arguments)...); });
    });
}

/// See launch.h. A kernel whose threads do not all call it is reported.
inline void after_previous() {
    emulated::after_previous();
}

bool has_warpgroups();

inline unsigned char* dynamic_shared() {
    return reinterpret_cast<unsigned char*>(emulated::dynamic_shared());
}

}  // namespace mllama::cuda

inline void __syncthreads() {
    mllama::cuda::emulated::block_barrier();
}
inline void __syncwarp(unsigned = 0xFFFFFFFFu) {
    mllama::cuda::emulated::exchange(nullptr, 0);
}
// All 32 lanes take part: the mask is 0xFFFFFFFF.
template <class T>
T __shfl_sync(unsigned, T value, unsigned lane) {
    return mllama::cuda::emulated::of_lane(value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned lanes) {
    return mllama::cuda::emulated::of_lane(value, threadIdx.x % 32 ^ lanes);
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned by) {
    const unsigned lane = threadIdx.x % 32;
    return mllama::cuda::emulated::of_lane(value, lane + by < 32 ? lane + by : lane);
}
inline int __any_sync(unsigned, int predicate) {
    const std::byte* all = mllama::cuda::emulated::exchange(&predicate, sizeof(predicate));
    int any = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        int of_lane;
        std::memcpy(&of_lane, all + lane * mllama::cuda::emulated::exchange_bytes, sizeof(of_lane));
        any |= of_lane;
    }
    return any;
}

/// The sum c + a[0] b[0] + ... + a[3] b[3] of signed bytes.
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) {
        c += static_cast<int8_t>(static_cast<uint32_t>(a) >> (8 * i)) *
             static_cast<int8_t>(static_cast<uint32_t>(b) >> (8 * i));
    }
    return c;
}
template <class T>
T __ldg(const T* address) {
    return *address;
}
inline float __expf(float x) {
    return std::exp(x);
}
