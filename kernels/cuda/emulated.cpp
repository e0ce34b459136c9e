// Fibers of one block at a time, one for each thread of the block.
#include "kernels/cuda/emulated.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <exception>
#include <iterator>
#include <memory>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/cuda/fiber.h"
#include "kernels/cuda/order.h"
#include "kernels/error.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace mllama::cuda::emulated {
namespace {

constexpr size_t stack_bytes = size_t{128} << 10;
constexpr unsigned most_threads = 1024;

enum class State { ready, at_block_barrier, at_exchange, waiting, done };

struct Fiber {
    FiberContext context;
    State state = State::done;
    bool is_after_previous = false;
    unsigned exchanges = 0;  // so far: the parity says which buffer the next one uses
    void* fake_stack = nullptr;
    std::vector<std::function<void()>> open_group;
    std::deque<std::vector<std::function<void()>>> groups;  // that have not been waited for
};

/// Stacks with a page behind each that may not be touched: an overflow is a fault, not a riddle.
class Stacks {
  public:
    Stacks() {
        const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
        stride_ = stack_bytes + page;
        void* memory = ::mmap(nullptr, stride_ * most_threads, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("emulated CUDA: no memory for stacks");
        memory_ = static_cast<std::byte*>(memory);
        for (unsigned i = 0; i < most_threads; ++i)
            ::mprotect(memory_ + i * stride_, page, PROT_NONE);
    }
    [[nodiscard]] std::byte* of(unsigned thread) const {
        return memory_ + (thread + 1) * stride_ - stack_bytes;
    }

  private:
    size_t stride_;
    std::byte* memory_;
};

constexpr std::align_val_t shared_alignment{1024};
struct AlignedDelete {
    void operator()(std::byte* memory) const { ::operator delete(memory, shared_alignment); }
};

/// A barrier of some threads of a block.
struct Group {
    unsigned arrived = 0;
    unsigned round = 0;
};
constexpr size_t most_groups = 16;

/// Of the block that runs. One block at a time in the process: kernels are launched by one thread.
struct Block {
    const char* name = "";
    const std::function<void()>* kernel = nullptr;
    std::vector<Fiber> fibers;
    unsigned running = 0;
    FiberContext scheduler;
    void* scheduler_fake_stack = nullptr;
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;
    std::vector<std::byte> exchanged;  // (2, warps, 32, exchange_bytes)
    std::unique_ptr<std::byte[], AlignedDelete> shared;
    Group groups[most_groups];
    bool notified = false;  // since those who wait have looked
    std::vector<std::function<void()>> late;
    std::exception_ptr error;
    bool reversed = false;
};

Block block;

// AddressSanitizer is told which stack is used, and which frames will not be returned from: it marks
// the ends of their variables in memory that the next fiber begins in.

void before_switch([[maybe_unused]] void** keep, [[maybe_unused]] const void* stack,
                   [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(keep, stack, bytes);
#endif
}

void after_switch([[maybe_unused]] void* kept, [[maybe_unused]] const void** old_stack,
                  [[maybe_unused]] size_t* old_bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(kept, old_stack, old_bytes);
#endif
}

void before_last_switch() {
#ifdef __SANITIZE_ADDRESS__
    __asan_handle_no_return();
#endif
}

void forget_frames([[maybe_unused]] const std::byte* stack, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack, bytes);
#endif
}

const Stacks& stacks() {
    static const Stacks all;
    return all;
}

/// Back to the scheduler until this fiber may go on.
void wait_as(State state) {
    Fiber& fiber = block.fibers[block.running];
    fiber.state = state;
    const bool last = state == State::done;
    if (last) before_last_switch();
    before_switch(last ? nullptr : &fiber.fake_stack, block.scheduler_stack,
                  block.scheduler_stack_bytes);
    switch_fiber(fiber.context, block.scheduler);
    after_switch(fiber.fake_stack, nullptr, nullptr);
}

void fiber_main() {
    after_switch(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
    try {
        (*block.kernel)();
        if (!block.fibers[block.running].is_after_previous)
            fail("emulated CUDA: ", block.name, ": a thread does not call after_previous()");
        const Fiber& fiber = block.fibers[block.running];
        if (!fiber.groups.empty() || !fiber.open_group.empty())
            fail("emulated CUDA: ", block.name, ": a thread does not wait for its products");
    } catch (...) {
        block.error = std::current_exception();
    }
    wait_as(State::done);
}

void resume(unsigned thread) {
    Fiber& fiber = block.fibers[thread];
    block.running = thread;
    threadIdx = dim3(thread);
    before_switch(&block.scheduler_fake_stack, stacks().of(thread), stack_bytes);
    switch_fiber(block.scheduler, fiber.context);
    after_switch(block.scheduler_fake_stack, nullptr, nullptr);
}

bool all_in(State state, unsigned begin, unsigned end) {
    return std::all_of(block.fibers.begin() + begin, block.fibers.begin() + end,
                       [&](const Fiber& f) { return f.state == state; });
}

void release_fibers(unsigned begin, unsigned end) {
    for (unsigned i = begin; i < end; ++i) block.fibers[i].state = State::ready;
}

/// Lets the warp's threads go if all of them wait for each other.
bool release_exchange(unsigned first) {
    if (!all_in(State::at_exchange, first, first + 32)) return false;
    release_fibers(first, first + 32);
    return true;
}

/// Lets go all that are in a state. False: there are none.
bool release_all(State state) {
    bool any = false;
    for (Fiber& fiber : block.fibers) {
        if (fiber.state != state) continue;
        fiber.state = State::ready;
        any = true;
    }
    return any;
}

/// Lets those look again who wait for something that other threads bring about, if one has said that
/// it did.
bool release_waiting() {
    return std::exchange(block.notified, false) && release_all(State::waiting);
}

/// Does what comes late.
bool bring_late_work() {
    if (block.late.empty()) return false;
    for (const auto& work : std::exchange(block.late, {})) work();
    release_waiting();
    return true;
}

/// Lets go those that wait for the block, if no thread waits for anything else: threads that have
/// ended count as arrived. False: there are none.
bool release_barrier() {
    for (const Fiber& fiber : block.fibers) {
        if (fiber.state == State::at_exchange || fiber.state == State::waiting) return false;
    }
    return release_all(State::at_block_barrier);
}

/// Gives up a block whose threads may be in the midst of it.
void abandon_block() {
    for (unsigned i = 0; i < block.fibers.size(); ++i) forget_frames(stacks().of(i), stack_bytes);
}

/// Runs a warp as far as it gets without the others: they may be that far behind.
void run_warp(unsigned first) {
    do {
        for (unsigned i = 0; i < 32; ++i) {
            const unsigned thread = first + (block.reversed ? 31 - i : i);
            if (block.fibers[thread].state == State::ready) resume(thread);
            if (block.error) {
                abandon_block();
                std::rethrow_exception(std::exchange(block.error, nullptr));
            }
        }
    } while (release_exchange(first));
}

void run_block() {
    const auto threads = static_cast<unsigned>(block.fibers.size());
    std::fill(std::begin(block.groups), std::end(block.groups), Group{});
    block.notified = false;
    block.late.clear();
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = block.fibers[i];
        fiber = Fiber();
        start_fiber(fiber.context, stacks().of(i), stack_bytes, fiber_main);
        fiber.state = State::ready;
    }
    do {
        for (unsigned i = 0; i < threads; i += 32) run_warp(block.reversed ? threads - 32 - i : i);
    } while (release_waiting() || release_barrier() || bring_late_work());
    if (!all_in(State::done, 0, threads)) {
        abandon_block();
        fail("emulated CUDA: ", block.name, ": block ", blockIdx.x, ",", blockIdx.y, ",",
             blockIdx.z, ": threads wait at a barrier or shuffle that not all reach");
    }
}

}  // namespace

void block_barrier() {
    wait_as(State::at_block_barrier);
}

void wait_until(const std::function<bool()>& ready) {
    while (!ready()) wait_as(State::waiting);
}

void notify() {
    block.notified = true;
}

void bring_late(std::function<void()> work) {
    block.late.push_back(std::move(work));
}

void run_late(std::function<void()> work) {
    block.fibers[block.running].open_group.push_back(std::move(work));
}

void end_group() {
    Fiber& fiber = block.fibers[block.running];
    fiber.groups.push_back(std::exchange(fiber.open_group, {}));
}

void run_groups(size_t but) {
    auto& groups = block.fibers[block.running].groups;
    if (groups.size() <= but) return;
    bool is_late = false;  // until then others go on: they may overwrite what they should not
    bring_late([&] {
        is_late = true;
        notify();
    });
    wait_until([&] { return is_late; });
    while (groups.size() > but) {
        const auto group = std::move(groups.front());
        groups.pop_front();
        for (const auto& work : group) work();
    }
}

void group_barrier(unsigned id, unsigned threads) {
    if (id == 0 || id >= most_groups) fail("emulated CUDA: ", block.name, ": barrier ", id);
    Group& group = block.groups[id];
    const unsigned round = group.round;
    if (++group.arrived == threads) {
        group.arrived = 0;
        ++group.round;
        notify();
    }
    wait_until([&] { return group.round != round; });
}

const std::byte* exchange(const void* mine, size_t bytes) {
    const unsigned thread = block.running;
    const size_t warps = block.fibers.size() / 32;
    const size_t buffer = block.fibers[thread].exchanges++ % 2;
    std::byte* warp = block.exchanged.data() + (buffer * warps + thread / 32) * 32 * exchange_bytes;
    if (bytes > 0) std::memcpy(warp + thread % 32 * exchange_bytes, mine, bytes);
    wait_as(State::at_exchange);
    return warp;
}

void after_previous() {
    block.fibers[block.running].is_after_previous = true;
}

std::byte* dynamic_shared() {
    return block.shared.get();
}

/// What a block may have on every device of compute capability 8.0 or more: 8.6 and 8.9 give no more.
/// Kernels of warpgroups run where there is more.
int64_t most_shared_bytes(std::string_view kernel) {
    return (kernel == "attention_warpgroup" ? 227 : 99) * 1024;
}

void run(const char* name, dim3 grid, unsigned threads, int64_t shared_bytes,
         const std::function<void()>& kernel) {
    if (threads == 0 || threads > most_threads || threads % 32 != 0)
        fail("emulated CUDA: ", name, ": blocks of ", threads, " threads");
    if (shared_bytes > most_shared_bytes(name))
        fail("emulated CUDA: ", name, ": ", shared_bytes, " bytes of shared memory");
    block.name = name;
    block.kernel = &kernel;
    block.fibers.resize(threads);
    block.exchanged.resize(2 * threads * exchange_bytes);
    blockDim = dim3(threads);
    gridDim = grid;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                const auto bytes = static_cast<size_t>(shared_bytes);
                // Of its very size, for AddressSanitizer; NaN, as float and as bfloat16.
                block.shared.reset(
                    static_cast<std::byte*>(::operator new(bytes, shared_alignment)));
                std::fill_n(block.shared.get(), bytes, std::byte{0xFF});
                run_block();
            }
        }
    }
}

}  // namespace mllama::cuda::emulated

void mllama::cuda::set_reversed(bool reversed) {
    emulated::block.reversed = reversed;
}

namespace {
bool warpgroups_allowed = true;
}

bool mllama::cuda::has_warpgroups() {
    return warpgroups_allowed;
}

void mllama::cuda::allow_warpgroups(bool allowed) {
    warpgroups_allowed = allowed;
}
