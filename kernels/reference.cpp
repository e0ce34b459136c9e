#include "kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace mllama::reference {

double element(const void* data, DType dtype, int64_t i) {
    return float_element(data, dtype, i);
}

namespace {

/// The number that stands for w[row, col], before zero and scale.
double number(const Matrix& w, int64_t row, int64_t col) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    const auto* words = static_cast<const int32_t*>(w.data);
    switch (w.coding) {
        case Coding::int8:
            return static_cast<const int8_t*>(w.data)[row * w.cols + col];
        case Coding::int4:
            return static_cast<uint32_t>(words[row * int4_words(w.cols) + col / 8]) >>
                       (4 * (col % 8)) &
                   15u;
        case Coding::int4_by_column:
            return static_cast<uint32_t>(words[col / 8 * w.rows + row]) >> (4 * (col % 8)) & 15u;
        case Coding::fp8:
            return f8_e4m3_to_f32(bytes[row * w.cols + col]);
        case Coding::nf4: {
            const int64_t i = row * w.cols + col;
            return w.groups.code[bytes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15];
        }
        case Coding::plain:
            break;
    }
    return element(w.data, w.dtype, row * w.stride + col);
}

double zero(const Groups& groups, int64_t row, int64_t group) {
    if (groups.zero == nullptr) return groups.zero_add;
    auto word =
        static_cast<uint32_t>(groups.zero[row / 8 * groups.zero_row + group * groups.zero_group]);
    word += static_cast<uint32_t>(groups.zero_add) * 0x11111111u;
    return word >> (4 * (row % 8)) & 15u;
}

}  // namespace

double weight(const Matrix& w, int64_t row, int64_t col) {
    const Groups& groups = w.groups;
    const double value = number(w, row, col);
    if (w.coding == Coding::plain) return value;
    if (w.coding == Coding::nf4) {
        const int64_t block = (row * w.cols + col) / groups.size;
        if (groups.scale_dtype != DType::u8)
            return value * element(groups.scale, groups.scale_dtype, block);
        const uint8_t code = static_cast<const uint8_t*>(groups.scale)[block];
        return value *
               (double{groups.nested_code[code]} * groups.nested_scale[block / groups.nested_size] +
                groups.nested_offset);
    }
    const int64_t group = groups.of_column != nullptr ? groups.of_column[col] : col / groups.size;
    return (value - zero(groups, row, group)) *
           element(groups.scale, groups.scale_dtype,
                   row * groups.scale_row + group * groups.scale_group);
}

double activation(double x, Activation kind) {
    switch (kind) {
        case Activation::none:
            return x;
        case Activation::gelu:
            return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::gelu_tanh: {
            // 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3); 0.5 (1 + tanh(u)) = 1 /
            // (1 + exp(-2 u))
            const double u = std::sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
            return x / (1.0 + std::exp(-2.0 * u));
        }
        case Activation::quick_gelu:
            return x / (1.0 + std::exp(-1.702 * x));
        case Activation::silu:
            return x / (1.0 + std::exp(-x));
        case Activation::relu:
            return x < 0.0 ? 0.0 : x;  // a NaN stays
    }
    return x;
}

double factor(double x, Compute compute) {
    return compute == Compute::f32 ? x : bf16_to_f32(f32_to_bf16(static_cast<float>(x)));
}

float quantise(const float* x, int64_t n, int8_t* numbers) {
    float largest = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < n; ++i) {
        finite = finite && std::isfinite(x[i]);
        largest = std::max(largest, std::fabs(x[i]));
    }
    const bool zeros = !finite || largest < smallest_quantised;
    for (int64_t i = 0; i < n; ++i) {
        numbers[i] =
            zeros ? int8_t{0} : static_cast<int8_t>(std::nearbyint(x[i] * (127.0f / largest)));
    }
    if (!finite) return std::numeric_limits<float>::quiet_NaN();
    return zeros ? 0.0f : largest / 127.0f;
}

namespace {

/// A row of x as the products with w see it.
std::vector<double> factors(const float* x, const Matrix& w, Compute compute) {
    std::vector<double> result(static_cast<size_t>(w.cols));
    if (!multiplies_integers(w, compute)) {
        for (size_t k = 0; k < result.size(); ++k) result[k] = factor(x[k], compute);
        return result;
    }
    const int64_t block = w.coding == Coding::int8 ? w.cols : 128;
    std::vector<int8_t> numbers(static_cast<size_t>(block));
    for (int64_t begin = 0; begin < w.cols; begin += block) {
        const int64_t n = std::min(block, w.cols - begin);
        const double scale = quantise(x + begin, n, numbers.data());
        for (int64_t i = 0; i < n; ++i)
            result[static_cast<size_t>(begin + i)] = numbers[static_cast<size_t>(i)] * scale;
    }
    return result;
}

}  // namespace

