// Coded matrices in memory of the device.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "tests/coded_matrices.h"
#include "tests/cuda/device.h"

namespace mllama::test {

/// A coded matrix in memory of the device.
class DeviceMatrix {
  public:
    /// offset: bytes before the numbers, which then do not begin at an aligned address.
    explicit DeviceMatrix(const Coded& coded, int64_t offset = 0)
        : w_(coded.in_memory_of([&](const void* data, int64_t bytes) {
              return copy(data, bytes, data == coded.matrix().data ? offset : 0);
          })) {}
    [[nodiscard]] const Matrix& matrix() const { return w_; }

  private:
    void* copy(const void* data, int64_t bytes, int64_t offset) {
        std::vector<std::byte> image(static_cast<size_t>(offset + bytes));
        if (bytes > 0) std::memcpy(image.data() + offset, data, static_cast<size_t>(bytes));
        arrays_.push_back(std::make_unique<DeviceBytes>(image.data(), offset + bytes));
        return static_cast<std::byte*>(arrays_.back()->data()) + offset;
    }
    std::vector<std::unique_ptr<DeviceBytes>> arrays_;
    Matrix w_;
};

/// int4 is made of words, the others of bytes.
inline int64_t element_bytes(Coding coding) {
    return coding == Coding::int4 || coding == Coding::int4_by_column ? 4 : 1;
}

}  // namespace mllama::test
