// Rounding weights to int8 and int4: how good the scales are, what strange numbers become, and that
// threads and instruction sets change nothing.
#include "mllama/quantise.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/cpu.h"
#include "kernels/quantise.h"
#include "kernels/reference.h"
#include "tensor/ops.h"
#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

using Numbers = std::vector<float>;

/// Normal numbers; the heavier the tail, the larger single ones are.
Numbers random_numbers(int64_t n, unsigned seed, float tail) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    Numbers numbers(static_cast<size_t>(n));
    for (float& x : numbers) x = normal(generator) * std::exp(tail * std::abs(normal(generator)));
    return numbers;
}

struct Rounded {
    std::vector<int8_t> q;
    std::vector<uint16_t> scale;

    [[nodiscard]] double at(int64_t col, int64_t group_size) const {
        return static_cast<double>(q[static_cast<size_t>(col)]) *
               static_cast<double>(bf16_to_f32(scale[static_cast<size_t>(col / group_size)]));
    }
};

Rounded quantise_row(const Numbers& w, int64_t group_size, cpu::Levels levels,
                     const Numbers& importance = {}) {
    const auto cols = static_cast<int64_t>(w.size());
    Rounded rounded{
        std::vector<int8_t>(w.size(), 99),
        std::vector<uint16_t>(static_cast<size_t>((cols + group_size - 1) / group_size))};
    REQUIRE(cpu::quantise_row(w.data(), importance.empty() ? nullptr : importance.data(), cols,
                              group_size, levels, rounded.q.data(), rounded.scale.data()) == -1);
    return rounded;
}

double square(double x) {
    return x * x;
}

/// sum importance (w - q scale)^2 over the columns [begin, end) with the nearest levels.
double error_at(const Numbers& w, const Numbers& importance, int64_t begin, int64_t end,
                double scale, cpu::Levels levels) {
    double error = 0;
    for (int64_t i = begin; i < end; ++i) {
        const double x = w[static_cast<size_t>(i)];
        const double q = std::clamp<double>(std::nearbyint(x / scale), levels.low, levels.high);
        const double weight = importance.empty() ? 1.0 : importance[static_cast<size_t>(i)];
        error += weight * square(x - q * scale);
    }
    return error;
}

double error_of(const Rounded& rounded, const Numbers& w, const Numbers& importance, int64_t begin,
                int64_t end, int64_t group_size) {
    double error = 0;
    for (int64_t i = begin; i < end; ++i) {
        const double weight = importance.empty() ? 1.0 : importance[static_cast<size_t>(i)];
        error += weight * square(w[static_cast<size_t>(i)] - rounded.at(i, group_size));
    }
    return error;
}

double largest_magnitude(const Numbers& w, int64_t begin, int64_t end) {
    double largest = 0;
    for (int64_t i = begin; i < end; ++i)
        largest = std::max(largest, std::abs(static_cast<double>(w[static_cast<size_t>(i)])));
    return largest;
}

double as_bf16(double x) {
    return bf16_to_f32(f32_to_bf16(static_cast<float>(x)));
}

/// The least error of all scales that bfloat16 has between 0.2 and 1.1 of the unclipped one, of
/// either sign.
double least_error(const Numbers& w, const Numbers& importance, int64_t begin, int64_t end,
                   cpu::Levels levels) {
    const double plain = largest_magnitude(w, begin, end) / levels.high;
    double least = std::numeric_limits<double>::infinity();
    const uint16_t last = f32_to_bf16(static_cast<float>(1.1 * plain));
    for (uint16_t bits = f32_to_bf16(static_cast<float>(0.2 * plain)); bits <= last; ++bits) {
        for (const double sign : {1.0, -1.0}) {
            least = std::min(least,
                             error_at(w, importance, begin, end, sign * bf16_to_f32(bits), levels));
        }
    }
    return least;
}

/// Over all groups of a row: never worse than the scale that clips nothing, and near the best that
/// there is.
void check_errors(const Numbers& w, int64_t group_size, cpu::Levels levels,
                  const Numbers& importance = {}) {
    const auto cols = static_cast<int64_t>(w.size());
    const Rounded rounded = quantise_row(w, group_size, levels, importance);
    double sum = 0, best = 0;
    for (int64_t begin = 0; begin < cols; begin += group_size) {
        const int64_t end = std::min(cols, begin + group_size);
        const double error = error_of(rounded, w, importance, begin, end, group_size);
        const double plain = as_bf16(largest_magnitude(w, begin, end) / levels.high);
        CHECK(error <= error_at(w, importance, begin, end, plain, levels) * 1.00001);
        sum += error;
        best += least_error(w, importance, begin, end, levels);
    }
    CAPTURE(group_size);
    CAPTURE(levels.high);
    CHECK(sum <= best * 1.03);
}

