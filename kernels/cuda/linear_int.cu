// Linear layers of integers: the rows of x are rounded to int8, and multiplied with the weights as
// they are stored.
#include <algorithm>

#include "kernels/cuda/linear_int.h"
#include "kernels/cuda/linear_int_parts.h"
#include "kernels/cuda/linear_parts.h"
#include "kernels/error.h"

namespace mllama::cuda {
namespace {

/// Throws for what the sums of the kernels cannot hold.
void check_sums(const Matrix& w) {
    if (w.cols > most_int_columns) {
        fail("CUDA: a linear layer of ", w.cols, " columns in int8 or int4: ", most_int_columns,
             " is the most");
    }
    const int32_t zero = w.groups.zero == nullptr ? w.groups.zero_add : 0;
    if (zero <= -zero_limit || zero >= zero_limit) fail("CUDA: zero points of ", zero, " in int4");
}

}  // namespace

bool same_int_layout(const Matrix& a, const Matrix& b) {
    return int_layout(a) == int_layout(b);
}

void linear_int(const float* x, int64_t rows, int64_t x_stride,
                std::span<const Projection> layers) {
    for (const Projection& layer : layers) check_sums(layer.w);
    const IntLayout layout = int_layout(layers.front().w);
    const bool few = rows <= few_rows;
    const int64_t multiple = few ? few_rows : tile_rows;
    const int64_t most = most_int_rows(layout, multiple);
    for (int64_t r = 0; r < rows; r += most) {
        Workspace memory;
        const IntRows numbers = quantise_rows(x + r * x_stride, std::min(most, rows - r), x_stride,
                                              layout, multiple, memory);
        if (few) {  // all of them: r is 0
            linear_int_few(numbers, layers);
            continue;
        }
        for (const auto& [w, epilogue, compute, out, out_stride] : layers) {
            linear_int_tile(numbers, IntWeights(w, layout), part_of(epilogue, r, 0, out_stride),
                            out.f32() + r * out_stride, out_stride);
        }
    }
}

}  // namespace mllama::cuda
