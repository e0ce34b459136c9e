// Linear layers of the same x in many forms, in an order that puts equal ones side by side and apart:
// for tests of what takes several at once.
#pragma once

#include <memory>
#include <vector>

#include "tests/coded_matrices.h"
#include "tests/compare.h"

namespace mllama::test {

class MixedLayers {
  public:
    struct Layer {
        Compute compute;
        Matrix w;  ///< (rows, cols)
        std::vector<float> bias;
        Activation activation = Activation::none;
        bool to_residual = false;  ///< adds to what is in the output

        std::unique_ptr<Typed> plain;  ///< what holds w: one of the two
        std::unique_ptr<Coded> coded;

        /// w in other memory: copy(data, bytes) gives the address of a copy.
        template <class Copy>
        [[nodiscard]] Matrix in_memory_of(const Copy& copy) const {
            if (coded) return coded->in_memory_of(copy);
            Matrix there = w;
            there.data = copy(w.data, w.rows * w.cols * dtype_size(w.dtype));
            return there;
        }
        /// All but pointers to memory of a device.
        [[nodiscard]] Epilogue epilogue() const {
            Epilogue result;
            result.activation = activation;
            result.scale = to_residual ? 0.5f : 1.0f;
            return result;
        }
    };

    explicit MixedLayers(int64_t cols) : cols_(cols) {
        const Style int8{.coding = Coding::int8, .name = "int8"};
        const Style int4{.coding = Coding::int4, .name = "int4, 32", .group = 32};
        const Style zeros{.coding = Coding::int4,
                          .name = "int4, 32, zeros, f16",
                          .group = 32,
                          .zeros = true,
                          .scale = DType::f16};
        const Style row{.coding = Coding::int8, .name = "int8, f32", .scale = DType::f32};
        const Style wide{.coding = Coding::int4, .name = "int4, 128", .group = 128, .zeros = true};
        const Style nf4{.coding = Coding::nf4, .name = "nf4", .group = 64, .scale = DType::f32};
        for (const int64_t rows : {70, 0, 5}) add(rows, DType::bf16, Compute::bf16);
        add(20, DType::f16, Compute::bf16);
        for (const int64_t rows : {33, 2, 7, 8, 12}) add(rows, DType::bf16, Compute::bf16);
        add(9, DType::bf16, Compute::f32);
        add(40, int8, Compute::int8);
        add(17, row, Compute::int8);
        add(16, int8, Compute::bf16);
        add(24, int4, Compute::int8);
        add(16, zeros, Compute::int8);
        add(8, int4, Compute::int8);
        add(35, wide, Compute::int8);
        add(11, int8, Compute::int8);
        add(40, nf4, Compute::bf16);
        add(8, DType::bf16, Compute::bf16);
        for (const int64_t rows : {3, 130}) add(rows, DType::f32, Compute::f32);
    }
    [[nodiscard]] const std::vector<Layer>& layers() const { return layers_; }

  private:
    void add(int64_t rows, DType dtype, Compute compute) {
        const auto seed = static_cast<uint32_t>(layers_.size());
        auto plain = std::make_unique<Typed>(Numbers(seed).floats(rows * cols_), dtype);
        const Matrix w{plain->data(), dtype, rows, cols_, cols_};
        layers_.push_back(
            {.compute = compute, .w = w, .bias = {}, .plain = std::move(plain), .coded = {}});
        vary(layers_.back());
    }
    void add(int64_t rows, const Style& style, Compute compute) {
        const auto seed = static_cast<uint32_t>(layers_.size());
        auto coded = std::make_unique<Coded>(style, rows, cols_, seed);
        const Matrix w = coded->matrix();
        layers_.push_back(
            {.compute = compute, .w = w, .bias = {}, .plain = {}, .coded = std::move(coded)});
        vary(layers_.back());
    }
    void vary(Layer& layer) {
        const size_t i = layers_.size();
        if (i % 2 == 0) layer.bias = Numbers(7).floats(layer.w.rows);
        if (i % 3 == 0) layer.activation = Activation::silu;
        layer.to_residual = i % 4 == 1;
    }

    int64_t cols_;
    std::vector<Layer> layers_;
};

}  // namespace mllama::test
