#include "nn/mlp.h"

#include <algorithm>

namespace mllama {
void Mlp::add_to(Tensor& h, const Tensor& x, float scale, Arena& scratch) const {
    const int64_t rows_at_a_time = ops::rows_at_a_time(x.device());
    for (int64_t begin = 0; begin < x.rows(); begin += rows_at_a_time) {
        const int64_t end = std::min(begin + rows_at_a_time, x.rows());
        const Arena::Scope scope(scratch);
        const DType dtype = Linear::activation_dtype({&fc1, &fc2}, end - begin);
        Tensor inner =
            scratch.take({end - begin, fc1.out_features()}, dtype);  // (rows, intermediate_size)
        fc1.forward(x.rows(begin, end), inner, activation);
        Tensor rows = h.rows(begin, end);
        fc2.add_to(rows, inner, scale);
    }
}

void GatedMlp::add_to(Tensor& h, const Tensor& x, float scale, Arena& scratch) const {
    const int64_t rows_at_a_time = ops::rows_at_a_time(x.device());
    for (int64_t begin = 0; begin < x.rows(); begin += rows_at_a_time) {
        const int64_t end = std::min(begin + rows_at_a_time, x.rows());
        const Arena::Scope scope(scratch);
        Tensor g = scratch.take({end - begin, gate.out_features()});  // (rows, intermediate_size)
        Tensor u = scratch.take({end - begin, up.out_features()});    // (rows, intermediate_size)
        Linear::forward_all(x.rows(begin, end), {{gate, g}, {up, u}});
        const DType dtype = Linear::activation_dtype({&down}, end - begin);
        Tensor inner = dtype == g.dtype() ? g : scratch.take(g.shape(), dtype);
        ops::gated(g, u, activation, inner);
        Tensor rows = h.rows(begin, end);
        down.add_to(rows, inner, scale);
    }
}

}  // namespace mllama
