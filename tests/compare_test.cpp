// The comparison helper must reject what is wrong, or no other test means anything.
#include "tests/compare.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace mllama::test {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

bool accepts(const std::vector<float>& found, const std::vector<float>& expected,
             Tolerance tolerance) {
    return compare(found, expected, tolerance).empty();
}

}  // namespace

TEST_CASE("compare_accepts_what_is_within_the_tolerance") {
    CHECK(accepts({1.0f, -2.0f}, {1.0f, -2.0f}, {}));
    CHECK(accepts({1.001f}, {1.0f}, {0.002, 0.0}));
    CHECK(accepts({1001.0f}, {1000.0f}, {0.0, 0.002}));
    CHECK(accepts({}, {}, {}));
}

TEST_CASE("compare_rejects_a_wrong_value") {
    CHECK_FALSE(accepts({1.01f}, {1.0f}, {0.002, 0.002}));
    CHECK_FALSE(accepts({1.0f, 2.0f, 3.5f}, {1.0f, 2.0f, 3.0f}, {0.1, 0.0}));
    CHECK_FALSE(accepts({std::nextafter(1.0f, 2.0f)}, {1.0f}, {}));
    CHECK_FALSE(accepts({0.0f}, {1.0f}, {0.0, 0.5}));
}

TEST_CASE("compare_rejects_a_wrong_sign") {
    CHECK_FALSE(accepts({-1.0f}, {1.0f}, {0.01, 0.01}));
    CHECK_FALSE(accepts({-infinity}, {infinity}, {1.0, 1.0}));
}

TEST_CASE("compare_rejects_a_nan_unless_one_is_expected") {
    CHECK_FALSE(accepts({nan}, {1.0f}, {1e9, 1e9}));
    CHECK_FALSE(accepts({1.0f}, {nan}, {1e9, 1e9}));
    CHECK_FALSE(accepts({nan}, {infinity}, {1e9, 1e9}));
    CHECK(accepts({nan}, {nan}, {}));
}

TEST_CASE("compare_rejects_an_infinity_unless_the_same_is_expected") {
    CHECK_FALSE(accepts({infinity}, {1.0f}, {1e9, 1e9}));
    CHECK_FALSE(accepts({1.0f}, {infinity}, {1e9, 1e9}));
    CHECK(accepts({infinity}, {infinity}, {}));
}

TEST_CASE("compare_rejects_a_wrong_size") {
    CHECK_FALSE(accepts({1.0f}, {1.0f, 1.0f}, {1.0, 1.0}));
    CHECK_FALSE(accepts({1.0f, 1.0f}, {1.0f}, {1.0, 1.0}));
    CHECK_FALSE(accepts({}, {1.0f}, {1.0, 1.0}));
    CHECK_FALSE(compare_bits(std::vector<float>{}, std::vector<float>{1.0f}).empty());
}

TEST_CASE("compare_names_the_worst_index") {
    const std::vector<float> found = {1.0f, 2.5f, 9.0f, 4.5f}, expected = {1.0f, 2.0f, 3.0f, 4.0f};
    const std::string message = compare(found, expected, {0.1, 0.0});
    CHECK(message.find("3 of 4") != std::string::npos);
    CHECK(message.find("index 2: expected 3, found 9") != std::string::npos);
}

TEST_CASE("compare_bits_sees_a_last_bit_and_a_signed_zero") {
    CHECK(compare_bits(std::vector<float>{1.5f, nan}, std::vector<float>{1.5f, nan}).empty());
    CHECK_FALSE(
        compare_bits(std::vector<float>{std::nextafter(1.0f, 2.0f)}, std::vector<float>{1.0f})
            .empty());
    CHECK_FALSE(compare_bits(std::vector<float>{-0.0f}, std::vector<float>{0.0f}).empty());
    CHECK_FALSE(compare_bits(std::vector<float>{nan}, std::vector<float>{0.0f}).empty());
}

TEST_CASE("for_each_table_runs_every_supported_table_and_restores_the_choice") {
    const std::string before(cpu::isa_name());
    std::vector<std::string> seen;
    for_each_table([&] { seen.emplace_back(cpu::isa_name()); });
    REQUIRE(seen.size() == cpu::supported_tables().size());
    CHECK(seen.front() == "portable");
    CHECK(std::string(cpu::isa_name()) == before);
}

TEST_CASE("compare_splits_finds_rows_that_depend_on_their_company_or_the_threads") {
    const auto fill = [](float value) {
        return [=](int64_t first, int64_t count, float* out) {
            for (int64_t i = 0; i < count * 3; ++i) out[i] = static_cast<float>(first) * value + 1;
        };
    };
    CHECK(compare_splits(20, 3, fill(0.0f)) == "");
    CHECK(compare_splits(20, 3, fill(1.0f)).starts_with("1 rows at a time"));
    const int before = cpu::threads();
    const auto by_threads = [](int64_t, int64_t count, float* out) {
        std::fill_n(out, count * 3, cpu::threads() == 3 ? 2.0f : 1.0f);
    };
    CHECK(compare_splits(20, 3, by_threads).starts_with("3 threads"));
    const auto unwritten = [](int64_t, int64_t count, float* out) {
        if (count != 7) std::fill_n(out, count * 3, 1.0f);
    };
    CHECK(compare_splits(20, 3, unwritten).starts_with("7 rows at a time"));
    const auto nothing = [](int64_t, int64_t, float*) {};
    CHECK(compare_splits(20, 3, nothing) != "");
    CHECK(cpu::threads() == before);
}

}  // namespace mllama::test
