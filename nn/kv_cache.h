// The keys and values that one attention layer keeps of one sequence.
#pragma once

#include "tensor/ops.h"

namespace mllama {

/// Head by head, (kv_heads, capacity, head_dim): attention goes over the keys of one head at a
/// time, and finds them side by side in memory.
class KvCache {
  public:
    KvCache() = default;
    /// Of element type f32, bf16 or f16. Empty; room is made by reserve.
    KvCache(int64_t kv_heads, int64_t head_dim, DType dtype)
        : kv_heads_(kv_heads), head_dim_(head_dim), dtype_(dtype) {}

    /// Makes room for `capacity` keys in all, keeping what is there. Memory is touched only as keys
    /// arrive.
    void reserve(int64_t capacity);

    /// k, v (keys, kv_heads * head_dim) f32, rounded to the cache's type. Makes room if there is
    /// none (doubling).
    void append(const Tensor& k, const Tensor& v);

    /// Forgets all keys from `length` on.
    void truncate(int64_t length);

    [[nodiscard]] int64_t length() const { return length_; }
    [[nodiscard]] int64_t width() const { return kv_heads_ * head_dim_; }
    /// Bytes of the keys and values that are there.
    [[nodiscard]] int64_t bytes() const { return 2 * length_ * width() * dtype_size(dtype_); }
    [[nodiscard]] int64_t capacity() const { return keys_.defined() ? keys_.dim(1) : 0; }
    [[nodiscard]] KeysValues keys_values() const { return {keys_, values_, length_}; }

  private:
    int64_t kv_heads_ = 0;
    int64_t head_dim_ = 0;
    DType dtype_ = DType::f32;
    int64_t length_ = 0;
    Tensor keys_;    // (kv_heads, capacity, head_dim)
    Tensor values_;  // (kv_heads, capacity, head_dim)
};

}  // namespace mllama