Tensor matrix(const Numbers& numbers, int64_t rows) {
    return Tensor::from(numbers, {rows, static_cast<int64_t>(numbers.size()) / rows});
}

bool same_bytes(const Tensor& a, const Tensor& b) {
    return a.dtype() == b.dtype() && a.shape() == b.shape() &&
           std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes())) == 0;
}

bool same(const Weight& a, const Weight& b) {
    return a.coding == b.coding && a.group_size == b.group_size && same_bytes(a.data, b.data) &&
           same_bytes(a.scale, b.scale);
}

constexpr QuantisedFormat int4_of(int64_t group_size) {
    return {Coding::int4, group_size};
}

}  // namespace

TEST_CASE("quantise_scales_are_near_the_best_for_every_group_size") {
    for (const float tail : {0.0f, 20.0f, 60.0f}) {
        const Numbers w = random_numbers(1024, 1, tail);
        for (const int64_t group_size :
             {32, 64, 128, 1024, 7, 100}) {  // the last ones leave a rest
            check_errors(w, group_size, cpu::int4_levels);
        }
        // Few numbers fit some of the many levels of int8 by chance: only all scales would find it.
        for (const int64_t group_size : {1024, 300, 128}) {
            check_errors(w, group_size, cpu::int8_levels);
        }
    }
}

TEST_CASE("quantise_scales_are_near_the_best_for_columns_that_matter_more") {
    const Numbers w = random_numbers(512, 2, 20.0f);
    Numbers importance = random_numbers(512, 3, 40.0f);
    for (float& x : importance) x = 1000.0f * x * x;
    for (const int64_t group_size : {32, 128, 512}) {
        check_errors(w, group_size, cpu::int4_levels, importance);
        const Rounded with = quantise_row(w, group_size, cpu::int4_levels, importance);
        const Rounded without = quantise_row(w, group_size, cpu::int4_levels);
        CHECK(error_of(with, w, importance, 0, 512, group_size) <
              0.98 * error_of(without, w, importance, 0, 512, group_size));
    }
}

TEST_CASE("quantise_importance_of_zero_everywhere_is_none") {
    const Numbers w = random_numbers(64, 4, 0.0f);
    const Rounded plain = quantise_row(w, 32, cpu::int4_levels);
    const Rounded zero = quantise_row(w, 32, cpu::int4_levels, Numbers(64, 0.0f));
    CHECK(plain.q == zero.q);
    CHECK(plain.scale == zero.scale);
}

TEST_CASE("quantise_int4_extreme_of_either_sign_uses_the_longer_side") {
    for (const float sign : {1.0f, -1.0f}) {
        Numbers w(32);  // sixteen levels that lie evenly from -8 to 7, or from -7 to 8
        for (int i = 0; i < 32; ++i)
            w[static_cast<size_t>(i)] = sign * static_cast<float>(i / 2 - 8);
        const Rounded rounded = quantise_row(w, 32, cpu::int4_levels);
        CHECK(error_of(rounded, w, {}, 0, 32, 32) == 0.0);
    }
}

TEST_CASE("quantise_of_zeros_tiny_and_huge_numbers_stays_finite") {
    constexpr float largest = std::numeric_limits<float>::max();
    constexpr float smallest = std::numeric_limits<float>::denorm_min();
    const std::vector<Numbers> rows = {
        Numbers(40, 0.0f),      Numbers(40, largest), Numbers(40, -largest), Numbers(40, smallest),
        Numbers(40, -smallest), Numbers(40, 1e-38f),  Numbers(40, -0.0f)};
    for (const Numbers& numbers : rows) {
        for (const bool one_of_them : {false, true}) {
            Numbers w = numbers;
            if (one_of_them) std::fill(w.begin() + 1, w.end(), 0.0f);
            for (const cpu::Levels levels : {cpu::int8_levels, cpu::int4_levels}) {
                const Rounded rounded = quantise_row(w, 16, levels);
                for (int64_t i = 0; i < 40; ++i) {
                    const float scale = bf16_to_f32(rounded.scale[static_cast<size_t>(i / 16)]);
                    const float back =
                        static_cast<float>(rounded.q[static_cast<size_t>(i)]) * scale;
                    CHECK(std::isfinite(back));
                    CHECK(std::isfinite(1.0f / scale));
                    const float x = w[static_cast<size_t>(i)];
                    CHECK(std::abs(static_cast<double>(x) - static_cast<double>(back)) <=
                          0.1 * std::abs(static_cast<double>(x)) + 1e-37);
                }
            }
        }
    }
}

TEST_CASE("quantise_of_a_number_that_is_not_finite_names_its_place") {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
        Numbers numbers = random_numbers(50 * 64, 5, 0.0f);
        numbers[40 * 64 + 3] = numbers[17 * 64 + 9] = numbers[17 * 64 + 33] = bad;
        for (const QuantisedFormat& format : {int8_rows, int4_of(32)}) {
            const std::string error =
                error_of([&] { return quantised(matrix(numbers, 50), format); });
            CHECK(holds_all(error, {"finite", "row 17, column 9"}));
        }
    }
}

