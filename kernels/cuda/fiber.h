// Switching between stacks. POSIX has this as ucontext, which asks the kernel twice at each switch (for
// signal masks, which nobody here changes): a hundred times slower, and tests switch millions of
// times. Where the few instructions are not written down, ucontext does it.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace mllama::cuda::emulated {

#if defined(__x86_64__)

/// Where a fiber that does not run goes on: the top of its stack, on which its registers lie.
struct FiberContext {
    void* stack_pointer = nullptr;
};

#else

struct FiberContext {
    ucontext_t context{};
};

#endif

/// Makes a fiber that begins with main(), which must never return.
void start_fiber(FiberContext& fiber, std::byte* stack, size_t stack_bytes, void (*main)());

/// Leaves the running fiber, to be gone on with later, and goes on with another.
void switch_fiber(FiberContext& running, FiberContext& next);

}  // namespace mllama::cuda::emulated
