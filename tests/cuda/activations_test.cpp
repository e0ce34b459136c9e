// Activations in bfloat16: what an operation writes there are its float32 results, each rounded; and
// linear layers make of them what they make of float32.
#include <cstring>

#include "kernels/cuda/order.h"
#include "tests/attention_problem.h"
#include "tests/cuda/device_matrix.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

/// Around a thread's four elements, a panel's eight, a warp's, and a block's.
constexpr int64_t widths[] = {1, 3, 4, 5, 8, 9, 33, 64, 127, 512, 516, 1028};
/// How many elements behind an aligned address results begin.
constexpr int64_t shifts[] = {0, 1, 4};

std::vector<float> rounded(std::vector<float> values) {
    for (float& value : values) value = bf16_to_f32(f32_to_bf16(value));
    return values;
}

/// Numbers in memory of the device, `shift` elements behind an aligned address.
class Numbers16 {
  public:
    Numbers16(const std::vector<float>& values, int64_t shift)
        : numbers_(padded(values, shift), DType::bf16),
          bytes_(numbers_.data(), (shift + static_cast<int64_t>(values.size())) * 2),
          shift_(shift) {}
    [[nodiscard]] const void* data() const {
        return static_cast<const uint16_t*>(bytes_.data()) + shift_;
    }

  private:
    static std::vector<float> padded(std::vector<float> values, int64_t shift) {
        values.insert(values.begin(), static_cast<size_t>(shift), 0.0f);
        return values;
    }
    Typed numbers_;
    DeviceBytes bytes_;
    int64_t shift_;
};

/// What an operation leaves in an array of n elements of this type, which was full of sevens.
using Operation = std::function<void(const Floats&)>;
std::vector<float> results(int64_t n, DType dtype, int64_t shift, const Operation& operation) {
    const int64_t all = n + shift;
    std::vector<std::byte> host(static_cast<size_t>(all * dtype_size(dtype)));
    const Typed sevens(std::vector<float>(static_cast<size_t>(all), 7.0f), dtype);
    const DeviceBytes memory(sevens.data(), all * dtype_size(dtype));
    operation(Floats(memory.data(), dtype).from(shift));
    cuda::copy_to_host(host.data(), memory.data(), memory.bytes());
    std::vector<float> values;
    for (int64_t i = 0; i < all; ++i) values.push_back(float_element(host.data(), dtype, i));
    return values;
}

/// Results in bf16 are those in f32, rounded.
void check_rounded(int64_t n, int64_t shift, const Operation& operation) {
    CAPTURE(shift);
    const std::vector<float> expected = rounded(results(n, DType::f32, shift, operation));
    in_both_orders([&] {
        std::vector<float> found = results(n, DType::bf16, shift, operation);
        CHECK(compare_bits(found, expected) == "");
        return found;
    });
}

/// A layer of random numbers on the device.
struct Layer {
    int64_t k, n;
    DeviceArray<float> bias;
    Numbers16 numbers;

    Layer(int64_t depth, int64_t columns)
        : k(depth),
          n(columns),
          bias(Numbers(8).floats(columns)),
          numbers(Numbers(2).floats(depth * columns), 0) {}
    [[nodiscard]] Matrix w() const { return {numbers.data(), DType::bf16, n, k, k}; }
};

void multiply(const Matrix& x, const Matrix& w, const Epilogue& epilogue, const Floats& out,
              int64_t out_stride) {
    const Projection projection{w, epilogue, Compute::bf16, out, out_stride};
    cuda::linear(x, {&projection, 1});
}

}  // namespace

TEST_CASE("cuda_norms_into_bfloat16_are_those_into_float32_rounded") {
    if (!has_device()) return;
    for (const int64_t width : widths) {
        CAPTURE(width);
        const int64_t rows = 3;
        const DeviceArray<float> x(Numbers(1).floats(rows * width));
        const DeviceArray<float> weight(Numbers(2).floats(width)), bias(Numbers(3).floats(width));
        for (const int64_t shift : shifts) {
            check_rounded(rows * width, shift, [&](const Floats& out) {
                cuda::rms_norm(x.data(), rows, width, weight.data(), DType::f32, 1e-5f, out);
            });
            check_rounded(rows * width, shift, [&](const Floats& out) {
                cuda::layer_norm(x.data(), rows, width, weight.data(), bias.data(), DType::f32,
                                 1e-5f, out);
            });
        }
    }
}

TEST_CASE("cuda_norms_of_wide_rows_into_bfloat16_are_those_into_float32_rounded") {
    if (!has_device()) return;
    constexpr int64_t width = 8196;  // more than the registers of a block hold
    const DeviceArray<float> x(Numbers(1).floats(width)), weight(Numbers(2).floats(width));
    check_rounded(width, 0, [&](const Floats& out) {
        cuda::rms_norm(x.data(), 1, width, weight.data(), DType::f32, 1e-5f, out);
    });
    check_rounded(width, 0, [&](const Floats& out) {
        cuda::layer_norm(x.data(), 1, width, weight.data(), weight.data(), DType::f32, 1e-5f, out);
    });
}

TEST_CASE("cuda_gated_into_bfloat16_is_that_into_float32_rounded") {
    if (!has_device()) return;
    for (const int64_t width : widths) {
        CAPTURE(width);
        const int64_t rows = 3;
        const DeviceArray<float> gate(Numbers(1).floats(rows * width, -4.0f, 4.0f));
        const DeviceArray<float> up(Numbers(2).floats(rows * width));
        for (const int64_t shift : shifts) {
            for (const int64_t gap : {0, 3, 4}) {
                check_rounded(rows * (width + gap), shift, [&](const Floats& out) {
                    cuda::gated(gate.data(), up.data(), rows, width, width, Activation::silu, out,
                                width + gap);
                });
            }
        }
    }
}

