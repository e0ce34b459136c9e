// A team of threads: see the header. The only file that starts threads.
//
// The whole state of a loop is one 64-bit number: which loop it is (upper half), and how many of
// its items nobody has taken yet (lower half). Taking an item is one compare-and-swap, and fails if
// the loop is no longer the one that was looked at; so a thread that wakes up late finds nothing to
// take and can do no harm.
#include "kernels/thread_team.h"

#include <atomic>
#include <cassert>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/processors.h"

namespace mllama::cpu {
namespace {

/// How often a thread looks again before it goes to sleep: some 30 microseconds, longer than the
/// gaps between the operations of a token. On a machine with other work, longer spinning would take
/// the processor from the thread that is waited for.
constexpr int most_looks = 1500;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/// Returns when `number` is no longer `old`.
void wait_for_change(const std::atomic<uint32_t>& number, uint32_t old) {
    for (int i = 0; i < most_looks; ++i) {
        if (number.load(std::memory_order_acquire) != old) return;
        pause();
    }
    number.wait(old, std::memory_order_acquire);
}

class Team {
  public:
    /// `size` threads, the calling one counted. Fewer if the system grants no more.
    explicit Team(int size) {
        workers_.reserve(static_cast<size_t>(size - 1));
        try {
            for (int i = 1; i < size; ++i) {
                workers_.emplace_back([this, i] {
                    place() = i;
                    serve();
                });
            }
        } catch (const std::system_error&) {
        }
    }

    ~Team() {
        stop_ = true;
        call();
        for (std::thread& worker : workers_) worker.join();
    }

    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    void run(const Loop& loop) {
        assert(loop.items < int64_t{1} << 32);
        loop_ = loop;
        error_ = nullptr;
        done_.store(0, std::memory_order_relaxed);
        const uint64_t number = (state_.load(std::memory_order_relaxed) >> 32) + 1;
        state_.store(number << 32 | static_cast<uint64_t>(loop.items), std::memory_order_release);
        call();
        work();
        const auto all = static_cast<uint32_t>(loop.items);
        for (uint32_t done = done_.load(std::memory_order_acquire); done != all;
             done = done_.load(std::memory_order_acquire)) {
            wait_for_change(done_, done);
        }
        if (error_) std::rethrow_exception(error_);
    }

    /// Whether this thread is computing an item of some loop.
    static bool& inside() {
        thread_local bool value = false;
        return value;
    }

    /// team_place() of this thread.
    static int& place() {
        thread_local int value = 0;
        return value;
    }

  private:
    void call() {
        calls_.fetch_add(1, std::memory_order_release);
        calls_.notify_all();
    }

    void serve() {
        uint32_t seen = 0;
        while (!stop_) {
            wait_for_change(calls_, seen);
            seen = calls_.load(std::memory_order_acquire);
            work();
        }
    }

    /// Takes items until there are none.
    void work() {
        inside() = true;
        uint64_t state = state_.load(std::memory_order_acquire);
        while (static_cast<uint32_t>(state) != 0) {
            if (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
                continue;
            }
            // The item is ours, so loop_ stays as it is until we have counted it as done.
            const auto all = static_cast<uint32_t>(loop_.items);
            run_item(all - static_cast<uint32_t>(state));
            if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == all) done_.notify_one();
            state = state_.load(std::memory_order_acquire);
        }
        inside() = false;
    }

    void run_item(int64_t item) {
        try {
            loop_.run(loop_.body, item);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(error_mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    std::vector<std::thread> workers_;
    Loop loop_{};
    std::exception_ptr error_;
    std::mutex error_mutex_;
    std::atomic<bool> stop_{false};
    // Each on a cache line of its own: threads look at one while others write another.
    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<uint32_t> done_{0};   // items that are finished
    alignas(64) std::atomic<uint32_t> calls_{0};  // changes when there is something to do
};

std::atomic<int> thread_count{0};  // 0: not yet asked for
std::atomic<int> most_threads{0};  // that there have been

/// The team and who uses it.
std::mutex team_mutex;
std::unique_ptr<Team> team;
int team_size = 0;

}  // namespace

void run_on_team(const Loop& loop) {
    const int size = threads();
    std::unique_lock<std::mutex> lock(team_mutex, std::defer_lock);
    if (size <= 1 || Team::inside() || !lock.try_lock()) {
        for (int64_t i = 0; i < loop.items; ++i) loop.run(loop.body, i);
        return;
    }
    if (team_size != size) {
        team.reset();
        team_size = 0;
        team = std::make_unique<Team>(size);
        team_size = size;
    }
    team->run(loop);
}

void set_threads(int count) {
    thread_count.store(std::max(1, count));
}

int team_place() {
    return Team::place();
}

int team_places() {
    // Never fewer than before: a thread of an earlier team may still be the caller.
    const int count = threads();
    int most = most_threads.load();
    while (most < count && !most_threads.compare_exchange_weak(most, count)) {
    }
    return std::max(most, count);
}

int threads() {
    int count = thread_count.load(std::memory_order_relaxed);
    if (count == 0) {
        count = usable_cores();
        thread_count.store(count);
    }
    return count;
}

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
    for_each_item(n, false, body);
}

}  // namespace mllama::cpu
