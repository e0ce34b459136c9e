// What a kernel source is written in: CUDA C++ where nvcc compiles it, and the same words as plain
// C++ otherwise. Kernels are started through launch() alone, and dynamic shared memory is asked for
// with dynamic_shared(): these two are all that differs.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include "kernels/error.h"

namespace mllama::cuda {

/// Throws what a call of the runtime reports, with the name of what was being done.
inline void check(cudaError_t status, const char* doing) {
    if (status != cudaSuccess) fail("CUDA: ", doing, ": ", cudaGetErrorString(status));
}

/// The one stream; the device is chosen when it is first asked for.
cudaStream_t stream();

/// Queues kernel<<<grid, threads, shared_bytes>>>(arguments...). threads: a multiple of 32.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            int64_t shared_bytes, Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    constexpr int64_t without_asking = 48 * 1024;
    if (shared_bytes > without_asking) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              name);
    }
    kernel<<<grid, threads, static_cast<size_t>(shared_bytes), stream()>>>(
        static_cast<Parameters>(arguments)...);
    check(cudaGetLastError(), name);
}

/// The block's dynamic shared memory, aligned to 16.
__device__ inline unsigned char* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    return shared_bytes;
}

}  // namespace mllama::cuda

#else

#include "kernels/cuda/emulated.h"

#endif