namespace {

/// The sum of a row of factors of x times row n of w.
double product(const std::vector<double>& row, const Matrix& w, int64_t n, Compute compute) {
    const bool integers = multiplies_integers(w, compute);
    double sum = 0.0;
    for (int64_t k = 0; k < w.cols; ++k) {
        const double value = weight(w, n, k);
        sum += row[static_cast<size_t>(k)] * (integers ? value : factor(value, compute));
    }
    return sum;
}

}  // namespace

void linear(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
            const Epilogue& epilogue, Compute compute, float* out, int64_t out_stride) {
    for (int64_t r = 0; r < rows; ++r) {
        const std::vector<double> row = factors(x + r * x_stride, w, compute);
        for (int64_t n = 0; n < w.rows; ++n) {
            double sum = product(row, w, n, compute);
            if (epilogue.bias != nullptr) sum += epilogue.bias[n];
            double result = epilogue.scale * activation(sum, epilogue.activation);
            if (epilogue.residual != nullptr) result += epilogue.residual[r * out_stride + n];
            out[r * out_stride + n] = static_cast<float>(result);
        }
    }
}

float linear_element(const float* x, const Matrix& w, int64_t n, Compute compute) {
    return static_cast<float>(product(factors(x, w, compute), w, n, compute));
}

namespace {

/// Rounds to the type; int8 are whole numbers already.
void set_element(void* data, DType dtype, int64_t i, float value) {
    auto* to = static_cast<std::byte*>(data) + i * dtype_size(dtype);
    if (dtype == DType::i8) {
        *reinterpret_cast<int8_t*>(to) = static_cast<int8_t>(value);
    } else {
        convert(&value, DType::f32, to, dtype, 1);
    }
}

/// The scale of a row of int8: 0 if all is 0, a NaN if not all is finite.
float scale_of(const float* row, int64_t n) {
    float largest = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        if (!std::isfinite(row[i])) return std::numeric_limits<float>::quiet_NaN();
        largest = std::max(largest, std::fabs(row[i]));
    }
    return largest / 127.0f;
}

float whole_number(float value, float scale) {
    if (scale == 0.0f || std::isnan(scale)) return 0.0f;
    return std::clamp(std::nearbyint(value / scale), -127.0f, 127.0f);
}

/// An element of a key or value as attention multiplies it.
double kv_element(const void* data, const float* scales, const KvLayout& layout, int64_t head,
                  int64_t key, int64_t index, Compute compute) {
    if (!layout.scaled()) return factor(element(data, layout.dtype, index), compute);
    return double{scales[layout.scale_index(head, key)]} * static_cast<const int8_t*>(data)[index];
}

bool sees(const Visibility& visible, int64_t query, int64_t key) {
    if (visible.causal_from >= 0) return key <= visible.causal_from + query;
    if (visible.first == nullptr) return true;
    for (int64_t i = visible.first[query]; i < visible.first[query + 1]; ++i) {
        if (visible.ranges[i].begin <= key && key < visible.ranges[i].end) return true;
    }
    return false;
}

/// The probabilities (keys) of one query and one head; all 0 if it sees no key.
std::vector<double> probabilities(const Attention& args, Compute compute, int64_t query,
                                  int64_t head) {
    constexpr double none = -std::numeric_limits<double>::infinity();
    const int64_t kv_head = head / (args.heads / args.kv_heads);
    const float* q = args.q + query * args.q_stride + head * args.head_dim;
    std::vector<double> logits(static_cast<size_t>(args.keys), none);
    double largest = none;
    for (int64_t j = 0; j < args.keys; ++j) {
        if (!sees(args.visible, query, j)) continue;
        double dot = 0.0;
        for (int64_t d = 0; d < args.head_dim; ++d) {
            const int64_t at = args.layout().key_index(kv_head, j, d);
            dot += factor(q[d], compute) *
                   kv_element(args.k, args.k_scales, args.layout(), kv_head, j, at, compute);
        }
        const double logit = args.scale * dot + (args.key_bias != nullptr ? args.key_bias[j] : 0.0);
        logits[static_cast<size_t>(j)] = logit;
        if (std::isnan(logit) || logit > largest) largest = logit;
    }
    if (largest == none) return std::vector<double>(logits.size(), 0.0);
    double sum = 0.0;
    for (double& logit : logits) {
        logit = std::exp(logit - largest);
        sum += logit;
    }
    for (double& p : logits) p /= sum;
    return logits;
}

}  // namespace

