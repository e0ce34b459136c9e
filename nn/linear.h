// A linear layer: out = x weight^T + bias.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "tensor/ops.h"

namespace mllama {

/// What has gone into a layer, column by column.
struct InputStatistic {
    std::vector<double> sum_of_squares;  ///< (in_features)
    int64_t rows = 0;

    /// x (rows, in_features)
    void add(const Tensor& x);
};

/// The statistic that a layer keeps, by its name; null: none.
using InputStatistics = std::function<std::shared_ptr<InputStatistic>(const std::string& module)>;

struct Linear {
    Weight weight;                   ///< (out_features, in_features), as stored
    Tensor bias;                     ///< (out_features) f32, or undefined
    Compute compute = Compute::f32;  ///< what x and weight are rounded to for the products

    std::shared_ptr<InputStatistic> statistic = nullptr;  ///< usually none

    [[nodiscard]] int64_t out_features() const { return weight.rows; }
    [[nodiscard]] int64_t in_features() const { return weight.cols; }

    /// Calls visit(Tensor&) for the parameters; every module has one.
    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        weight.for_each_tensor(visit);
        if (bias.defined()) visit(bias);
    }

    /// x (rows, in_features) -> out (rows, out_features)
    void forward(const Tensor& x, Tensor& out, Activation activation = Activation::none) const {
        if (statistic) statistic->add(x);
        ops::linear(x, weight, {.bias = bias, .activation = activation, .residual = {}}, compute,
                    out);
    }

    /// The type in which activations of so many rows are best held that these layers alone read; one of
    /// them may be who writes them.
    static DType activation_dtype(std::initializer_list<const Linear*> layers, int64_t rows);

    /// Layers of the same x (rows, in_features), together: outs (rows, out_features of the layer).
    struct Branch {
        const Linear& layer;
        Tensor& out;
    };
    static void forward_all(const Tensor& x, std::initializer_list<Branch> branches);

    /// h += scale * (x weight^T + bias): a residual branch that ends here. h (rows, out_features)
    void add_to(Tensor& h, const Tensor& x, float scale = 1.0f) const {
        if (statistic) statistic->add(x);
        ops::linear(x, weight, {.bias = bias, .scale = scale, .residual = h}, compute, h);
    }
};

}  // namespace mllama
