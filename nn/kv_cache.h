// The keys and values that one attention layer keeps of one sequence.
#pragma once

#include "tensor/ops.h"

namespace mllama {

/// They lie as attention reads them, in blocks of 64 keys (kernels/kv_layout.h).
class KvCache {
  public:
    KvCache() = default;
    /// Of element type f32, bf16, f16 or i8 (with a scale for each key, value and head). Empty; room
    /// is made by reserve.
    KvCache(int64_t kv_heads, int64_t head_dim, DType dtype) : layout_{kv_heads, head_dim, dtype} {}

    /// Makes room for at least `capacity` keys in all, keeping what is there. Memory is touched only
    /// as keys arrive.
    void reserve(int64_t capacity);

    /// k, v (keys, kv_heads * head_dim) f32, rounded to the cache's type. Makes room if there is
    /// none (doubling).
    void append(const Tensor& k, const Tensor& v);

    /// Forgets all keys from `length` on.
    void truncate(int64_t length);

    [[nodiscard]] int64_t length() const { return length_; }
    [[nodiscard]] int64_t width() const { return layout_.kv_heads * layout_.head_dim; }
    /// Bytes of the keys and values that are there.
    [[nodiscard]] int64_t bytes() const { return length_ * layout_.bytes_of_key(); }
    /// Keys that there is room for: whole blocks.
    [[nodiscard]] int64_t capacity() const {
        return keys_.defined() ? keys_.dim(0) * KvLayout::block : 0;
    }
    [[nodiscard]] KeysValues keys_values() const {
        return {keys_, values_, length_, key_scales_, value_scales_};
    }

  private:
    KvLayout layout_;
    int64_t length_ = 0;
    Tensor keys_;    // (blocks, kv_heads, key_rows, block, unit)
    Tensor values_;  // (blocks, kv_heads, value_parts, value_rows, part_width, unit)
    Tensor key_scales_, value_scales_;  // (blocks, kv_heads, block) of int8
};

}  // namespace mllama
