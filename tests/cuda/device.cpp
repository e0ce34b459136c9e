#include "tests/cuda/device.h"

#include "kernels/cuda/order.h"

namespace mllama::test {

bool has_device() {
    const std::string reason = cuda::unavailable();
    if (!reason.empty()) MESSAGE("case skipped: " << reason);
    return reason.empty();
}

void in_both_orders(const std::function<std::vector<float>()>& test) {
    const std::vector<float> ascending = test();
    cuda::set_reversed(true);
    const std::vector<float> descending = test();
    cuda::set_reversed(false);
    CHECK(compare_bits(descending, ascending) == "");
}

}  // namespace mllama::test