TEST_CASE("quantised_weight_reads_back_as_its_codes_and_scales_say") {
    for (const int64_t cols : {128, 88, 43}) {  // 43: the last word is not full
        const Numbers numbers = random_numbers(9 * cols, 6, 10.0f);
        for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
            const Tensor plain = ops::to_dtype(matrix(numbers, 9), dtype);
            const Numbers stored = [&] {
                const Tensor f32 = ops::to_dtype(plain, DType::f32);
                return Numbers(f32.data<float>(), f32.data<float>() + f32.numel());
            }();
            for (const QuantisedFormat& format :
                 {int8_rows, int4_of(0), int4_of(cols % 32 == 0 ? 32 : 0)}) {
                const Weight weight = quantised(plain, format);
                const Matrix coded = weight.matrix();
                const cpu::Levels levels =
                    format.coding == Coding::int8 ? cpu::int8_levels : cpu::int4_levels;
                for (int64_t row = 0; row < 9; ++row) {
                    const auto begin = stored.begin() + row * cols;
                    const Rounded rounded =
                        quantise_row({begin, begin + cols}, weight.group_size, levels);
                    for (int64_t col = 0; col < cols; ++col) {
                        CHECK(reference::weight(coded, row, col) ==
                              rounded.at(col, weight.group_size));
                    }
                }
            }
        }
    }
}

TEST_CASE("quantised_weight_is_the_same_for_any_number_of_threads_and_instruction_set") {
    const Tensor plain = matrix(random_numbers(67 * 256, 7, 20.0f), 67);
    const Numbers importance = [] {
        Numbers numbers = random_numbers(256, 8, 0.0f);
        for (float& x : numbers) x = x * x;
        return numbers;
    }();
    const int threads = ops::threads();
    const cpu::Table* in_use = &cpu::table();
    for (const QuantisedFormat& format : {int8_rows, int4_of(0), int4_of(32), int4_of(128)}) {
        const Weight expected = quantised(plain, format, importance);
        for (const int n : {1, 2, 3, 8}) {
            ops::set_threads(n);
            CHECK(same(quantised(plain, format, importance), expected));
        }
        ops::set_threads(threads);
        for (const cpu::Table* table : cpu::supported_tables()) {
            CAPTURE(table->name);
            cpu::use_table(table);
            CHECK(same(quantised(plain, format, importance), expected));
        }
        cpu::use_table(in_use);
    }
}

TEST_CASE("quantised_weight_without_rows_or_columns_is_empty") {
    for (const QuantisedFormat& format : {int8_rows, int4_of(0)}) {
        CHECK(quantised(Tensor::empty({0, 64}, DType::f32), format).numel() == 0);
        CHECK(quantised(Tensor::empty({3, 0}, DType::f32), format).numel() == 0);
    }
}

TEST_CASE("fitting_group_size_halves_until_it_divides_the_row") {
    CHECK(fitting_group_size(4096, 128) == 128);
    CHECK(fitting_group_size(160, 128) == 32);
    CHECK(fitting_group_size(192, 128) == 64);
    CHECK(fitting_group_size(48, 128) == 0);
    CHECK(fitting_group_size(96, 32) == 32);
    CHECK(fitting_group_size(80, 64) == 0);
    CHECK(fitting_group_size(4096, 0) == 0);
}

TEST_CASE("quantisation_plan_takes_the_linear_layers_of_the_towers_and_nothing_else") {
    QuantisationPlan plan;
    plan.text = int4_of(128);
    plan.lm_head = int8_rows;
    const std::string layer = "language_model.model.layers.3.";
    for (const char* name : {"self_attn.q_proj", "cross_attn.v_proj", "mlp.down_proj"})
        CHECK(plan.of(layer + name, 4096) == int4_of(128));
    CHECK(plan.of(layer + "mlp.up_proj", 160) == int4_of(32));
    CHECK(plan.of("language_model.lm_head", 4096) == int8_rows);
    const std::string vision = "vision_model.global_transformer.layers.0.";
    CHECK(!plan.of(vision + "mlp.fc1", 1280));
    plan.vision = int8_rows;
    CHECK(plan.of(vision + "mlp.fc1", 1280) == int8_rows);
    CHECK(plan.of("vision_model.transformer.layers.31.self_attn.o_proj", 1280) == int8_rows);
    for (const char* name :
         {"language_model.model.embed_tokens", "multi_modal_projector",
          "language_model.model.layers.3.input_layernorm", "vision_model.patch_embedding",
          "vision_model.transformer.layers.0.input_layernorm", "vision_model.class_embedding"})
        CHECK(!plan.of(name, 4096));
}
