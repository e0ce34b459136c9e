// The bytes behind tensors: owned memory, a part of a mapped file, or memory of someone else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>

namespace mllama {

/// Where bytes live, and where what is made of them is computed.
enum class Device : uint8_t { cpu, cuda };

/// One of each device's own.
template <class T>
struct PerDevice {
    T of[2];

    [[nodiscard]] T& operator[](Device device) { return of[static_cast<size_t>(device)]; }
    [[nodiscard]] const T& operator[](Device device) const {
        return of[static_cast<size_t>(device)];
    }
    [[nodiscard]] T* begin() { return std::begin(of); }
    [[nodiscard]] T* end() { return std::end(of); }
    [[nodiscard]] const T* begin() const { return std::begin(of); }
    [[nodiscard]] const T* end() const { return std::end(of); }
};

/// A block of bytes, shared by the tensors that are views of it. Never copied, never resized.
class Storage {
  public:
    enum class Kind : uint8_t {
        owned,     ///< allocated by `allocate`, freed with the storage
        mapped,    ///< belongs to `owner` (a mapped file), which the storage keeps alive; read-only
        external,  ///< belongs to the caller, who must outlive the storage
        device,    ///< a piece of a GPU's memory, see device_memory.h
    };
    enum class Pages : uint8_t {
        normal,
        huge,  ///< asks the system for 2 MiB pages: fewer address translations for large blocks
               ///< that are used whole
    };

    /// Owned memory is aligned to this many bytes: a cache line, and the widest vector register.
    static constexpr int64_t alignment = 64;

    /// New uninitialised memory (0 bytes are fine). The system gives physical memory only where it
    /// is touched. Throws Error if there is not as much.
    static std::shared_ptr<Storage> allocate(int64_t bytes, Pages pages = Pages::normal);

    /// The same of a device. Throws Error if what was planned for it is in use.
    static std::shared_ptr<Storage> allocate(int64_t bytes, Device device);

    /// A read-only part of something that `owner` keeps alive.
    static std::shared_ptr<Storage> mapped(const void* data, int64_t bytes,
                                           std::shared_ptr<const void> owner);

    /// Memory of the caller, writable or (const) not.
    static std::shared_ptr<Storage> external(void* data, int64_t bytes);
    static std::shared_ptr<Storage> external(const void* data, int64_t bytes);

    /// The plain constructor behind the functions above. `owner` keeps the bytes alive; none: they
    /// are external.
    Storage(Kind kind, std::byte* data, int64_t bytes, bool writable,
            std::shared_ptr<const void> owner);
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;

    [[nodiscard]] Kind kind() const { return kind_; }
    [[nodiscard]] Device device() const {
        return kind_ == Kind::device ? Device::cuda : Device::cpu;
    }
    [[nodiscard]] bool writable() const { return writable_; }
    [[nodiscard]] int64_t bytes() const { return bytes_; }
    [[nodiscard]] const std::byte* data() const { return data_; }
    /// The same for writing: only if writable() (assert).
    [[nodiscard]] std::byte* data();

  private:
    Kind kind_;
    bool writable_;
    std::byte* data_;
    int64_t bytes_;
    std::shared_ptr<const void> owner_;
};

}  // namespace mllama
