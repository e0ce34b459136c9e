// Linear layers of plain weights on the GPU against the reference.
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "kernels/reference.h"
#include "tests/cuda/device.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

/// How the arrays of a product lie in memory.
struct Layout {
    const char* name;
    int64_t offset;                 ///< elements of x, w and out before the first
    int64_t x_gap, w_gap, out_gap;  ///< elements between rows
};
constexpr Layout packed{"packed", 0, 0, 0, 0};
constexpr Layout aligned{"aligned", 0, 8, 16, 4};
constexpr Layout crooked{"crooked", 1, 3, 5, 2};
constexpr Layout layouts[] = {packed, aligned, crooked};

/// Elements of rows with gaps between them: the last has none behind it.
int64_t extent(int64_t rows, int64_t width, int64_t gap, int64_t offset) {
    return rows == 0 ? offset : offset + rows * (width + gap) - gap;
}

/// The factors of a product, x (rows, k) and w (n, k), here and on the device.
struct Problem {
    int64_t rows, k, n;
    Layout layout;
    DType dtype;
    std::vector<float> x;
    Typed w;

    Problem(int64_t row_count, int64_t depth, int64_t columns, DType type, const Layout& places)
        : rows(row_count),
          k(depth),
          n(columns),
          layout(places),
          dtype(type),
          x(Numbers(seed()).floats(extent(rows, k, places.x_gap, places.offset))),
          w(Numbers(seed() + 1).floats(extent(n, k, places.w_gap, places.offset)), type) {}

    uint32_t seed() const { return static_cast<uint32_t>(rows * 31 + k * 7 + n); }
    int64_t out_stride() const { return n + layout.out_gap; }
    std::vector<float> out() const {
        const int64_t size = extent(rows, n, layout.out_gap, layout.offset);
        return std::vector<float>(static_cast<size_t>(size), 7.0f);
    }
    Matrix matrix(const void* data) const {
        const auto* first = static_cast<const std::byte*>(data) + layout.offset * dtype_size(dtype);
        return {first, dtype, n, k, k + layout.w_gap};
    }
    int64_t w_bytes() const {
        return extent(n, k, layout.w_gap, layout.offset) * dtype_size(dtype);
    }
};

/// What an epilogue adds; here, and on the device.
struct Added {
    std::vector<float> bias, residual;
    bool to_output = false;  ///< the residual is the output itself
};

/// Where p.rows rows from `first` on are given, in memory of the device; the rest of `out` stays.
std::vector<float> on_device(const Problem& p, Compute compute, Epilogue epilogue,
                             const Added& added, int64_t first, int64_t count) {
    const DeviceArray<float> x(p.x), bias(added.bias), residual(added.residual), out(p.out());
    const DeviceBytes w(p.w.data(), p.w_bytes());
    const int64_t at = p.layout.offset + first * p.out_stride();
    if (!added.bias.empty()) epilogue.bias = bias.data();
    if (!added.residual.empty()) epilogue.residual = residual.data() + at;
    if (added.to_output) epilogue.residual = out.data() + at;
    const int64_t x_stride = p.k + p.layout.x_gap;
    one_layer(cuda::linear, x.data() + p.layout.offset + first * x_stride, count, x_stride,
              p.matrix(w.data()), epilogue, compute, out.data() + at, p.out_stride());
    return out.values();
}

std::vector<float> on_device(const Problem& p, Compute compute, const Epilogue& epilogue = {},
                             const Added& added = {}) {
    return on_device(p, compute, epilogue, added, 0, p.rows);
}

std::vector<float> expected(const Problem& p, Compute compute, Epilogue epilogue = {},
                            const Added& added = {}) {
    std::vector<float> out = p.out();
    float* to = out.data() + p.layout.offset;
    if (!added.bias.empty()) epilogue.bias = added.bias.data();
    if (!added.residual.empty()) epilogue.residual = added.residual.data() + p.layout.offset;
    if (added.to_output) epilogue.residual = to;
    reference::linear(p.x.data() + p.layout.offset, p.rows, p.k + p.layout.x_gap,
                      p.matrix(p.w.data()), epilogue, compute, to, p.out_stride());
    return out;
}

