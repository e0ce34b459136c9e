#include "kernels/thread_team.h"

#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "kernels/cpu_ops.h"
#include "kernels/processors.h"

using namespace mllama::cpu;

namespace {

/// The number of threads for the life of a test.
class Threads {
  public:
    explicit Threads(int count) : before_(threads()) { set_threads(count); }
    ~Threads() { set_threads(before_); }

  private:
    int before_;
};

}  // namespace

TEST_CASE("team_runs_every_item_once_with_any_number_of_threads") {
    for (const int count : {1, 2, 3, 8}) {
        const Threads threads(count);
        for (const int64_t items : {0, 1, 2, 7, 1000}) {
            std::vector<std::atomic<int>> runs(static_cast<size_t>(items));
            for_each_item(items, false, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
            for (const auto& run : runs) CHECK(run == 1);
        }
    }
}

TEST_CASE("team_runs_many_short_loops_one_after_the_other") {
    const Threads threads(4);  // more than many machines have: some threads come too late
    std::atomic<int64_t> sum{0};
    for (int64_t loop = 0; loop < 20000; ++loop) {
        for_each_item(3, false, [&](int64_t i) { sum += i; });
    }
    CHECK(sum == 20000 * 3);
}

TEST_CASE("team_passes_an_exception_on_and_goes_on_afterwards") {
    const Threads threads(3);
    std::atomic<int> runs{0};
    const auto loop = [&] {
        for_each_item(50, false, [&](int64_t i) {
            ++runs;
            if (i == 17) throw std::runtime_error("item 17");
        });
    };
    CHECK_THROWS_WITH_AS(loop(), "item 17", std::runtime_error);
    CHECK(runs == 50);
    runs = 0;
    for_each_item(50, false, [&](int64_t) { ++runs; });
    CHECK(runs == 50);
}

TEST_CASE("team_loop_inside_of_a_loop_is_run_by_its_thread") {
    const Threads threads(3);
    std::atomic<int> runs{0};
    for_each_item(10, false, [&](int64_t) {
        const auto here = std::this_thread::get_id();
        for_each_item(10, false, [&](int64_t) {
            if (std::this_thread::get_id() == here) ++runs;
        });
    });
    CHECK(runs == 100);
}

TEST_CASE("team_may_be_called_by_several_threads_at_once") {
    const Threads threads(2);
    std::atomic<int64_t> runs{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&] {
            for (int loop = 0; loop < 500; ++loop)
                for_each_item(5, false, [&](int64_t) { ++runs; });
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(runs == 4 * 500 * 5);
}

TEST_CASE("threads_are_at_least_one_and_by_default_no_more_than_the_processors") {
    const int before = threads();
    CHECK(usable_cores() >= 1);
    CHECK(usable_cores() <= static_cast<int>(std::thread::hardware_concurrency()));
    set_threads(-5);
    CHECK(threads() == 1);
    set_threads(before);
}

#if defined(__linux__)
TEST_CASE("threads_are_by_default_no_more_than_the_processors_that_the_process_may_run_on") {
    cpu_set_t before, one;
    REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
    int first = 0;
    while (!CPU_ISSET(first, &before)) ++first;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    const int cores = usable_cores();
    REQUIRE(sched_setaffinity(0, sizeof before, &before) == 0);
    CHECK(cores == 1);
}
#endif

TEST_CASE("team_places_are_different_and_there_are_enough_of_them") {
    for (const int count : {4, 2, 1}) {
        const Threads threads(count);
        CHECK(team_place() == 0);
        CHECK(team_places() >= count);
        std::vector<std::atomic<int>> users(static_cast<size_t>(team_places()));
        std::atomic<int> met{0};
        for_each_item(1000, false, [&](int64_t) {
            std::atomic<int>& here = users.at(static_cast<size_t>(team_place()));
            if (++here != 1) ++met;
            --here;
        });
        CHECK(met == 0);
    }
}
