// First fit over the gaps of a region.
#include "tensor/device_memory.h"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <vector>

#include "kernels/cuda.h"
#include "kernels/error.h"
#include "kernels/rounding.h"

namespace mllama {
namespace {

// Of all regions, which live as long as somebody holds them or a piece.
std::recursive_mutex mutex;
std::vector<std::weak_ptr<DeviceRegion>> regions;

}  // namespace

std::shared_ptr<DeviceRegion> DeviceRegion::take(int64_t bytes) {
    const std::lock_guard lock(mutex);
    std::erase_if(regions, [](const auto& region) { return region.expired(); });
    std::shared_ptr<DeviceRegion> region(new DeviceRegion(round_up(bytes, alignment)));
    regions.push_back(region);
    return region;
}

std::shared_ptr<DeviceRegion> DeviceRegion::with_room(int64_t bytes) {
    const std::lock_guard lock(mutex);
    for (const auto& entry : regions) {
        auto region = entry.lock();
        if (region && region->largest_free() >= bytes) return region;
    }
    return take(bytes);
}

DeviceRegion::DeviceRegion(int64_t bytes)
    : memory_(static_cast<std::byte*>(cuda::allocate(bytes))), bytes_(bytes), free_{{0, bytes}} {}

DeviceRegion::~DeviceRegion() {
    cuda::release(memory_);
}

std::shared_ptr<std::byte> DeviceRegion::piece(int64_t bytes) {
    const std::lock_guard lock(mutex);
    const int64_t size = round_up(std::max<int64_t>(bytes, 1), alignment);
    const auto gap = std::find_if(free_.begin(), free_.end(),
                                  [&](const auto& entry) { return entry.second >= size; });
    if (gap == free_.end()) return nullptr;
    const auto [offset, room] = *gap;
    free_.erase(gap);
    if (room > size) free_.emplace(offset + size, room - size);
    used_ += size;
    return {memory_ + offset, [self = shared_from_this(), offset = offset, size](std::byte*) {
                self->give_back(offset, size);
            }};
}

void DeviceRegion::give_back(int64_t offset, int64_t bytes) {
    const std::lock_guard lock(mutex);
    used_ -= bytes;
    auto gap = free_.emplace(offset, bytes).first;
    if (const auto next = std::next(gap);
        next != free_.end() && next->first == gap->first + gap->second) {
        gap->second += next->second;
        free_.erase(next);
    }
    if (gap == free_.begin()) return;
    const auto before = std::prev(gap);
    if (before->first + before->second != gap->first) return;
    before->second += gap->second;
    free_.erase(gap);
}

int64_t DeviceRegion::largest_free() const {
    const std::lock_guard lock(mutex);
    int64_t largest = 0;
    for (const auto& [offset, bytes] : free_) largest = std::max(largest, bytes);
    return largest;
}

int64_t largest_free_piece() {
    const std::lock_guard lock(mutex);
    int64_t largest = 0;
    for (const auto& entry : regions) {
        if (const auto region = entry.lock()) largest = std::max(largest, region->largest_free());
    }
    return largest;
}

std::shared_ptr<std::byte> device_piece(int64_t bytes) {
    const std::lock_guard lock(mutex);
    int64_t all = 0;
    int64_t used = 0;
    for (const auto& entry : regions) {
        const auto region = entry.lock();
        if (!region) continue;
        if (auto piece = region->piece(bytes)) return piece;
        all += region->bytes();
        used += region->used();
    }
    try {
        return DeviceRegion::take(bytes)->piece(bytes);
    } catch (const Error& error) {
        if (all == 0) throw;
        fail("out of device memory: ", bytes, " bytes are wanted, ", used, " of the ", all,
             " that were planned are in use, and ", error.what());
    }
}

}  // namespace mllama