void check_product(int64_t rows, int64_t k, int64_t n, DType dtype, Compute compute,
                   const Layout& layout) {
    CAPTURE(rows);
    CAPTURE(k);
    CAPTURE(n);
    CAPTURE(std::string(dtype_name(dtype)));
    CAPTURE(compute == Compute::f32);
    CAPTURE(layout.name);
    const Problem p(rows, k, n, dtype, layout);
    const std::vector<float> right = expected(p, compute);
    in_both_orders([&] {
        std::vector<float> found = on_device(p, compute);
        CHECK(compare(found, right, sum_tolerance(k)) == "");
        return found;
    });
}

constexpr DType weight_types[] = {DType::f32, DType::bf16, DType::f16};

constexpr Compute computes[] = {Compute::f32, Compute::bf16};

/// All combinations of types and layouts.
void for_each_kind(const std::function<void(DType, Compute, const Layout&)>& test) {
    for (const DType dtype : weight_types) {
        for (const Compute compute : computes) {
            for (const Layout& layout : layouts) test(dtype, compute, layout);
        }
    }
}

}  // namespace

TEST_CASE("cuda_linear_of_any_depth_matches_reference") {
    if (!has_device()) return;
    for_each_kind([](DType dtype, Compute compute, const Layout& layout) {
        // Around a piece, the four lanes of a row, a step of a warp; all warps, and more.
        for (const int64_t k : {0, 1, 8, 9, 33, 40, 127, 136, 1160})
            check_product(3, k, 5, dtype, compute, layout);
        for (const int64_t rows : {9, 33, 70}) {
            for (const int64_t k : {0, 1, 40, 136})
                check_product(rows, k, 5, dtype, compute, layout);
        }
    });
}

TEST_CASE("cuda_linear_of_any_rows_and_columns_matches_reference") {
    if (!has_device()) return;
    for_each_kind([](DType dtype, Compute compute, const Layout& layout) {
        // Around one, two and four tiles of rows, as many as go together, and what is many.
        for (const int64_t rows : {1, 2, 5, 8, 9, 16, 17, 32, 33, 64, 65, 80})
            check_product(rows, 48, 19, dtype, compute, layout);
        for (const int64_t n : {1, 4, 7, 8, 17}) {
            check_product(2, 40, n, dtype, compute, layout);
            for (const int64_t rows : {11, 20, 66})
                check_product(rows, 16, n, dtype, compute, layout);
        }
        check_product(0, 16, 3, dtype, compute, layout);
        check_product(2, 16, 0, dtype, compute, layout);
        for (const int64_t rows : {20, 70}) check_product(rows, 16, 0, dtype, compute, layout);
    });
}

TEST_CASE("cuda_linear_of_many_columns_matches_reference") {
    if (!has_device()) return;
    check_product(1, 40, 4095, DType::bf16, Compute::bf16, packed);
    check_product(2, 40, 4096, DType::bf16, Compute::bf16, packed);
    check_product(3, 40, 4105, DType::bf16, Compute::bf16, crooked);
    check_product(12, 40, 4095, DType::bf16, Compute::bf16, packed);
}

TEST_CASE("cuda_linear_every_epilogue_matches_reference") {
    if (!has_device()) return;
    for (const Activation activation :
         {Activation::none, Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu,
          Activation::silu, Activation::relu}) {
        // Few and many of each; 40 are two times what goes together.
        for (const auto& [rows, compute] : {std::pair<int64_t, Compute>{3, Compute::f32},
                                            {13, Compute::f32},
                                            {40, Compute::bf16},
                                            {70, Compute::bf16}}) {
            for (const Layout& layout : {aligned, crooked}) {
                CAPTURE(static_cast<int>(activation));
                CAPTURE(rows);
                CAPTURE(layout.name);
                const Problem p(rows, 24, 19, DType::f32, layout);
                const std::vector<float> bias = Numbers(8).floats(p.n), none;
                const std::vector<float> residual =
                    Numbers(9).floats(static_cast<int64_t>(p.out().size()));
                const Tolerance tolerance{(24 + 16) * unit_roundoff, 16 * unit_roundoff};
                for (const std::vector<float>& shift : {none, bias}) {
                    for (const Added& added :
                         {Added{shift, none}, Added{shift, residual}, Added{shift, none, true}}) {
                        for (const float scale : {0.75f, 1.0f}) {
                            const Epilogue epilogue{nullptr, activation, scale, nullptr};
                            CHECK(compare(on_device(p, compute, epilogue, added),
                                          expected(p, compute, epilogue, added), tolerance) == "");
                        }
                    }
                }
            }
        }
    }
}

