// What the blocked operations share: scratch memory, and arithmetic of blocks. Internal to kernels/.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "kernels/cpu.h"
#include "kernels/rounding.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {

/// Memory of one thread that grows to the largest size ever asked for and is kept, so that a second
/// call of the same size allocates nothing. Aligned to cache lines.
class Scratch {
  public:
    template <class T>
    T* get(int64_t count) {
        const auto bytes = static_cast<size_t>(count) * sizeof(T);
        if (bytes > capacity_) {
            memory_.reset();
            capacity_ = 0;
            memory_.reset(::operator new(bytes, alignment));
            capacity_ = bytes;
        }
        return static_cast<T*>(memory_.get());
    }

  private:
    static constexpr std::align_val_t alignment{64};
    struct Release {
        void operator()(void* memory) const { ::operator delete(memory, alignment); }
    };
    std::unique_ptr<void, Release> memory_;
    size_t capacity_ = 0;
};

/// Memory for the items of a loop, a piece for each thread. The thread that starts the loop takes it
/// for all of them: one that took its own at its first item might meet that one at any time, after a
/// thousand tokens.
class TeamScratch {
  public:
    /// Room for `count` of T for each thread. To be called before the loop.
    template <class T>
    void take(int64_t count) {
        places_ = team_places();
        stride_ = round_up(count * int64_t{sizeof(T)}, apart);
        memory_ = scratch_.get<std::byte>(stride_ * places_);
    }
    /// The piece of this thread. For the items.
    template <class T>
    [[nodiscard]] T* here() const {
        assert(team_place() < places_);
        return reinterpret_cast<T*>(memory_ + stride_ * team_place());
    }

  private:
    static constexpr int64_t apart = 128;  // bytes: no two threads write one cache line
    Scratch scratch_;
    std::byte* memory_ = nullptr;
    int64_t stride_ = 0;
    int places_ = 0;
};

inline const std::byte* element_at(const void* data, DType dtype, int64_t index) {
    return static_cast<const std::byte*>(data) + index * dtype_size(dtype);
}

/// What is not a product of integers is one of bfloat16 beside them.
inline const Product& product_of(const Table& leaves, Compute compute) {
    return compute == Compute::f32 ? leaves.f32 : leaves.bf16;
}

}  // namespace mllama::cpu
