// The probes: their loops really do the work whose rate is told.
#include "kernels/limits.h"

#include <doctest/doctest.h>

#include <chrono>
#include <string>
#include <vector>

#include "kernels/cpu.h"
#include "tests/compare.h"

namespace mllama::test {

TEST_CASE("read_sum_of_every_number_of_streams_and_size_is_the_plain_sum") {
    for_each_table([] {
        constexpr int64_t most = 1100;  // whole blocks of 8 streams, and rests of all sizes
        Numbers numbers(1);
        std::vector<float> x(most + 1);
        for (float& value : x) value = static_cast<float>(numbers.below(200) - 100);
        for (int64_t n = 0; n <= most; ++n) {
            const float* from = x.data() + 1;
            double sum = 0.0;
            for (int64_t i = 0; i < n; ++i) sum += double{from[i]};
            for (const auto read_sum : cpu::table().read_sum) {
                CAPTURE(n);
                REQUIRE(read_sum(from, n) == static_cast<float>(sum));
            }
        }
    });
}

TEST_CASE("peak_loops_add_one_for_every_multiply_add") {
    for_each_table([] {
        const cpu::Table& table = cpu::table();
        for (const cpu::PeakLoop& loop : {table.peak_f32, table.peak_bf16, table.peak_int8}) {
            CHECK(loop.multiply_adds > 0);
            for (const int64_t rounds : {0, 1, 2, 1000, 1 << 20}) {
                CAPTURE(rounds);
                CHECK(loop.run(rounds, 1) == static_cast<double>(rounds * loop.multiply_adds));
                CHECK(loop.run(rounds, 0) == 0.0);
            }
        }
    });
}

TEST_CASE("peak_loops_are_not_shortened_by_the_compiler") {
    // No processor starts more than 16e9 vectors of floats a second on one thread: a faster loop
    // does not do what it counts.
    for_each_table([] {
        const cpu::PeakLoop loop = cpu::table().peak_f32;
        const auto lanes = static_cast<double>(cpu::table().f32.lanes);
        constexpr int64_t rounds = 1 << 19;
        for (int run = 0; run < 5; ++run) {
            const auto start = std::chrono::steady_clock::now();
            CHECK(loop.run(rounds, 1) > 0);
            const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
            const double vectors = static_cast<double>(rounds * loop.multiply_adds) / lanes;
            CHECK(vectors / taken.count() < 16e9);
        }
    });
}

TEST_CASE("limits_are_positive_with_every_table") {
    const cpu::LimitProbe probe(1);
    CHECK(probe.bytes() >= 1 << 20);
    for_each_table([&] {
        const Limits limits = probe.measure();
        CHECK(limits.read_gb_s > 0);
        CHECK(limits.read_streams > 0);
        CHECK(limits.f32_gflop_s > 0);
        CHECK(limits.bf16_gflop_s > 0);
        CHECK(limits.int8_gop_s > 0);
    });
}

TEST_CASE("limits_best_takes_the_larger_of_each") {
    const Limits best = mllama::best({10, 1, 200, 300, 400}, {20, 8, 100, 350, 50});
    CHECK(best.read_gb_s == 20);
    CHECK(best.read_streams == 8);
    CHECK(best.f32_gflop_s == 200);
    CHECK(best.bf16_gflop_s == 350);
    CHECK(best.int8_gop_s == 400);
}

TEST_CASE("limits_of_reading_are_those_of_the_fastest_number_of_streams") {
    std::vector<int64_t> tried;
    const cpu::Reading fastest = cpu::fastest_reading([&](int64_t streams) {
        tried.push_back(streams);
        return streams == 4 ? 30.0 : 10.0 + static_cast<double>(streams);
    });
    CHECK(tried == std::vector<int64_t>{1, 2, 4, 8});
    CHECK(fastest.gb_s == 30.0);
    CHECK(fastest.streams == 4);
    CHECK(cpu::fastest_reading([](int64_t streams) { return 10.0 / double(streams); }).streams ==
          1);
    CHECK(cpu::fastest_reading([](int64_t streams) { return double(streams); }).streams == 8);
}

TEST_CASE("limits_of_the_machine_are_plausible") {
    CHECK(cpu::available_memory() >= 0);
    CHECK(cpu::last_level_cache() >= 1 << 18);
    CHECK(cpu::last_level_cache() <= int64_t{1} << 32);
    CHECK(cpu::LimitProbe::default_bytes() >= 1 << 20);
    CHECK(cpu::LimitProbe::default_bytes() <= int64_t{1} << 30);
}

}  // namespace mllama::test
