// Several linear layers of the same rows in one call: each has the bits that it has alone.
#include <doctest/doctest.h>

#include <span>
#include <vector>

#include "kernels/cpu_ops.h"
#include "tests/compare.h"
#include "tests/mixed_layers.h"

namespace mllama::test {
namespace {

constexpr int64_t gap = 3;  // elements behind each row of an output, which nothing may write

/// The layers' outputs, and what is asked of them.
struct Outputs {
    std::vector<std::vector<float>> of;
    std::vector<Projection> projections;

    Outputs(const MixedLayers& mixed, int64_t rows) {
        for (const MixedLayers::Layer& layer : mixed.layers()) {
            const int64_t stride = layer.w.rows + gap;
            of.emplace_back(static_cast<size_t>(rows * stride), 0.25f);
            Epilogue epilogue = layer.epilogue();
            if (!layer.bias.empty()) epilogue.bias = layer.bias.data();
            if (layer.to_residual) epilogue.residual = of.back().data();
            projections.push_back({layer.w, epilogue, layer.compute, of.back().data(), stride});
        }
    }
};

void check_rows(const MixedLayers& mixed, int64_t cols, int64_t rows) {
    CAPTURE(cols);
    CAPTURE(rows);
    const std::vector<float> x = Numbers(1).floats(rows * (cols + 1));
    Outputs together(mixed, rows), alone(mixed, rows);
    const Matrix in{x.data(), DType::f32, rows, cols, cols + 1};
    cpu::linear(in, together.projections);
    for (const Projection& one : alone.projections) cpu::linear(in, {&one, 1});
    for (size_t i = 0; i < together.of.size(); ++i) {
        CAPTURE(i);
        CHECK(compare_bits(together.of[i], alone.of[i]) == "");
    }
}

}  // namespace

TEST_CASE("linear_of_several_layers_has_the_bits_of_each_alone") {
    for_each_table([] {
        for (const int64_t cols : {0, 1, 64, 200, 1000}) {
            const MixedLayers mixed(cols);
            for (const int64_t rows : {0, 1, 2, 9, 40}) check_rows(mixed, cols, rows);
        }
        check_rows(MixedLayers(64), 64, 1100);  // two blocks of rows
    });
}

TEST_CASE("projections_are_rounded_alike_up_to_the_first_that_is_not") {
    const MixedLayers mixed(256);
    const Outputs outputs(mixed, 1);
    std::span<const Projection> rest = outputs.projections;
    std::vector<size_t> counts;
    const auto same_size = [](const Matrix& a, const Matrix& b) {
        return a.coding == b.coding && a.groups.size == b.groups.size;
    };
    while (!rest.empty()) {
        counts.push_back(count_rounded_alike(rest, same_size));
        rest = rest.subspan(counts.back());
    }
    CHECK(counts == std::vector<size_t>{9, 1, 2, 1, 3, 1, 1, 2, 2});
}

}  // namespace mllama::test
