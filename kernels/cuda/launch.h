// What a kernel source is written in: CUDA C++ where nvcc compiles it, and the same words as plain
// C++ otherwise. Kernels are started through launch() alone, and dynamic shared memory is asked for
// with dynamic_shared(): these two are all that differs.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include "kernels/error.h"
#include "kernels/rounding.h"

namespace mllama::cuda {

/// Whether the device is emulated: not meant to be fast.
inline constexpr bool is_emulated = false;

/// Throws what a call of the runtime reports, with the name of what was being done.
inline void check(cudaError_t status, const char* doing) {
    if (status != cudaSuccess) fail("CUDA: ", doing, ": ", cudaGetErrorString(status));
}

/// The one stream; the device is chosen when it is first asked for.
cudaStream_t stream();

/// Whether blocks of a kernel may begin before the kernel in front has ended: devices of compute
/// capability 9.0, and kernels compiled for them.
bool begins_early();

/// Whether the device multiplies by warpgroups (warpgroup.h), and the kernels are compiled for it. The
/// first call asks the device: not while operations are recorded, which have too few rows for that.
bool has_warpgroups();

/// Waits for the end of everything queued in front of this kernel. Every thread of every kernel calls
/// it, before it reads what they may have written and before it writes anything. What comes
/// in front of the call (loads of weights) runs beside the end of the kernel in front ("programmatic
/// dependent launch", CUDA C++ Programming Guide).
__device__ inline void after_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "griddepcontrol.launch_dependents;\n"
        "griddepcontrol.wait;\n" ::
            : "memory");
#endif
}

/// Queues kernel<<<grid, threads, shared_bytes>>>(arguments...). threads: a multiple of 32.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            int64_t shared_bytes, Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    // Whole vectors: the compiler may read more of the last one than the kernel asks for.
    shared_bytes = round_up(shared_bytes, 16);
    constexpr int64_t without_asking = 48 * 1024;
    if (shared_bytes > without_asking) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              name);
    }
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream();
    config.attrs = &early;
    config.numAttrs = begins_early() ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

/// The block's dynamic shared memory, aligned to 1024.
__device__ inline unsigned char* dynamic_shared() {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    return shared_bytes;
}

}  // namespace mllama::cuda

#else

#include "kernels/cuda/emulated.h"

#endif
