// Results of a device that the host reads, over and over.
#pragma once

#include "tensor/tensor.h"

namespace mllama {

/// Pinned memory that takes copies of a GPU's tensors; those of the CPU need none.
class HostCopy {
  public:
    /// Room for tensors of so many bytes on this device; a copy that is there is lost.
    void reserve(int64_t bytes, Device device);
    /// x (contiguous) where the host can read it: x itself, or a copy of a GPU's when all that was queued
    /// in front has run. Valid until the next call.
    [[nodiscard]] Tensor of(const Tensor& x);

  private:
    Tensor pinned_;  // bytes
};

}  // namespace mllama
