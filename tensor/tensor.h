// A tensor: an element type, a shape, and a place in some storage.
//
// Every operation of this program reads a tensor as a matrix: rows() is all leading dimensions
// flattened, cols() the last one.
//
//     dim(0) x ... x dim(rank-2) = rows()   |  row 0: cols() elements, contiguous  |..gap..|
//     dim(rank-1)                = cols()   |  row 1                               |..gap..|
//                                           |<-------------- row_stride() -------------->|
//
// Rows may be further apart than they are wide (a range of columns of a wider matrix); nothing else
// is strided.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/dtype.h"
#include "tensor/storage.h"

namespace mllama {

/// Dimensions, outermost first; none: a scalar. Throws Error if there are more than max_rank, one
/// is negative, or the number of elements would not fit max_elements (shapes come from files).
class Shape {
  public:
    static constexpr int64_t max_rank = 6;
    static constexpr int64_t max_elements = int64_t{1} << 58;  ///< so that bytes never overflow

    Shape() = default;
    Shape(std::initializer_list<int64_t> dims)
        : Shape(dims.begin(), static_cast<int64_t>(dims.size())) {}
    Shape(const std::vector<int64_t>& dims)
        : Shape(dims.data(), static_cast<int64_t>(dims.size())) {}

    [[nodiscard]] int64_t rank() const { return rank_; }
    [[nodiscard]] int64_t operator[](int64_t i) const {
        assert(i >= 0 && i < rank_);
        return dims_[static_cast<size_t>(i)];
    }
    [[nodiscard]] const int64_t* begin() const { return dims_.data(); }
    [[nodiscard]] const int64_t* end() const { return dims_.data() + rank_; }
    [[nodiscard]] int64_t numel() const { return numel_; }

    /// As Python writes it: "(6404, 4096)", "(7,)", "()".
    [[nodiscard]] std::string to_string() const;

    /// The same dimensions with the first or the last one replaced.
    [[nodiscard]] Shape with_first(int64_t dim) const;
    [[nodiscard]] Shape with_last(int64_t dim) const;

    bool operator==(const Shape&) const = default;

  private:
    Shape(const int64_t* dims, int64_t rank);

    std::array<int64_t, max_rank> dims_{};  // unused ones are 0, so that == may compare all
    int64_t rank_ = 0;
    int64_t numel_ = 1;
};

/// T is the C++ type of `dtype`'s elements. The half-precision formats are their bits, uint16_t.
template <class T>
constexpr bool holds(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return std::is_same_v<T, float>;
        case DType::f64:
            return std::is_same_v<T, double>;
        case DType::bf16:
        case DType::f16:
            return std::is_same_v<T, uint16_t>;
        case DType::i8:
            return std::is_same_v<T, int8_t>;
        case DType::i32:
            return std::is_same_v<T, int32_t>;
        case DType::i64:
            return std::is_same_v<T, int64_t>;
        case DType::u8:
        case DType::f8_e4m3:
        case DType::f8_e5m2:
        case DType::boolean:
            return std::is_same_v<T, uint8_t>;
    }
    return false;
}

/// A view; cheap to copy. Copying and viewing allocate nothing and share the bytes, which live as
/// long as a view of them does. A const Tensor gives its bytes for reading only; weights, views of
/// a read-only mapping, must never be written to (assert). Wrong ranges and types are mistakes of
/// the program (assert): what comes from a file is checked where it is read.
class Tensor {
  public:
    /// No tensor: defined() is false.
    Tensor() = default;

    /// A contiguous tensor that starts `offset` bytes into a storage: at a multiple of the element
    /// size.
    Tensor(std::shared_ptr<Storage> storage, int64_t offset, const Shape& shape, DType dtype);

    /// New memory: uninitialised, or zeros. Throws Error if there is not as much.
    static Tensor empty(const Shape& shape, DType dtype, Device device = Device::cpu);
    static Tensor zeros(const Shape& shape, DType dtype);

    /// Of a size and a type alone, without memory: nobody may read its elements.
    static Tensor outline(const Shape& shape, DType dtype);

    /// New uninitialised memory of the CPU that a GPU copies from and to without a detour.
    static Tensor pinned(const Shape& shape, DType dtype);