void attention(const Attention& args, Compute compute, float* out, int64_t out_stride) {
    for (int64_t query = 0; query < args.queries; ++query) {
        for (int64_t head = 0; head < args.heads; ++head) {
            const int64_t kv_head = head / (args.heads / args.kv_heads);
            const std::vector<double> p = probabilities(args, compute, query, head);
            for (int64_t d = 0; d < args.head_dim; ++d) {
                double sum = 0.0;
                for (int64_t j = 0; j < args.keys; ++j) {
                    if (!sees(args.visible, query, j)) continue;
                    const int64_t at = args.layout().value_index(kv_head, j, d);
                    sum +=
                        p[static_cast<size_t>(j)] *
                        kv_element(args.v, args.v_scales, args.layout(), kv_head, j, at, compute);
                }
                out[query * out_stride + head * args.head_dim + d] = static_cast<float>(sum);
            }
        }
    }
}

void attention_weights(const Attention& args, Compute compute, int64_t head, float* weights) {
    for (int64_t query = 0; query < args.queries; ++query) {
        const std::vector<double> p = probabilities(args, compute, query, head);
        for (int64_t j = 0; j < args.keys; ++j) {
            weights[query * args.keys + j] = static_cast<float>(p[static_cast<size_t>(j)]);
        }
    }
}

void store_keys(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                int64_t begin, void* keys, float* scales) {
    const int64_t padded = layout.key_rows() * layout.unit();
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t h = 0; h < layout.kv_heads; ++h) {
            const float* row = x + r * x_stride + h * layout.head_dim;
            const float scale = layout.scaled() ? scale_of(row, layout.head_dim) : 1.0f;
            if (layout.scaled()) scales[layout.scale_index(h, begin + r)] = scale;
            for (int64_t d = 0; d < padded; ++d) {
                const float value = d < layout.head_dim ? row[d] : 0.0f;
                set_element(keys, layout.dtype, layout.key_index(h, begin + r, d),
                            layout.scaled() ? whole_number(value, scale) : value);
            }
        }
    }
}

void store_values(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                  int64_t begin, void* values, float* scales) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t h = 0; h < layout.kv_heads; ++h) {
            const float* row = x + r * x_stride + h * layout.head_dim;
            const float scale = layout.scaled() ? scale_of(row, layout.head_dim) : 1.0f;
            if (layout.scaled()) scales[layout.scale_index(h, begin + r)] = scale;
            for (int64_t d = 0; d < layout.head_dim; ++d) {
                set_element(values, layout.dtype, layout.value_index(h, begin + r, d),
                            layout.scaled() ? whole_number(row[d], scale) : row[d]);
            }
        }
    }
}

void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, float* out) {
    for (int64_t r = 0; r < rows; ++r) {
        double squares = 0.0;
        for (int64_t i = 0; i < width; ++i) squares += double{x[r * width + i]} * x[r * width + i];
        const double norm = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
        for (int64_t i = 0; i < width; ++i) {
            out[r * width + i] =
                static_cast<float>(x[r * width + i] * norm * element(weight, weight_dtype, i));
        }
    }
}

void layer_norm(const float* x, int64_t rows, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, float* out) {
    for (int64_t r = 0; r < rows; ++r) {
        double sum = 0.0;
        for (int64_t i = 0; i < width; ++i) sum += x[r * width + i];
        const double mean = sum / static_cast<double>(width);
        double squares = 0.0;
        for (int64_t i = 0; i < width; ++i)
            squares += (x[r * width + i] - mean) * (x[r * width + i] - mean);
        const double norm = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
        for (int64_t i = 0; i < width; ++i) {
            out[r * width + i] = static_cast<float>((x[r * width + i] - mean) * norm *
                                                        element(weight, weight_dtype, i) +
                                                    element(bias, weight_dtype, i));
        }
    }
}

void rope(float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t x_stride,
          const float* cos, const float* sin) {
    const int64_t half = head_dim / 2;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t h = 0; h < heads; ++h) {
            float* head = x + r * x_stride + h * head_dim;
            for (int64_t i = 0; i < half; ++i) {
                const double a = head[i], b = head[i + half];
                const double c = cos[r * half + i], s = sin[r * half + i];
                head[i] = static_cast<float>(a * c - b * s);
                head[i + half] = static_cast<float>(b * c + a * s);
            }
        }
    }
}

