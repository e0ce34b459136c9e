// Shapes and views.
#include "tensor/tensor.h"

#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "kernels/cuda.h"
#include "kernels/error.h"

namespace mllama {
namespace {

/// Never taken down: the device may be gone before the program's last destructors run.
cuda::Uploader& uploader() {
    static auto* const the_uploader = new cuda::Uploader();
    return *the_uploader;
}

void copy_between_devices(Tensor& to, const Tensor& from) {
    if (to.device() == from.device()) {
        const int64_t size = dtype_size(to.dtype());
        cuda::copy_rows(to.data(), to.row_stride() * size, from.data(), from.row_stride() * size,
                        to.cols() * size, to.rows());
        return;
    }
    assert(to.contiguous() && from.contiguous());
    if (to.device() == Device::cuda) {
        uploader().copy(to.data(), from.data(), from.bytes());
    } else {
        cuda::copy_to_host(to.data(), from.data(), from.bytes());
    }
}

}  // namespace

Shape::Shape(const int64_t* dims, int64_t rank) : rank_(rank) {
    if (rank > max_rank) {
        fail("a tensor may have at most ", max_rank, " dimensions, found ", rank);
    }
    int64_t without_zeros = 1;  // also (0, 2^62, 2^62) has a product of leading dimensions
    for (int64_t i = 0; i < rank; ++i) {
        const int64_t dim = dims[i];
        if (dim < 0) fail("a dimension of a tensor may not be negative, found ", dim);
        if (dim > max_elements / without_zeros) {
            fail("a tensor may have at most ", max_elements, " elements, found more");
        }
        without_zeros *= std::max<int64_t>(dim, 1);
        numel_ *= dim;
        dims_[static_cast<size_t>(i)] = dim;
    }
}

std::string Shape::to_string() const {
    std::string text = "(";
    for (int64_t i = 0; i < rank_; ++i) {
        if (i > 0) text += ", ";
        text += std::to_string((*this)[i]);
    }
    return text + (rank_ == 1 ? ",)" : ")");
}

Shape Shape::with_first(int64_t dim) const {
    assert(rank_ > 0);
    std::array<int64_t, max_rank> dims = dims_;
    dims.front() = dim;
    return {dims.data(), rank_};
}

Shape Shape::with_last(int64_t dim) const {
    assert(rank_ > 0);
    std::array<int64_t, max_rank> dims = dims_;
    dims[static_cast<size_t>(rank_ - 1)] = dim;
    return {dims.data(), rank_};
}

Tensor::Tensor(std::shared_ptr<Storage> storage, int64_t offset, const Shape& shape, DType dtype)
    : storage_(std::move(storage)), shape_(shape), dtype_(dtype) {
    const int64_t size = dtype_size(dtype);
    assert(storage_ && offset >= 0 && offset <= storage_->bytes());
    assert(shape.numel() * size <= storage_->bytes() - offset);
    // A view that may be written to takes the pointer that may; reading is checked in data().
    data_ = const_cast<std::byte*>(std::as_const(*storage_).data()) + offset;
    assert(reinterpret_cast<uintptr_t>(data_) % static_cast<uintptr_t>(size) == 0);
    row_stride_ = cols();
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
    return {Storage::allocate(shape.numel() * dtype_size(dtype), device), 0, shape, dtype};
}

Tensor Tensor::outline(const Shape& shape, DType dtype) {
    const void* nowhere = nullptr;
    return {Storage::external(nowhere, shape.numel() * dtype_size(dtype)), 0, shape, dtype};
}

Tensor Tensor::pinned(const Shape& shape, DType dtype) {
    const int64_t bytes = shape.numel() * dtype_size(dtype);
    const std::shared_ptr<std::byte> memory(static_cast<std::byte*>(cuda::allocate_pinned(bytes)),
                                            cuda::release_pinned);
    return {std::make_shared<Storage>(Storage::Kind::owned, memory.get(), bytes, true, memory), 0,
            shape, dtype};
}

Tensor Tensor::zeros(const Shape& shape, DType dtype) {
    Tensor result = empty(shape, dtype);
    result.fill_zero();
    return result;
}

int64_t Tensor::rows() const {
    return std::accumulate(shape_.begin(), shape_.end() - (rank() > 0 ? 1 : 0), int64_t{1},
                           std::multiplies<>());
}

Tensor Tensor::view(const Shape& shape) const {
    assert(defined() && shape.numel() == numel());
    Tensor result = *this;
    result.shape_ = shape;
    if (contiguous()) {
        result.row_stride_ = result.cols();
    } else {
        assert(result.cols() == cols());
    }
    return result;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
    assert(rank() > 0 && 0 <= begin && begin <= end && end <= dim(0));
    if (rank() == 1) return cols(begin, end);
    Tensor result = *this;
    result.shape_ = shape_.with_first(end - begin);
    const int64_t rows_of_an_entry = dim(0) > 0 ? rows() / dim(0) : 0;
    result.data_ += begin * rows_of_an_entry * row_stride_ * dtype_size(dtype_);
    return result;
}

Tensor Tensor::cols(int64_t begin, int64_t end) const {
    assert(rank() > 0 && 0 <= begin && begin <= end && end <= cols());
    Tensor result = *this;
    result.shape_ = shape_.with_last(end - begin);
    result.data_ += begin * dtype_size(dtype_);
    if (rank() == 1) result.row_stride_ = end - begin;  // one row: no next one to be apart from
    return result;
}

Tensor Tensor::clone() const {
    assert(defined());
    Tensor result = empty(shape_, dtype_, device());
    result.copy_from(*this);
    return result;
}

Tensor Tensor::to(Device device) const {
    if (!defined() || this->device() == device) return *this;
    Tensor result = empty(shape_, dtype_, device);
    result.copy_from(contiguous() ? *this : clone());
    return result;
}

void Tensor::copy_from(const Tensor& from) {
    assert(writable() && from.defined() && from.dtype() == dtype_);
    assert(from.rows() == rows() && from.cols() == cols());
    if (device() == Device::cuda || from.device() == Device::cuda) {
        copy_between_devices(*this, from);
        return;
    }
    if (contiguous() && from.contiguous()) {
        std::memmove(data_, from.data_, static_cast<size_t>(bytes()));
        return;
    }
    const int64_t size = dtype_size(dtype_);
    for (int64_t r = 0; r < rows(); ++r) {
        std::memmove(data_ + r * row_stride_ * size, from.data_ + r * from.row_stride_ * size,
                     static_cast<size_t>(cols() * size));
    }
}

void Tensor::fill_from(const void* elements) {
    assert(writable() && contiguous());
    if (numel() == 0) return;
    if (device() == Device::cuda) {
        uploader().copy(data_, elements, bytes());
    } else {
        std::memcpy(data_, elements, static_cast<size_t>(bytes()));
    }
}

void Tensor::fill_zero() {
    assert(writable());
    if (device() == Device::cuda) {
        assert(contiguous());
        cuda::fill_zero(data_, bytes());
        return;
    }
    if (contiguous()) {
        std::memset(data_, 0, static_cast<size_t>(bytes()));
        return;
    }
    const int64_t size = dtype_size(dtype_);
    for (int64_t r = 0; r < rows(); ++r) {
        std::memset(data_ + r * row_stride_ * size, 0, static_cast<size_t>(cols() * size));
    }
}

}  // namespace mllama
