// Allocation and ownership of the bytes behind tensors.
#include "tensor/storage.h"

#include <sys/mman.h>

#include <cassert>
#include <cstdlib>
#include <limits>
#include <utility>

#include "kernels/error.h"
#include "tensor/device_memory.h"

namespace mllama {
namespace {

constexpr int64_t huge_page = int64_t{2} << 20;

int64_t round_up(int64_t bytes, int64_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

/// mmap hands out read-only bytes; that nobody writes to them is what `writable` is for.
std::byte* without_const(const void* data) {
    return const_cast<std::byte*>(static_cast<const std::byte*>(data));
}

}  // namespace

Storage::Storage(Kind kind, std::byte* data, int64_t bytes, bool writable,
                 std::shared_ptr<const void> owner)
    : kind_(kind), writable_(writable), data_(data), bytes_(bytes), owner_(std::move(owner)) {}

std::byte* Storage::data() {
    assert(writable_);
    return data_;
}

std::shared_ptr<Storage> Storage::allocate(int64_t bytes, Pages pages) {
    assert(bytes >= 0);
    // A block smaller than a huge page gains nothing from one.
    const bool huge = pages == Pages::huge && bytes >= huge_page;
    const int64_t unit = huge ? huge_page : alignment;
    void* memory = nullptr;
    if (bytes <= std::numeric_limits<int64_t>::max() - unit) {
        const int64_t size = round_up(bytes > 0 ? bytes : 1, unit);
        memory = std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(size));
        // Only advice: where the system has no huge pages, normal ones do.
        if (huge && memory) ::madvise(memory, static_cast<size_t>(size), MADV_HUGEPAGE);
    }
    if (!memory) fail("out of memory: ", bytes, " bytes cannot be allocated");
    const std::shared_ptr<const void> owner(memory, [](void* p) { std::free(p); });
    return std::make_shared<Storage>(Kind::owned, static_cast<std::byte*>(memory), bytes, true,
                                     owner);
}

std::shared_ptr<Storage> Storage::allocate(int64_t bytes, Device device) {
    if (device == Device::cpu) return allocate(bytes);
    std::shared_ptr<std::byte> piece = device_piece(bytes);
    std::byte* data = piece.get();
    return std::make_shared<Storage>(Kind::device, data, bytes, true, std::move(piece));
}

std::shared_ptr<Storage> Storage::mapped(const void* data, int64_t bytes,
                                         std::shared_ptr<const void> owner) {
    assert(owner && bytes >= 0);
    return std::make_shared<Storage>(Kind::mapped, without_const(data), bytes, false,
                                     std::move(owner));
}

std::shared_ptr<Storage> Storage::external(void* data, int64_t bytes) {
    return std::make_shared<Storage>(Kind::external, static_cast<std::byte*>(data), bytes, true,
                                     nullptr);
}

std::shared_ptr<Storage> Storage::external(const void* data, int64_t bytes) {
    return std::make_shared<Storage>(Kind::external, without_const(data), bytes, false, nullptr);
}

}  // namespace mllama