void gated(const float* gate, const float* up, int64_t rows, int64_t width, int64_t in_stride,
           Activation kind, float* out, int64_t out_stride) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width; ++i) {
            out[r * out_stride + i] = static_cast<float>(activation(gate[r * in_stride + i], kind) *
                                                         up[r * in_stride + i]);
        }
    }
}

void activate(float* x, int64_t n, Activation kind) {
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(activation(x[i], kind));
}

void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        y[i] = static_cast<float>(y[i] + scale * element(x, x_dtype, i));
}

void scale_rows(float* x, int64_t rows, int64_t width, const float* factor) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width; ++i) {
            x[r * width + i] = factor[r] == 0.0f ? 0.0f : x[r * width + i] * factor[r];
        }
    }
}

void add_to_rows(float* y, int64_t rows, int64_t width, const void* x, DType x_dtype, float scale) {
    for (int64_t i = 0; i < rows * width; ++i)
        y[i] = static_cast<float>(y[i] + scale * element(x, x_dtype, i % width));
}

void rope_angles(const int64_t* positions, int64_t rows, const float* inverse_frequencies,
                 int64_t pairs, float* cos, float* sin) {
    for (int64_t i = 0; i < rows * pairs; ++i) {
        const float angle =
            inverse_frequencies[i % pairs] * static_cast<float>(positions[i / pairs]);
        cos[i] = static_cast<float>(std::cos(double{angle}));
        sin[i] = static_cast<float>(std::sin(double{angle}));
    }
}

void unfold_patches(const float* pixels, int64_t channels, int64_t side, int64_t patch,
                    float* out) {
    const int64_t across = side / patch;
    for (int64_t channel = 0; channel < channels; ++channel) {
        for (int64_t y = 0; y < across * patch; ++y) {
            for (int64_t x = 0; x < across * patch; ++x) {
                const int64_t row = y / patch * across + x / patch;
                const int64_t column = (channel * patch + y % patch) * patch + x % patch;
                out[row * channels * patch * patch + column] =
                    pixels[(channel * side + y) * side + x];
            }
        }
    }
}

void interleave(const float* const* states, int64_t count, int64_t rows, int64_t width, float* out,
                int64_t out_stride) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width; ++i) {
            for (int64_t k = 0; k < count; ++k)
                out[r * out_stride + i * count + k] = states[k][r * width + i];
        }
    }
}

void embedding(const int64_t* ids, int64_t n, const void* table, DType table_dtype, int64_t width,
               float* out) {
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t d = 0; d < width; ++d) {
            out[i * width + d] =
                static_cast<float>(element(table, table_dtype, ids[i] * width + d));
        }
    }
}

void argmax(const float* x, int64_t rows, int64_t width, int64_t* index) {
    const auto is_nan = [](float v) { return std::isnan(v); };
    const auto is_finite = [](float v) { return std::isfinite(v); };
    for (int64_t r = 0; r < rows; ++r) {
        const float* row = x + r * width;
        const bool good =
            std::none_of(row, row + width, is_nan) && std::any_of(row, row + width, is_finite);
        index[r] = good ? std::max_element(row, row + width) - row : -1;
    }
}

void top_k(const float* x, int64_t rows, int64_t width, int64_t k, float* values, int64_t* index) {
    std::vector<int64_t> order(static_cast<size_t>(width));
    for (int64_t r = 0; r < rows; ++r) {
        const float* row = x + r * width;
        std::iota(order.begin(), order.end(), int64_t{0});
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            if (std::isnan(row[a]) || std::isnan(row[b]))
                return std::isnan(row[a]) && !std::isnan(row[b]);
            return row[a] > row[b];
        });
        for (int64_t i = 0; i < k; ++i) {
            index[r * k + i] = order[static_cast<size_t>(i)];
            values[r * k + i] = row[index[r * k + i]];
        }
    }
}

void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n) {
    if (from_dtype == to_dtype) {
        if (n > 0) std::memcpy(to, from, static_cast<size_t>(n * dtype_size(from_dtype)));
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        const auto value = static_cast<float>(element(from, from_dtype, i));
        switch (to_dtype) {
            case DType::bf16:
                static_cast<uint16_t*>(to)[i] = f32_to_bf16(value);
                break;
            case DType::f16:
                static_cast<uint16_t*>(to)[i] = f32_to_f16(value);
                break;
            default:
                static_cast<float*>(to)[i] = value;
                break;
        }
    }
}

}  // namespace mllama::reference
