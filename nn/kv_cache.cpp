#include "nn/kv_cache.h"

#include <algorithm>
#include <cassert>

namespace mllama {
namespace {

/// From this size on, memory comes in pages of 2 MiB: they are read faster, and a page that is not
/// full is then a small part of it.
constexpr int64_t huge_pages_from = int64_t{32} << 20;

Tensor memory(const Shape& shape, DType dtype, Device device) {
    if (device != Device::cpu) return Tensor::empty(shape, dtype, device);
    const int64_t bytes = shape.numel() * dtype_size(dtype);
    const auto pages = bytes >= huge_pages_from ? Storage::Pages::huge : Storage::Pages::normal;
    return {Storage::allocate(bytes, pages), 0, shape, dtype};
}

/// Copies the first `blocks` blocks.
void copy_blocks(const Tensor& from, int64_t blocks, Tensor& to) {
    if (blocks == 0 || !to.defined()) return;
    Tensor kept = to.rows(0, blocks);
    kept.copy_from(from.rows(0, blocks));
}

}  // namespace

KeysValues KvCache::room() const {
    if (run_) {
        return {pool_->keys(*run_), pool_->values(*run_), capacity(), pool_->key_scales(*run_),
                pool_->value_scales(*run_)};
    }
    return {keys_, values_, capacity(), key_scales_, value_scales_};
}

void KvCache::reserve(int64_t capacity) {
    if (capacity <= this->capacity()) return;
    if (run_ && pool_->grow(*run_, KvLayout::blocks(capacity))) return;
    // All or none: what is there stays whole if there is not enough memory.
    Tensor more_keys = memory(KeysValues::key_shape(layout_, capacity), layout_.dtype, device_);
    Tensor more_values = memory(KeysValues::value_shape(layout_, capacity), layout_.dtype, device_);
    Tensor more_key_scales, more_value_scales;
    if (layout_.scaled()) {
        more_key_scales = memory(KeysValues::scale_shape(layout_, capacity), DType::f32, device_);
        more_value_scales = memory(KeysValues::scale_shape(layout_, capacity), DType::f32, device_);
    }
    const int64_t blocks = KvLayout::blocks(length_);
    const KeysValues here = room();
    copy_blocks(here.k, blocks, more_keys);
    copy_blocks(here.v, blocks, more_values);
    copy_blocks(here.k_scales, blocks, more_key_scales);
    copy_blocks(here.v_scales, blocks, more_value_scales);
    keys_ = more_keys;
    values_ = more_values;
    key_scales_ = more_key_scales;
    value_scales_ = more_value_scales;
    run_ = nullptr;
    pool_ = nullptr;
}

void KvCache::make_room(int64_t keys) {
    const int64_t end = length_ + keys;
    if (end <= capacity()) return;
    // In a pool nothing is copied, and what is not needed yet is others'.
    if (run_ && pool_->grow(*run_, KvLayout::blocks(end))) return;
    reserve(std::max(end, 2 * capacity()));
}

ops::StoreCall KvCache::store_call(const Tensor& k, const Tensor& v, const Tensor& past) const {
    assert(k.cols() == width() && v.cols() == width() && k.rows() == v.rows());
    assert(length_ + k.rows() <= capacity());
    return {k, v, past.defined() ? 0 : length_, keys_values(past)};
}

void KvCache::store(const Tensor& k, const Tensor& v, const Tensor& past) {
    if (k.rows() == 0) return;
    ops::StoreCall call = store_call(k, v, past);
    ops::store_keys_values({&call, 1});
}

void KvCache::advance(int64_t keys) {
    assert(length_ + keys <= capacity());
    length_ += keys;
}

void KvCache::append(const Tensor& k, const Tensor& v) {
    make_room(k.rows());
    store(k, v);
    advance(k.rows());
}

void KvCache::truncate(int64_t length) {
    assert(length >= 0 && length <= length_);
    length_ = length;
}

}  // namespace mllama
