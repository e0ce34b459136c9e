#include "nn/linear.h"

#include <array>
#include <cassert>
#include <span>

namespace mllama {

void InputStatistic::add(const Tensor& rows_of_x) {
    const Tensor x = rows_of_x.to(Device::cpu);
    const int64_t width = x.cols();
    sum_of_squares.resize(static_cast<size_t>(width));
    for (int64_t row = 0; row < x.rows(); ++row) {
        const float* from = x.data<float>() + row * x.row_stride();
        for (int64_t i = 0; i < width; ++i) {
            const double value = from[i];
            sum_of_squares[static_cast<size_t>(i)] += value * value;
        }
    }
    rows += x.rows();
}

DType Linear::activation_dtype(std::initializer_list<const Linear*> layers, int64_t rows) {
    for (const Linear* layer : layers) {
        const Device device = layer->weight.data.device();
        if (layer->statistic) return DType::f32;
        if (ops::activation_dtype(device, layer->compute, rows) == DType::f32) return DType::f32;
    }
    return DType::bf16;
}

void Linear::forward_all(const Tensor& x, std::initializer_list<Branch> branches) {
    assert(branches.size() <= most_projections);
    std::array<ops::LinearCall, most_projections> calls;
    size_t count = 0;
    for (const auto& [layer, out] : branches) {
        if (layer.statistic) layer.statistic->add(x);
        calls[count++] = {&layer.weight, {.bias = layer.bias, .residual = {}}, layer.compute, &out};
    }
    ops::linear(x, std::span(calls).first(count));
}

}  // namespace mllama
