// The GPU's operations on rows and elements against the reference.
#include "kernels/reference.h"
#include "tests/cuda/device.h"

using namespace mllama;
using namespace mllama::test;

namespace {

/// Widths around a warp and a block.
const std::vector<int64_t> widths = {1, 2, 3, 31, 32, 33, 255, 256, 257, 1000, 4096};

}  // namespace

TEST_CASE("cuda_rms_norm_matches_reference") {
    if (!has_device()) return;
    Numbers numbers(1);
    for (const int64_t width : widths) {
        for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
            CAPTURE(width);
            const int64_t rows = 3;
            const std::vector<float> x = numbers.floats(rows * width);
            const Typed weight(numbers.floats(width), dtype);
            std::vector<float> expected(x.size());
            reference::rms_norm(x.data(), rows, width, weight.data(), dtype, 1e-5f,
                                expected.data());
            const DeviceArray<float> in(x);
            const DeviceBytes w(weight.data(), width * dtype_size(dtype));
            in_both_orders([&] {
                DeviceArray<float> out(x);
                cuda::rms_norm(in.data(), rows, width, w.data(), dtype, 1e-5f, out.data());
                CHECK(compare(out.values(), expected, {1e-6, 1e-5}) == "");
                return out.values();
            });
        }
    }
}
