// Operations row by row and element by element: threads over the leaves of a table.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/blocking.h"
#include "kernels/cpu.h"
#include "kernels/cpu_ops.h"
#include "kernels/thread_team.h"

namespace mllama::cpu {
namespace {

/// Elements that a thread takes at a time in the operations without rows.
constexpr int64_t element_piece = 16384;

}  // namespace

void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, Floats out) {
    const Table& leaves = table();
    float* to = out.f32();
    for_each_row(rows, width, [&](int64_t r) {
        leaves.rms_norm(x + r * width, width, weight, weight_dtype, eps, to + r * width);
    });
}

void layer_norm(const float* x, int64_t rows, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, Floats out) {
    const Table& leaves = table();
    float* to = out.f32();
    for_each_row(rows, width, [&](int64_t r) {
        leaves.layer_norm(x + r * width, width, weight, bias, weight_dtype, eps, to + r * width);
    });
}

void rope_angles(const int64_t* positions, int64_t rows, const float* inverse_frequencies,
                 int64_t pairs, float* cos, float* sin) {
    for_each_row(rows, pairs, [&](int64_t r) {
        const auto position = static_cast<float>(positions[r]);
        for (int64_t i = 0; i < pairs; ++i) {
            const float angle = inverse_frequencies[i] * position;
            cos[r * pairs + i] = std::cos(angle);
            sin[r * pairs + i] = std::sin(angle);
        }
    });
}

void rope(float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t x_stride,
          const float* cos, const float* sin) {
    const Table& leaves = table();
    const int64_t half = head_dim / 2;
    for_each_row(rows, heads * head_dim, [&](int64_t r) {
        leaves.rope(x + r * x_stride, heads, head_dim, cos + r * half, sin + r * half);
    });
}

void gated(const float* gate, const float* up, int64_t rows, int64_t width, int64_t in_stride,
           Activation activation, Floats out, int64_t out_stride) {
    const Table& leaves = table();
    float* to = out.f32();
    for_each_row(rows, width, [&](int64_t r) {
        leaves.gated(gate + r * in_stride, up + r * in_stride, activation, to + r * out_stride,
                     width);
    });
}

void activate(float* x, int64_t n, Activation activation) {
    const Table& leaves = table();
    for_each_piece(n, element_piece, n < worth_threads, [&](int64_t begin, int64_t end) {
        leaves.activate(x + begin, end - begin, activation);
    });
}

void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n) {
    const Table& leaves = table();
    for_each_piece(n, element_piece, n < worth_threads, [&](int64_t begin, int64_t end) {
        leaves.add_scaled(y + begin, element_at(x, x_dtype, begin), x_dtype, scale, end - begin);
    });
}

void add_to_rows(float* y, int64_t rows, int64_t width, const void* x, DType x_dtype, float scale) {
    const Table& leaves = table();
    for_each_row(rows, width,
                 [&](int64_t r) { leaves.add_scaled(y + r * width, x, x_dtype, scale, width); });
}

void scale_rows(float* x, int64_t rows, int64_t width, const float* factor) {
    const Table& leaves = table();
    for_each_row(rows, width, [&](int64_t r) { leaves.scale(x + r * width, factor[r], width); });
}

void embedding(const int64_t* ids, int64_t n, const void* table_data, DType table_dtype,
               int64_t width, float* out) {
    for_each_row(n, width, [&](int64_t i) {
        convert(element_at(table_data, table_dtype, ids[i] * width), table_dtype, out + i * width,
                DType::f32, width);
    });
}

namespace {

int64_t argmax_of_row(const float* row, int64_t width) {
    int64_t best = -1;
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < width; ++i) {
        if (row[i] <= largest) continue;  // almost always
        if (std::isnan(row[i])) return -1;
        best = i;
        largest = row[i];
    }
    const auto is_finite = [](float x) { return std::isfinite(x); };
    if (std::isinf(largest) && std::none_of(row, row + width, is_finite)) return -1;
    return best;
}

}  // namespace

void argmax(const float* x, int64_t rows, int64_t width, int64_t* index) {
    for_each_row(rows, width, [&](int64_t r) { index[r] = argmax_of_row(x + r * width, width); });
}

void unfold_patches(const float* pixels, int64_t channels, int64_t side, int64_t patch,
                    float* out) {
    const int64_t across = side / patch;
    const int64_t width = channels * patch * patch;
    for_each_row(across * across, width, [&](int64_t r) {
        float* to = out + r * width;
        const float* corner = pixels + r / across * patch * side + r % across * patch;
        for (int64_t channel = 0; channel < channels; ++channel) {
            for (int64_t y = 0; y < patch; ++y)
                to = std::copy_n(corner + (channel * side + y) * side, patch, to);
        }
    });
}

void interleave(const float* const* states, int64_t count, int64_t rows, int64_t width, float* out,
                int64_t out_stride) {
    for_each_row(rows, width * count, [&](int64_t r) {
        for (int64_t k = 0; k < count; ++k) {
            const float* from = states[k] + r * width;
            float* to = out + r * out_stride + k;
            for (int64_t i = 0; i < width; ++i) to[i * count] = from[i];
        }
    });
}

void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n) {
    const Table& leaves = table();
    for_each_piece(n, element_piece, n < worth_threads, [&](int64_t begin, int64_t end) {
        const std::byte* source = element_at(from, from_dtype, begin);
        std::byte* target = static_cast<std::byte*>(to) + begin * dtype_size(to_dtype);
        if (from_dtype == to_dtype) {
            std::memcpy(target, source, static_cast<size_t>((end - begin) * dtype_size(to_dtype)));
        } else {
            leaves.convert(source, from_dtype, target, to_dtype, end - begin);
        }
    });
}

}  // namespace mllama::cpu
