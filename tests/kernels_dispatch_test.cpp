// The choice of an instruction-set table, and the thread pool.
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cpu.h"
#include "kernels/cpu_ops.h"
#include "kernels/error.h"

namespace mllama::test {

TEST_CASE("choose_table_without_a_wish_takes_the_best") {
    CHECK(cpu::choose_table(nullptr) == cpu::supported_tables().back());
    CHECK(cpu::choose_table("") == cpu::supported_tables().back());
}

TEST_CASE("choose_table_finds_every_kind_this_machine_can_run") {
    CHECK(cpu::choose_table("portable")->name == "portable");
    for (const cpu::Table* table : cpu::supported_tables()) {
        const std::string kind(table->name.substr(0, table->name.find('+')));
        const std::string chosen(cpu::choose_table(kind.c_str())->name);
        CHECK(chosen.substr(0, kind.size()) == kind);
    }
}

TEST_CASE("choose_table_refuses_an_unknown_name_and_lists_the_possible_ones") {
    for (const char* name : {"sse9", "avx", "AVX2", "avx512+nonsense", "portable "}) {
        std::string message;
        try {
            cpu::choose_table(name);
        } catch (const Error& error) {
            message = error.what();
        }
        CHECK(message.find("MLLAMA_ISA") != std::string::npos);
        CHECK(message.find("portable") != std::string::npos);
        CHECK(message.find(name) != std::string::npos);
    }
}

TEST_CASE("choose_table_refuses_what_this_machine_cannot_run") {
    for (const std::string_view name : cpu::table_names()) {
        bool supported = false;
        for (const cpu::Table* table : cpu::supported_tables()) supported |= table->name == name;
        if (!supported && name.find('+') == std::string_view::npos) {
            CHECK_THROWS_AS(cpu::choose_table(std::string(name).c_str()), Error);
        }
    }
}

TEST_CASE("parallel_for_runs_every_index_once") {
    const int before = cpu::threads();
    for (const int threads : {1, 2, 5}) {
        cpu::set_threads(threads);
        std::vector<std::atomic<int>> counts(1000);
        cpu::parallel_for(1000, [&](int64_t i) { ++counts[static_cast<size_t>(i)]; });
        for (const std::atomic<int>& count : counts) CHECK(count == 1);
    }
    cpu::parallel_for(0, [](int64_t) { FAIL("nothing to run"); });
    cpu::set_threads(before);
}

TEST_CASE("parallel_for_throws_the_exception_of_a_body") {
    const int before = cpu::threads();
    for (const int threads : {1, 3}) {
        cpu::set_threads(threads);
        CHECK_THROWS_AS(cpu::parallel_for(100,
                                          [](int64_t i) {
                                              if (i == 57) fail("no ", i);
                                          }),
                        Error);
    }
    cpu::set_threads(before);
}

TEST_CASE("set_threads_takes_at_least_one") {
    const int before = cpu::threads();
    CHECK(before >= 1);
    cpu::set_threads(-3);
    CHECK(cpu::threads() == 1);
    cpu::set_threads(before);
    CHECK(cpu::threads() == before);
}

}  // namespace mllama::test
