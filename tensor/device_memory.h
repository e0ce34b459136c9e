// The memory of the GPU that tensors live in: taken from the device once for a model, and handed out
// in pieces, so that nothing is taken on the path of a token and what does not fit is known before
// anything is loaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

namespace mllama {

/// One block of the device. Pieces are handed out from where they first fit. Whoever holds a piece
/// keeps the block alive.
class DeviceRegion : public std::enable_shared_from_this<DeviceRegion> {
  public:
    static constexpr int64_t alignment = 256;  ///< of pieces

    /// Takes `bytes` from the device. Errors: as cuda::allocate.
    static std::shared_ptr<DeviceRegion> take(int64_t bytes);
    /// One that is there and has so much free in one piece, or a new one.
    static std::shared_ptr<DeviceRegion> with_room(int64_t bytes);
    ~DeviceRegion();
    DeviceRegion(const DeviceRegion&) = delete;
    DeviceRegion& operator=(const DeviceRegion&) = delete;

    /// A piece, given back with the last copy of the pointer, that keeps the region; null if there
    /// is no room.
    std::shared_ptr<std::byte> piece(int64_t bytes);

    [[nodiscard]] int64_t bytes() const { return bytes_; }
    [[nodiscard]] int64_t used() const { return used_; }
    [[nodiscard]] int64_t largest_free() const;

  private:
    explicit DeviceRegion(int64_t bytes);
    void give_back(int64_t offset, int64_t bytes);

    std::byte* memory_;
    int64_t bytes_;
    int64_t used_ = 0;
    std::map<int64_t, int64_t> free_;  // offset, bytes; neighbours are merged
};

/// The largest free piece of all regions.
int64_t largest_free_piece();

/// A piece of any region that has room; where none has (a text that grows beyond the plan, someone who
/// looks at attention), a region of its own. Throws Error with figures if the device is full.
std::shared_ptr<std::byte> device_piece(int64_t bytes);

}  // namespace mllama
