#include "nn/kv_cache.h"

#include <algorithm>
#include <cassert>

namespace mllama {

void KvCache::reserve(int64_t capacity) {
    if (capacity <= this->capacity()) return;
    for (Tensor* rows : {&keys_, &values_}) {
        Tensor larger = Tensor::empty({capacity, width_}, dtype_);
        if (length_ > 0) {
            Tensor kept = larger.rows(0, length_);
            ops::convert(rows->rows(0, length_), kept);
        }
        *rows = larger;
    }
}

void KvCache::append(const Tensor& k, const Tensor& v) {
    assert(k.cols() == width_ && v.cols() == width_ && k.rows() == v.rows());
    const int64_t end = length_ + k.rows();
    if (end > capacity()) reserve(std::max(end, 2 * capacity()));
    Tensor new_keys = keys_.rows(length_, end);
    Tensor new_values = values_.rows(length_, end);
    ops::convert(k, new_keys);
    ops::convert(v, new_values);
    length_ = end;
}

void KvCache::truncate(int64_t length) {
    assert(length >= 0 && length <= length_);
    length_ = length;
}

Tensor KvCache::keys() const {
    return keys_.rows(0, length_);
}

Tensor KvCache::values() const {
    return values_.rows(0, length_);
}

}  // namespace mllama