TEST_CASE("cuda_attention_into_bfloat16_is_that_into_float32_rounded") {
    if (!has_device()) return;
    const AttentionShape shapes[] = {{1, 300, 4, 2, 24},   // pieces of keys, brought together
                                     {3, 70, 4, 2, 20},    // the same by the plain kernel
                                     {9, 70, 4, 2, 20},    // the plain kernel alone
                                     {70, 100, 4, 2, 24},  // tiles, of each shape, and warpgroups
                                     {70, 100, 2, 1, 80}, {70, 100, 2, 1, 128}};
    for (const AttentionShape& s : shapes) {
        for (const int way : {0, 1, 2}) {
            const Compute compute = way == 0 ? Compute::f32 : Compute::bf16;
            cuda::allow_warpgroups(way == 1);
            CAPTURE(s.queries);
            CAPTURE(s.head_dim);
            AttentionProblem problem(s, DType::bf16);
            problem.causal_rule();
            const DeviceArray<float> q(problem.q);
            const DeviceArray<uint32_t> k(problem.k), v(problem.v);
            check_rounded(s.queries * problem.args.out_stride, 0, [&](const Floats& out) {
                Attention args = problem.args;
                args.q = q.data();
                args.k = k.data();
                args.v = v.data();
                args.out = out;
                one_sequence(cuda::attention, args, compute);
            });
        }
    }
    cuda::allow_warpgroups(true);
}

TEST_CASE("cuda_linear_into_bfloat16_is_that_into_float32_rounded") {
    if (!has_device()) return;
    for (const int64_t n : widths) {
        const Layer layer(24, n);
        for (const int64_t rows : {3, 13, 70}) {
            CAPTURE(n);
            CAPTURE(rows);
            const DeviceArray<float> x(Numbers(1).floats(rows * layer.k));
            const Matrix x_rows{x.data(), DType::f32, rows, layer.k, layer.k};
            for (const int64_t gap : {0, 3, 4}) {
                const DeviceArray<float> residual(Numbers(9).floats(rows * (n + gap)));
                const Epilogue epilogues[] = {{},
                                              {layer.bias.data()},
                                              {layer.bias.data(), Activation::gelu},
                                              {nullptr, Activation::silu, 0.5f, residual.data()}};
                for (const Epilogue& epilogue : epilogues) {
                    for (const int64_t shift : shifts) {
                        check_rounded(rows * (n + gap), shift, [&](const Floats& out) {
                            multiply(x_rows, layer.w(), epilogue, out, n + gap);
                        });
                    }
                }
            }
        }
    }
}

TEST_CASE("cuda_linear_of_bfloat16_has_the_bits_of_the_float32_that_rounds_to_it") {
    if (!has_device()) return;
    for (const int64_t k : {1, 8, 9, 40, 64, 200}) {
        const Layer layer(k, 19);
        for (const int64_t rows : {9, 21, 64, 70}) {
            for (const int64_t gap : {0, 3, 8}) {
                for (const int64_t shift : {0, 1, 8}) {
                    CAPTURE(k);
                    CAPTURE(rows);
                    CAPTURE(gap);
                    CAPTURE(shift);
                    const int64_t stride = k + gap;
                    const std::vector<float> numbers = Numbers(1).floats(rows * stride);
                    const DeviceArray<float> x(numbers);
                    const Numbers16 x16(numbers, shift);
                    const Epilogue epilogue{layer.bias.data(), Activation::gelu};
                    const auto product = [&](const Matrix& of) {
                        return results(rows * layer.n, DType::f32, 0, [&](const Floats& out) {
                            multiply(of, layer.w(), epilogue, out, layer.n);
                        });
                    };
                    CHECK(compare_bits(product({x16.data(), DType::bf16, rows, k, stride}),
                                       product({x.data(), DType::f32, rows, k, stride})) == "");
                }
            }
        }
    }
}

TEST_CASE("cuda_linear_of_few_rows_takes_and_writes_bfloat16_too") {
    if (!has_device()) return;
    const Layer layer(40, 19);
    for (const int64_t rows : {1, 8, 40}) {
        const std::vector<float> numbers = Numbers(1).floats(rows * layer.k);
        const DeviceArray<float> x(numbers);
        const Numbers16 x16(numbers, 0);
        const Matrix as_f32{x.data(), DType::f32, rows, layer.k, layer.k};
        const Matrix as_bf16{x16.data(), DType::bf16, rows, layer.k, layer.k};
        const auto product = [&](const Matrix& of, DType dtype) {
            return results(rows * layer.n, dtype, 0,
                           [&](const Floats& out) { multiply(of, layer.w(), {}, out, layer.n); });
        };
        const std::vector<float> expected = product(as_f32, DType::f32);
        const Tolerance tolerance = sum_tolerance(layer.k);
        CHECK(compare(product(as_bf16, DType::f32), expected, tolerance) == "");
        const Tolerance of_bf16{0x1p-8, 0x1p-8};
        CHECK(compare(product(as_bf16, DType::bf16), expected, of_bf16) == "");
        CHECK(compare(product(as_f32, DType::bf16), expected, of_bf16) == "");
    }
}

}  // namespace mllama::test
