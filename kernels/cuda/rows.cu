// Operations on rows and elements.
#include "kernels/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"
#include "kernels/rounding.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;

unsigned blocks(int64_t n) {
    return static_cast<unsigned>(n);
}

/// A block for each row.
__global__ void rms_norm_kernel(const float* x, int64_t width, const void* weight,
                                DType weight_dtype, float eps, float* out) {
    const float* row = x + blockIdx.x * width;
    float* to = out + blockIdx.x * width;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) sum += row[i] * row[i];
    const float scale = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(width) + eps);
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
        to[i] = row[i] * scale * load_float(weight, weight_dtype, i);
}

}  // namespace

void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, float* out) {
    launch("rms_norm", rms_norm_kernel, blocks(rows), threads, 0, x, width, weight, weight_dtype,
           eps, out);
}

}  // namespace mllama::cuda
