#include "tensor/host_copy.h"

namespace mllama {

void HostCopy::reserve(int64_t bytes, Device device) {
    if (device != Device::cpu && pinned_.numel() < bytes)
        pinned_ = Tensor::pinned({bytes}, DType::u8);
}

Tensor HostCopy::of(const Tensor& x) {
    if (x.device() == Device::cpu || x.numel() == 0) return x;
    reserve(x.bytes(), x.device());
    Tensor copy(pinned_.storage(), 0, x.shape(), x.dtype());
    copy.copy_from(x);
    return copy;
}

}  // namespace mllama
