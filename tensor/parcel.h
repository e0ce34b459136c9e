// Small arrays that a device shall have, brought there in one copy instead of one for each.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "tensor/arena.h"

namespace mllama {

/// Takes tensors from an arena, one behind the other, and gathers their elements: they hold them when
/// `send` has been called. One copy is enough if the arena has room for all in one block.
class Parcel {
  public:
    /// `packed` is memory of the caller's, kept from parcel to parcel so that none is allocated.
    Parcel(Arena& arena, std::vector<std::byte>& packed);

    /// As Arena::take_copy, but for when the elements are there.
    template <class T>
    Tensor take_copy(std::span<const T> values) {
        Tensor result = arena_.take({static_cast<int64_t>(values.size())}, dtype_of<T>());
        pack(result, values.data());
        return result;
    }

    /// For what is queued later, the elements are there.
    void send();

    [[nodiscard]] Device device() const { return arena_.device(); }

  private:
    void pack(const Tensor& piece, const void* elements);

    Arena& arena_;
    std::vector<std::byte>& packed_;
    std::shared_ptr<Storage> storage_;  // of the pieces that are packed
    int64_t begin_ = 0;                 // of the first of them
};

}  // namespace mllama
