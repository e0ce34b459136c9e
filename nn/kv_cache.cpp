#include "nn/kv_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace mllama {
namespace {

/// From this size on, memory comes in pages of 2 MiB: they are read faster, and a page that is not
/// full is then a small part of it.
constexpr int64_t huge_pages_from = int64_t{32} << 20;

Tensor make_room(const Shape& shape, DType dtype) {
    const int64_t bytes = shape.numel() * dtype_size(dtype);
    const auto pages = bytes >= huge_pages_from ? Storage::Pages::huge : Storage::Pages::normal;
    return {Storage::allocate(bytes, pages), 0, shape, dtype};
}

/// Copies the first `blocks` blocks.
void copy_blocks(const Tensor& from, int64_t blocks, Tensor& to) {
    if (blocks == 0) return;
    const Tensor whole = from.rows(0, blocks);
    std::memcpy(to.data(), whole.data(), static_cast<size_t>(whole.bytes()));
}

}  // namespace

void KvCache::reserve(int64_t capacity) {
    if (capacity <= this->capacity()) return;
    // All or none: what is there stays whole if there is not enough memory.
    Tensor more_keys = make_room(KeysValues::key_shape(layout_, capacity), layout_.dtype);
    Tensor more_values = make_room(KeysValues::value_shape(layout_, capacity), layout_.dtype);
    Tensor more_key_scales, more_value_scales;
    const int64_t blocks = KvLayout::blocks(length_);
    if (layout_.scaled()) {
        more_key_scales = make_room(KeysValues::scale_shape(layout_, capacity), DType::f32);
        more_value_scales = make_room(KeysValues::scale_shape(layout_, capacity), DType::f32);
        copy_blocks(key_scales_, blocks, more_key_scales);
        copy_blocks(value_scales_, blocks, more_value_scales);
    }
    copy_blocks(keys_, blocks, more_keys);
    copy_blocks(values_, blocks, more_values);
    keys_ = more_keys;
    values_ = more_values;
    key_scales_ = more_key_scales;
    value_scales_ = more_value_scales;
}

void KvCache::append(const Tensor& k, const Tensor& v) {
    assert(k.cols() == width() && v.cols() == width() && k.rows() == v.rows());
    const int64_t end = length_ + k.rows();
    if (end > capacity()) reserve(std::max(end, 2 * capacity()));
    if (k.rows() == 0) return;
    ops::store_keys(k, length_, keys_, layout_.scaled() ? &key_scales_ : nullptr);
    ops::store_values(v, length_, values_, layout_.scaled() ? &value_scales_ : nullptr);
    length_ = end;
}

void KvCache::truncate(int64_t length) {
    assert(length >= 0 && length <= length_);
    length_ = length;
}

}  // namespace mllama
