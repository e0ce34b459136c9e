// What tests of kernels/cuda need: arrays in memory of the device, and both orders of the emulated
// threads.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/cuda.h"
#include "tests/compare.h"

namespace mllama::test {

/// Bytes of the device, of their very number: AddressSanitizer guards the ends of the emulated ones.
class DeviceBytes {
  public:
    explicit DeviceBytes(int64_t bytes) : bytes_(bytes), data_(cuda::allocate(bytes)) {}
    DeviceBytes(const void* from, int64_t bytes) : DeviceBytes(bytes) {
        static cuda::Uploader uploader;  // making one takes longer than most tests
        if (bytes > 0) uploader.copy(data_, from, bytes);
    }
    ~DeviceBytes() { cuda::release(data_); }
    DeviceBytes(const DeviceBytes&) = delete;
    DeviceBytes& operator=(const DeviceBytes&) = delete;
    [[nodiscard]] void* data() const { return data_; }
    [[nodiscard]] int64_t bytes() const { return bytes_; }

  private:
    int64_t bytes_;
    void* data_;
};

/// An array of the device.
template <class T>
class DeviceArray {
  public:
    explicit DeviceArray(std::span<const T> values)
        : size_(values.size()), bytes_(values.data(), static_cast<int64_t>(values.size_bytes())) {}
    explicit DeviceArray(const std::vector<T>& values) : DeviceArray(std::span<const T>(values)) {}
    [[nodiscard]] T* data() const { return static_cast<T*>(bytes_.data()); }
    [[nodiscard]] std::vector<T> values() const {
        std::vector<T> result(size_);
        cuda::copy_to_host(result.data(), bytes_.data(), bytes_.bytes());
        return result;
    }

  private:
    size_t size_;
    DeviceBytes bytes_;
};

/// Whether there is a device; if not, says "case skipped: " and why, which tests/run.sh counts: to be
/// asked once a case, which returns then.
bool has_device();

/// Runs a test body; on the emulated device a second time with the threads of each block in
/// descending order. What the body returns must be the same to the bit: a barrier is missing where
/// it is not.
void in_both_orders(const std::function<std::vector<float>()>& test);

}  // namespace mllama::test
