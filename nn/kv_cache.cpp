#include "nn/kv_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace mllama {

void KvCache::reserve(int64_t capacity) {
    if (capacity <= this->capacity()) return;
    const int64_t before = this->capacity();
    const int64_t key_bytes = head_dim_ * dtype_size(dtype_);
    // Both or none: what is there stays whole if there is not enough memory.
    const Shape shape{kv_heads_, capacity, head_dim_};
    Tensor more_keys = Tensor::empty(shape, dtype_), more_values = Tensor::empty(shape, dtype_);
    const auto move = [&](const Tensor& from, Tensor& to) {
        for (int64_t head = 0; head < kv_heads_ && length_ > 0; ++head) {
            std::memcpy(static_cast<std::byte*>(to.data()) + head * capacity * key_bytes,
                        static_cast<const std::byte*>(from.data()) + head * before * key_bytes,
                        static_cast<size_t>(length_ * key_bytes));
        }
    };
    move(keys_, more_keys);
    move(values_, more_values);
    keys_ = more_keys;
    values_ = more_values;
}

void KvCache::append(const Tensor& k, const Tensor& v) {
    assert(k.cols() == width() && v.cols() == width() && k.rows() == v.rows());
    const int64_t end = length_ + k.rows();
    if (end > capacity()) reserve(std::max(end, 2 * capacity()));
    ops::split_heads(k, keys_, length_);
    ops::split_heads(v, values_, length_);
    length_ = end;
}

void KvCache::truncate(int64_t length) {
    assert(length >= 0 && length <= length_);
    length_ = length;
}

}  // namespace mllama
