// Several linear layers of the same rows in one call of the GPU: each has the bits that it has alone.
#include <cstring>
#include <deque>
#include <span>

#include "tests/cuda/device.h"
#include "tests/mixed_layers.h"

namespace mllama::test {
namespace {

constexpr int64_t gap = 3;  // elements behind each row of an output, which nothing may write

/// The layers in memory of the device. crooked: the weights of every other one do not begin at an
/// aligned address.
class DeviceLayers {
  public:
    DeviceLayers(const MixedLayers& mixed, bool crooked) : mixed_(mixed) {
        for (const MixedLayers::Layer& layer : mixed.layers()) {
            const int64_t offset = crooked && matrices_.size() % 2 == 0 ? 4 : 0;
            matrices_.push_back(layer.in_memory_of([&](const void* data, int64_t bytes) {
                return copy(data, bytes, data == layer.w.data ? offset : 0);
            }));
            biases_.emplace_back(layer.bias);
        }
    }
    /// The outputs of all layers, one behind the other: given all at once, or one by one.
    [[nodiscard]] std::vector<float> run(const std::vector<float>& x, int64_t rows,
                                         bool together) const {
        const DeviceArray<float> in(x);
        std::deque<DeviceArray<float>> outputs;
        std::vector<Projection> projections;
        for (size_t i = 0; i < matrices_.size(); ++i) {
            const MixedLayers::Layer& layer = mixed_.layers()[i];
            const int64_t stride = layer.w.rows + gap;
            outputs.emplace_back(std::vector<float>(static_cast<size_t>(rows * stride), 0.25f));
            Epilogue epilogue = layer.epilogue();
            if (!layer.bias.empty()) epilogue.bias = biases_[i].data();
            if (layer.to_residual) epilogue.residual = outputs.back().data();
            projections.push_back(
                {matrices_[i], epilogue, layer.compute, outputs.back().data(), stride});
        }
        const int64_t x_stride = matrices_.front().cols + 4;
        const Matrix all_x{in.data(), DType::f32, rows, matrices_.front().cols, x_stride};
        const size_t step = together ? projections.size() : 1;
        for (size_t i = 0; i < projections.size(); i += step)
            cuda::linear(all_x, std::span(projections).subspan(i, step));
        std::vector<float> all;
        for (const auto& output : outputs) {
            const std::vector<float> values = output.values();
            all.insert(all.end(), values.begin(), values.end());
        }
        return all;
    }

  private:
    void* copy(const void* data, int64_t bytes, int64_t offset) {
        std::vector<std::byte> image(static_cast<size_t>(offset + bytes));
        if (bytes > 0) std::memcpy(image.data() + offset, data, static_cast<size_t>(bytes));
        arrays_.emplace_back(image.data(), offset + bytes);
        return static_cast<std::byte*>(arrays_.back().data()) + offset;
    }
    const MixedLayers& mixed_;
    std::deque<DeviceBytes> arrays_;
    std::deque<DeviceArray<float>> biases_;
    std::vector<Matrix> matrices_;
};

}  // namespace

TEST_CASE("cuda_linear_of_several_layers_has_the_bits_of_each_alone") {
    if (!has_device()) return;
    for (const int64_t cols : {64, 200, 1024}) {
        CAPTURE(cols);
        const MixedLayers mixed(cols);
        for (const bool crooked : {false, true}) {
            CAPTURE(crooked);
            const DeviceLayers layers(mixed, crooked);
            for (const int64_t rows : {1, 2, 3, 8, 20, 70}) {
                CAPTURE(rows);
                const std::vector<float> x = Numbers(1).floats(rows * (cols + 4));
                const std::vector<float> alone = layers.run(x, rows, false);
                in_both_orders([&] {
                    std::vector<float> found = layers.run(x, rows, true);
                    CHECK(compare_bits(found, alone) == "");
                    return found;
                });
            }
        }
    }
}

TEST_CASE("cuda_linear_of_several_layers_of_many_rows_has_the_bits_of_each_alone") {
    if (!has_device()) return;
    // Together they have rows enough for blocks of two tiles, which neither has alone.
    constexpr int64_t cols = 64, w_rows = 2056, x_rows = 2;
    const Typed numbers(Numbers(3).floats(2 * w_rows * cols), DType::bf16);
    const DeviceBytes weights(numbers.data(), 2 * w_rows * cols * 2);
    const DeviceArray<float> x(Numbers(4).floats(x_rows * cols));
    const auto run = [&](bool together) {
        const DeviceArray<float> out(std::vector<float>(2 * x_rows * w_rows, 7.0f));
        std::vector<Projection> projections;
        for (int64_t i = 0; i < 2; ++i) {
            const auto* data = static_cast<const uint16_t*>(weights.data()) + i * w_rows * cols;
            projections.push_back({{data, DType::bf16, w_rows, cols, cols},
                                   {},
                                   Compute::bf16,
                                   out.data() + i * x_rows * w_rows,
                                   w_rows});
        }
        const size_t step = together ? 2 : 1;
        for (size_t i = 0; i < 2; i += step)
            cuda::linear({x.data(), DType::f32, x_rows, cols, cols},
                         std::span(projections).subspan(i, step));
        return out.values();
    };
    CHECK(compare_bits(run(true), run(false)) == "");
}

}  // namespace mllama::test
