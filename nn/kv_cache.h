// The keys and values that one attention layer keeps of one sequence.
#pragma once

#include "tensor/ops.h"

namespace mllama {

class KvCache {
  public:
    KvCache() = default;
    /// Rows are `width` = kv_heads * head_dim elements of `dtype` (f32, bf16 or f16). Empty; room
    /// is made by reserve.
    KvCache(int64_t width, DType dtype) : width_(width), dtype_(dtype) {}

    /// Makes room for `capacity` rows in all, keeping what is there. Memory is touched only as rows
    /// arrive.
    void reserve(int64_t capacity);

    /// k, v (rows, width) f32, rounded to the cache's type. Makes room if there is none (doubling).
    void append(const Tensor& k, const Tensor& v);

    /// Forgets all rows from `length` on.
    void truncate(int64_t length);

    [[nodiscard]] int64_t length() const { return length_; }
    [[nodiscard]] int64_t width() const { return width_; }
    /// Bytes of the keys and values that are there.
    [[nodiscard]] int64_t bytes() const { return 2 * length_ * width_ * dtype_size(dtype_); }
    [[nodiscard]] int64_t capacity() const { return keys_.defined() ? keys_.dim(0) : 0; }
    [[nodiscard]] Tensor keys() const;    ///< (length, width)
    [[nodiscard]] Tensor values() const;  ///< (length, width)

  private:
    int64_t width_ = 0;
    DType dtype_ = DType::f32;
    int64_t length_ = 0;
    Tensor keys_;    // (capacity, width)
    Tensor values_;  // (capacity, width)
};

}  // namespace mllama
