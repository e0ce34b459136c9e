// One linear layer, and attention of one sequence, on either device: the operations take several.
#pragma once

#include "kernels/arguments.h"

namespace mllama::test {

/// out = epilogue(x w^T) by cpu::linear or cuda::linear: x (rows, w.cols), rows x_stride apart.
inline void one_layer(void (*linear)(const Matrix&, std::span<const Projection>), const float* x,
                      int64_t rows, int64_t x_stride, const Matrix& w, const Epilogue& epilogue,
                      Compute compute, Floats out, int64_t out_stride) {
    const Projection projection{w, epilogue, compute, out, out_stride};
    linear({x, DType::f32, rows, w.cols, x_stride}, {&projection, 1});
}

/// cpu::attention or cuda::attention.
inline void one_sequence(void (*attention)(std::span<const Attention>, Compute),
                         const Attention& args, Compute compute) {
    attention({&args, 1}, compute);
}

}  // namespace mllama::test
