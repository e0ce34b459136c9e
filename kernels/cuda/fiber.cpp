#include "kernels/cuda/fiber.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)

// System V ABI: a call may change all registers but these six, and the stack pointer.
asm(R"(
    .text
    .globl  mllama_switch_stack
    .type   mllama_switch_stack, @function
mllama_switch_stack:
    pushq   %rbp
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    movq    %rsp, (%rdi)
    movq    %rsi, %rsp
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rbx
    popq    %rbp
    ret
    .size   mllama_switch_stack, .-mllama_switch_stack
    .section .note.GNU-stack, "", @progbits
    .text
)");

extern "C" void mllama_switch_stack(void** leave_at, void* go_on_at);

namespace mllama::cuda::emulated {

void start_fiber(FiberContext& fiber, std::byte* stack, size_t stack_bytes, void (*main)()) {
    // As if it had been left just before main(): six registers, main as the address to return to,
    // and a return address of main's own, none. A function begins 8 bytes off a multiple of 16.
    constexpr size_t registers = 6;
    uintptr_t image[registers + 2] = {};
    image[registers] = reinterpret_cast<uintptr_t>(main);
    std::byte* top = stack + stack_bytes - 16;
    top -= reinterpret_cast<uintptr_t>(top) % 16;
    std::byte* bottom = top - sizeof(image) + 8;
    std::memcpy(bottom, image, sizeof(image));
    fiber.stack_pointer = bottom;
}

void switch_fiber(FiberContext& running, FiberContext& next) {
    mllama_switch_stack(&running.stack_pointer, next.stack_pointer);
}

}  // namespace mllama::cuda::emulated

#else

namespace mllama::cuda::emulated {

void start_fiber(FiberContext& fiber, std::byte* stack, size_t stack_bytes, void (*main)()) {
    ::getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    ::makecontext(&fiber.context, main, 0);
}

void switch_fiber(FiberContext& running, FiberContext& next) {
    ::swapcontext(&running.context, &next.context);
}

}  // namespace mllama::cuda::emulated

#endif
