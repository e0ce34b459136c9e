// The memory that the operations themselves work in: rounded copies of x, decoded panels of
// weights, packed keys and values and partial results of attention.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda.h"
#include "kernels/rounding.h"

namespace mllama::cuda {

/// The first byte of workspace_bytes of the device; taken at the first call (take_workspace).
std::byte* workspace();

/// One operation's use of it: pieces one behind the other, forgotten with the operation (the next
/// one is queued behind it). An operation cuts its work so that it fits.
class Workspace {
  public:
    /// n elements, aligned to 256 bytes.
    template <class T>
    T* take(int64_t n) {
        std::byte* result = workspace() + used_;
        used_ += round_up(n * static_cast<int64_t>(sizeof(T)), 256);
        assert(used_ <= workspace_bytes);
        return reinterpret_cast<T*>(result);
    }
    [[nodiscard]] int64_t left() const { return workspace_bytes - used_; }

  private:
    int64_t used_ = 0;
};

}  // namespace mllama::cuda
