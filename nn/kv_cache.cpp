#include "nn/kv_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

namespace mllama {

void KvCache::reserve(int64_t capacity) {
    if (capacity <= this->capacity()) return;
    const int64_t before = this->capacity();
    const int64_t key_bytes = head_dim_ * dtype_size(dtype_);
    for (Tensor* kept : {&keys_, &values_}) {
        Tensor larger = Tensor::empty({kv_heads_, capacity, head_dim_}, dtype_);
        for (int64_t head = 0; head < kv_heads_ && length_ > 0; ++head) {
            std::memcpy(static_cast<std::byte*>(larger.data()) + head * capacity * key_bytes,
                        static_cast<const std::byte*>(std::as_const(*kept).data()) +
                            head * before * key_bytes,
                        static_cast<size_t>(length_ * key_bytes));
        }
        *kept = larger;
    }
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