    /// A new tensor of the type of T (uint8_t gives u8) with these elements, row-major: as a
    /// vector, or of a shape of as many.
    template <class T>
    static Tensor from(const std::vector<T>& values, const Shape& shape);
    template <class T>
    static Tensor from(const std::vector<T>& values) {
        return from(values, {static_cast<int64_t>(values.size())});
    }

    [[nodiscard]] bool defined() const { return storage_ != nullptr; }
    [[nodiscard]] DType dtype() const { return dtype_; }
    [[nodiscard]] Device device() const { return storage_ ? storage_->device() : Device::cpu; }
    [[nodiscard]] const std::shared_ptr<Storage>& storage() const { return storage_; }

    [[nodiscard]] const Shape& shape() const { return shape_; }
    [[nodiscard]] std::string shape_string() const { return shape_.to_string(); }
    [[nodiscard]] int64_t rank() const { return shape_.rank(); }
    /// Dimension i; negative ones count from the last, -1.
    [[nodiscard]] int64_t dim(int64_t i) const { return shape_[i < 0 ? i + rank() : i]; }
    /// Elements; 0 if undefined.
    [[nodiscard]] int64_t numel() const { return defined() ? shape_.numel() : 0; }
    /// Bytes of all elements (without the gaps between rows).
    [[nodiscard]] int64_t bytes() const { return numel() * dtype_size(dtype_); }

    /// The matrix reading: all leading dimensions flattened, and the last one. A scalar is 1 x 1, a
    /// vector one row.
    [[nodiscard]] int64_t rows() const;
    [[nodiscard]] int64_t cols() const { return rank() == 0 ? 1 : dim(-1); }
    /// Elements from the start of one row of that matrix to the next; cols() if contiguous.
    [[nodiscard]] int64_t row_stride() const { return row_stride_; }
    /// The elements lie one after the other: no gaps.
    [[nodiscard]] bool contiguous() const { return row_stride_ == cols() || rows() <= 1; }

    /// The first element. A temporary or const tensor gives its elements for reading only.
    [[nodiscard]] const void* data() const& { return data_; }
    [[nodiscard]] void* data() & {
        assert(writable());
        return data_;
    }
    template <class T>
    [[nodiscard]] const T* data() const& {
        assert(holds<T>(dtype_));
        return static_cast<const T*>(data());
    }
    template <class T>
    [[nodiscard]] T* data() & {
        assert(holds<T>(dtype_));
        return static_cast<T*>(data());
    }
    [[nodiscard]] bool writable() const { return storage_ && storage_->writable(); }

    /// The same elements in another shape of as many. Rows that are apart may only be regrouped:
    /// the last dimension stays.
    [[nodiscard]] Tensor view(const Shape& shape) const;
    /// Entries [begin, end) of the first dimension.
    [[nodiscard]] Tensor rows(int64_t begin, int64_t end) const;
    /// Entries [begin, end) of the last dimension, as a view with gaps between the rows.
    [[nodiscard]] Tensor cols(int64_t begin, int64_t end) const;

    /// A contiguous copy in memory of its own, of the same device.
    [[nodiscard]] Tensor clone() const;
    /// The tensor itself if it is there (or undefined), else a contiguous copy.
    [[nodiscard]] Tensor to(Device device) const;
    /// Copies the elements of `from`: same type, same rows() and cols(). Between devices both are
    /// contiguous; a copy to the CPU waits for what is being computed.
    void copy_from(const Tensor& from);
    /// Copies numel() elements from memory of the CPU.
    void fill_from(const void* elements);
    /// Sets every element to zero.
    void fill_zero();

  private:
    std::shared_ptr<Storage> storage_;
    std::byte* data_ = nullptr;
    Shape shape_;
    int64_t row_stride_ = 0;
    DType dtype_ = DType::f32;
};

/// The DType whose elements are T's.
template <class T>
consteval DType dtype_of() {
    for (const DType dtype :
         {DType::f32, DType::f64, DType::i8, DType::i32, DType::i64, DType::u8}) {
        if (holds<T>(dtype)) return dtype;
    }
    // uint16_t is not here: its bits may be either half-precision format.
    throw "no DType has these elements";
}

template <class T>
Tensor Tensor::from(const std::vector<T>& values, const Shape& shape) {
    constexpr DType dtype = dtype_of<T>();
    assert(shape.numel() == static_cast<int64_t>(values.size()));
    Tensor result = empty(shape, dtype);
    std::copy(values.begin(), values.end(), result.data<T>());
    return result;
}

}  // namespace mllama