TEST_CASE("cuda_linear_not_finite_input_stays_in_its_row_or_column") {
    if (!has_device()) return;
    for (const int64_t rows : {5, 8, 12, 70}) {
        for (const Compute compute : computes) {
            for (const DType dtype : weight_types) {
                constexpr float inf = std::numeric_limits<float>::infinity();
                constexpr float nan = std::numeric_limits<float>::quiet_NaN();
                const int64_t k = 40, n = 21;
                Problem p(rows, k, n, dtype, packed);
                std::vector<float> w = Numbers(11).floats(n * k, 0.5f, 1.0f);
                w[static_cast<size_t>(20 * k + 7)] = nan;
                w[static_cast<size_t>(3 * k + 9)] = inf;
                p.w = Typed(w, dtype);
                p.x[static_cast<size_t>(2 * k + 34)] = nan;
                p.x[static_cast<size_t>(4 * k + 1)] = inf;
                const std::vector<float> found = on_device(p, compute);
                CHECK(compare(found, expected(p, compute), sum_tolerance(k)) == "");
                CHECK(std::isnan(found[2 * n]));
                CHECK(std::isinf(found[4 * n]));
                CHECK(std::isfinite(found[0]));
            }
        }
    }
}

TEST_CASE("cuda_linear_a_row_of_few_does_not_depend_on_the_others_bit_for_bit") {
    if (!has_device()) return;
    for_each_kind([](DType dtype, Compute compute, const Layout& layout) {
        CAPTURE(std::string(dtype_name(dtype)));
        CAPTURE(layout.name);
        const Problem p(compute == Compute::bf16 ? cuda::few_rows_bf16 : cuda::few_rows, 1160, 5,
                        dtype, layout);
        const Epilogue epilogue{nullptr, Activation::silu, 0.5f, nullptr};
        const std::vector<float> all = on_device(p, compute, epilogue);
        for (const int64_t count : {1, 3, 14, 29}) {
            std::vector<float> pieces = p.out();
            for (int64_t first = 0; first < p.rows; first += count) {
                const int64_t rows = std::min(count, p.rows - first);
                const std::vector<float> some = on_device(p, compute, epilogue, {}, first, rows);
                const int64_t at = p.layout.offset + first * p.out_stride();
                const int64_t end = at + extent(rows, p.n, p.layout.out_gap, 0);
                std::copy(some.begin() + at, some.begin() + end, pieces.begin() + at);
            }
            CHECK(compare_bits(pieces, all) == "");
        }
    });
}

TEST_CASE("cuda_linear_is_cut_where_its_panels_would_not_fit_the_workspace") {
    if (!has_device()) return;
    const Epilogue epilogue{nullptr, Activation::relu, 0.5f, nullptr};
    // Rows of x: of 8 MiB each, where a panel has some 90. Rows of w: 2^14 at a time.
    const Problem deep(13, int64_t{1} << 21, 2, DType::f32, packed);
    const Problem wide(9, 8, 16400, DType::f32, packed);
    const Added to_deep{Numbers(1).floats(deep.n), Numbers(2).floats(deep.rows * deep.n)};
    const Added to_wide{Numbers(1).floats(wide.n), {}, true};
    CHECK(compare(on_device(deep, Compute::f32, epilogue, to_deep),
                  expected(deep, Compute::f32, epilogue, to_deep), sum_tolerance(deep.k)) == "");
    CHECK(compare(on_device(wide, Compute::f32, epilogue, to_wide),
                  expected(wide, Compute::f32, epilogue, to_wide), {1e-6, 1e-6}) == "");
}

}  // namespace mllama::test
