// Waiting for less than the whole block, on devices of compute capability 9.0: barriers of some warps,
// and barriers in shared memory that also count bytes, which the copy engine brings.
#pragma once

#include "kernels/cuda/launch.h"

namespace mllama::cuda {

#ifdef __CUDACC__

__device__ inline unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

/// Waits for `threads` threads that call it with this id (1 ... 15; 0 is __syncthreads).
__device__ inline void group_barrier(unsigned id, unsigned threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

/// A barrier in shared memory ("mbarrier", PTX ISA). It goes through phases; one ends when as many
/// arrivals have been counted as the barrier was made for, and the bytes that were announced are
/// there. Whoever waits sees what those who arrived have written.
class Barrier {
  public:
    /// By one thread; made_barriers() before any other uses it.
    __device__ void make(unsigned arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&state_)),
                     "r"(arrivals)
                     : "memory");
    }
    __device__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&state_))
                     : "memory");
    }
    /// Announces bytes of this phase, and arrives.
    __device__ void arrive_expecting(unsigned bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(
                         shared_address(&state_)),
                     "r"(bytes)
                     : "memory");
    }
    /// Waits for the end of phase number `phase`, counted from 0: the one that goes on, or the one in
    /// front of it.
    __device__ void wait(unsigned phase) {
        asm volatile(
            "{\n"
            ".reg .pred ended;\n"
            "again:\n"
            "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
            "@ended bra there;\n"
            "bra again;\n"
            "there:\n"
            "}\n" ::"r"(shared_address(&state_)),
            "r"(phase & 1)
            : "memory");
    }
    /// Starts to copy bytes, a multiple of 16, to shared memory; they count for this barrier, which must
    /// expect them. Both addresses are aligned to 16. By one thread.
    __device__ void copy(void* shared, const void* global, unsigned bytes) {
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
            "[%3];\n" ::"r"(shared_address(shared)),
            "l"(global), "r"(bytes), "r"(shared_address(&state_))
            : "memory");
    }

  private:
    uint64_t state_;
};

/// Between making barriers and __syncthreads: the copy engine sees them too.
__device__ inline void made_barriers() {
    asm volatile(
        "fence.mbarrier_init.release.cluster;\n"
        "fence.proxy.async.shared::cta;\n" ::
            : "memory");
}

#else

inline void group_barrier(unsigned id, unsigned threads) {
    emulated::group_barrier(id, threads);
}

class Barrier {
  public:
    void make(unsigned arrivals) { *this = Barrier(arrivals); }
    void arrive() { count(1, 0); }
    void arrive_expecting(unsigned bytes) {
        bytes_ += bytes;
        count(1, 0);
    }
    void wait(unsigned phase) {
        emulated::wait_until([&] { return phase_ % 2 != phase % 2; });
    }
    void copy(void* shared, const void* global, unsigned bytes) {
        std::memset(shared, 0xFF, bytes);  // no number: from now on nobody may read what was there
        emulated::bring_late([=, this] {
            std::memcpy(shared, global, bytes);
            count(0, bytes);
        });
    }

    Barrier() = default;

  private:
    explicit Barrier(unsigned arrivals) : all_(arrivals), missing_(arrivals) {}
    void count(unsigned arrivals, unsigned bytes) {
        missing_ -= arrivals;
        bytes_ -= bytes;
        if (missing_ != 0 || bytes_ != 0) return;
        missing_ = all_;
        ++phase_;
        emulated::notify();
    }
    unsigned all_ = 0, missing_ = 0, bytes_ = 0, phase_ = 0;
};

inline void made_barriers() {}

#endif

}  // namespace mllama::cuda
