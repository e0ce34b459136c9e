// Blocks of scratch memory.
#include "tensor/arena.h"

#include <algorithm>
#include <cassert>

#include "kernels/rounding.h"
#include "tensor/device_memory.h"

namespace mllama {
namespace {

constexpr int64_t smallest_block = int64_t{1} << 16;

int64_t rounded(int64_t bytes, Device device) {
    return round_up(bytes, device == Device::cpu ? Storage::alignment : DeviceRegion::alignment);
}

}  // namespace

std::shared_ptr<Storage> Arena::new_block(int64_t bytes) const {
    if (device_ != Device::cpu) return Storage::allocate(bytes, device_);
    return Storage::allocate(bytes, Storage::Pages::huge);
}

void Arena::reserve(int64_t bytes) {
    assert(position_.used == 0);
    if (capacity_bytes() >= bytes && blocks_.size() == 1) return;
    blocks_.clear();
    position_ = {};
    blocks_.push_back(new_block(bytes));
}

Tensor Arena::take(const Shape& shape, DType dtype) {
    const int64_t bytes = rounded(shape.numel() * dtype_size(dtype), device_);
    if (blocks_.empty() || bytes > blocks_[position_.block]->bytes() - position_.offset) {
        next_block(bytes);
    }
    Tensor result(blocks_[position_.block], position_.offset, shape, dtype);
    position_.offset += bytes;
    position_.used += bytes;
    peak_ = std::max(peak_, position_.used);
    return result;
}

void Arena::next_block(int64_t bytes) {
    const size_t next = blocks_.empty() ? 0 : position_.block + 1;
    if (next >= blocks_.size() || blocks_[next]->bytes() < bytes) {
        // What stands behind is in no scope: a larger block takes its place. Each block at least
        // doubles the whole, so that there are few; the first one is made as large as was ever
        // needed.
        blocks_.resize(next);
        const int64_t size = std::max({bytes, capacity_bytes(), peak_, smallest_block});
        blocks_.push_back(new_block(size));
    }
    position_.block = next;
    position_.offset = 0;
}

void Arena::rewind(const Position& position) {
    position_ = position;
    // The merged block is made when it is first needed. A tensor that somebody kept keeps its old
    // block alive.
    if (position_.used == 0 && blocks_.size() > 1) blocks_.clear();
}

int64_t Arena::capacity_bytes() const {
    int64_t sum = 0;
    for (const auto& block : blocks_) sum += block->bytes();
    return sum;
}

}  // namespace mllama
