// The leaves of a table, written once over a vector of floats. Each of cpu_portable.cpp,
// cpu_avx2.cpp and cpu_avx512.cpp includes this file in its own unnamed namespace and target
// region, after defining that vector; so this is no ordinary header: it has no `#pragma once` and
// includes nothing. What it expects from the file that includes it:
//
//     lanes                     floats in a vector
//     tile_rows, panel_vectors  size of the register tile: rows of x, and vectors of columns of w
//     registers                 vectors that the processor has registers for
//     few_rows_max              rows of x that products without a panel go over at once
//     few_columns_vectors       vectors of columns of v that those products take at a time, for
//                               at most half of those rows
//     Vec, Mask                 a vector of floats with + - * /, and the result of a comparison
//     broadcast(a), fma(a, b, c) = a * b + c, nearest(a), times_power_of_two(a, n) = a * 2^n
//     largest(a, b), smallest(a, b)    b where either is a NaN
//     less(a, b), select(mask, a, b)   a where the mask is set, else b
//     upper_bits(a)             a with the lower 12 bits of the fraction cleared
//     round_bf16(a)             every lane rounded to bfloat16
//     transpose(rows)           of lanes x lanes floats
//     transpose_quads(rows)     of lanes / 4 vectors, each taken as lanes / 4 quads of four floats:
//                               the q-th result has the q-th quad of all rows
//     broadcast_quad(p)         four floats from p on, in every quad
//     quads_by_place(v)         the first float of every quad, then the second of every quad, ...
//     prefetch(p)               asks for the cache line of p
//     F32, Bf16, F16            the element types: Element, load(p), store(p, v),
//                               load_part(p, n), store_part(p, v, n): the first n lanes only, 0 in
//                               the others; unit, pack and unpack (cpu_kv.h); fits_bf16: a
//                               bfloat16 can hold all of its numbers
//
// An element's value never depends on the lane it is in: the rest of a row uses the same
// instructions on a part of a vector.

// ---- the shape of a vector ----

constexpr int sums = 4;              // floats of a quad: sums of a dot product, see Product
constexpr int quads = lanes / sums;  // of a vector
static_assert(quads * sums == lanes);

// ---- loads and stores of up to a whole vector ----

template <class Type>
Vec load(const typename Type::Element* from, int64_t n) {
    return n >= lanes ? Type::load(from) : Type::load_part(from, n);
}

template <class Type>
void store(typename Type::Element* to, Vec value, int64_t n) {
    if (n >= lanes) {
        Type::store(to, value);
    } else {
        Type::store_part(to, value, n);
    }
}

inline int64_t at_most(int64_t n, int64_t limit) {
    return n < limit ? n : limit;
}

/// The sum of all lanes, in lane order.
inline double sum_of_lanes(Vec v) {
    float parts[lanes];
    F32::store(parts, v);
    double sum = 0.0;
    for (const float part : parts) sum += part;
    return sum;
}

// ---- the exponential and what is made of it ----

/// x = n ln(2) + r with a whole n and |r| <= ln(2) / 2.
struct Reduced {
    Vec n, r;
};

/// Outside of [-105, 89] exp is 0 or infinity, and x is replaced by the nearer end. A NaN stays a
/// NaN.
inline Reduced reduce(Vec x) {
    x = smallest(broadcast(89.0f), largest(broadcast(-105.0f), x));
    const Vec n = nearest(x * broadcast(1.44269504f));
    // ln(2) in two parts: n times the first, of 9 bits, is exact.
    const Vec r = fma(n, broadcast(-0.693359375f), x);
    return {n, fma(n, broadcast(2.12194440e-4f), r)};
}

/// exp(n ln(2) + r) = 2^n (1 + r + r^2 p(r)), p fitted to a relative error of 3e-9. Overflows to
/// infinity above 88.7, goes through the subnormal numbers to 0 at -104.
inline Vec exponential_of(Reduced x) {
    Vec p = broadcast(0.0013814539f);
    p = fma(p, x.r, broadcast(0.008368745f));
    p = fma(p, x.r, broadcast(0.04166839f));
    p = fma(p, x.r, broadcast(0.16666521f));
    p = fma(p, x.r, broadcast(0.49999994f));
    return times_power_of_two(fma(x.r * x.r, p, x.r) + broadcast(1.0f), x.n);
}

inline Vec exponential(Vec x) {
    return exponential_of(reduce(x));
}

/// exp(x + low), low being a correction far below x.
inline Vec exponential_of_sum(Vec x, Vec low) {
    Reduced reduced = reduce(x);
    reduced.r = reduced.r + low;
    return exponential_of(reduced);
}

struct Identity {
    static Vec of(Vec x) { return x; }
};

/// x Phi(x), Phi the normal distribution function. Phi(-a) = exp(-a^2 / 2) t P(t) with t = 1 / (1 +
/// 0.3 a), fitted for a in [0, 15] to a relative error of 4e-9; so the tail is as exact as the
/// middle. a^2 is taken in two parts, since its error would be magnified by the exponential.
struct Gelu {
    static Vec of(Vec x) {
        const Vec zero = broadcast(0.0f);
        const Vec a = smallest(broadcast(15.0f), largest(x, zero - x));
        const Vec upper = upper_bits(a);
        const Vec half = broadcast(-0.5f);
        const Vec bell = exponential_of_sum(half * upper * upper, half * (a - upper) * (a + upper));
        const Vec t = broadcast(1.0f) / fma(broadcast(0.3f), a, broadcast(1.0f));
        Vec p = broadcast(-0.020628396f);
        p = fma(p, t, broadcast(0.11246343f));
        p = fma(p, t, broadcast(-0.22828178f));
        p = fma(p, t, broadcast(0.19187953f));
        p = fma(p, t, broadcast(-0.07950623f));
        p = fma(p, t, broadcast(0.09620346f));
        p = fma(p, t, broadcast(0.078372695f));
        p = fma(p, t, broadcast(0.11023925f));
        p = fma(p, t, broadcast(0.11957133f));
        p = fma(p, t, broadcast(0.119686715f));
        const Vec tail = bell * t * p;  // Phi(-|x|)
        return x * select(less(x, zero), tail, broadcast(1.0f) - tail);
    }
};

/// x / (1 + exp(-slope x))
inline Vec swish(Vec x, Vec minus_slope_x) {
    return x / (broadcast(1.0f) + exponential(minus_slope_x));
}

struct Silu {
    static Vec of(Vec x) { return swish(x, broadcast(-1.0f) * x); }
};

struct QuickGelu {
    static Vec of(Vec x) { return swish(x, broadcast(-1.702f) * x); }
};

/// 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
struct GeluTanh {
    static Vec of(Vec x) {
        const Vec cubic = fma(broadcast(0.044715f) * x * x, x, x);
        return swish(x, broadcast(-1.59576912f) * cubic);
    }
};

struct Relu {
    static Vec of(Vec x) { return select(less(x, broadcast(0.0f)), broadcast(0.0f), x); }
};

/// Calls Leaf<the activation>::run.
template <template <class> class Leaf, class... Args>
void with_activation(Activation activation, Args... args) {
    switch (activation) {
        case Activation::none:
            return Leaf<Identity>::run(args...);
        case Activation::gelu:
            return Leaf<Gelu>::run(args...);
        case Activation::gelu_tanh:
            return Leaf<GeluTanh>::run(args...);
        case Activation::quick_gelu:
            return Leaf<QuickGelu>::run(args...);
        case Activation::silu:
            return Leaf<Silu>::run(args...);
        case Activation::relu:
            return Leaf<Relu>::run(args...);
    }
}

/// Calls Leaf<the element type>::run.
template <template <class> class Leaf, class... Args>
void with_type(DType dtype, Args... args) {
    switch (dtype) {
        case DType::bf16:
            return Leaf<Bf16>::run(args...);
        case DType::f16:
            return Leaf<F16>::run(args...);
        default:
            return Leaf<F32>::run(args...);
    }
}

/// The same for the types that lie in units: int8 as well.
template <template <class> class Leaf, class... Args>
void with_unit_type(DType dtype, Args... args) {
    if (dtype == DType::i8) return Leaf<I8>::run(args...);
    with_type<Leaf>(dtype, args...);
}

// ---- element by element ----

template <class Function>
struct Epilogued {
    static void run(const float* product, const float* bias, float scale, const float* residual,
                    float* out, int64_t n) {
        for (int64_t i = 0; i < n; i += lanes) {
            Vec value = load<F32>(product + i, n - i);
            if (bias != nullptr) value = value + load<F32>(bias + i, n - i);
            value = Function::of(value) * broadcast(scale);
            if (residual != nullptr) value = value + load<F32>(residual + i, n - i);
            store<F32>(out + i, value, n - i);
        }
    }
};

void epilogue(const float* product, const float* bias, Activation activation, float scale,
              const float* residual, float* out, int64_t n) {
    with_activation<Epilogued>(activation, product, bias, scale, residual, out, n);
}

template <class Function>
struct Gated {
    static void run(const float* gate, const float* up, float* out, int64_t n) {
        for (int64_t i = 0; i < n; i += lanes) {
            const Vec value = Function::of(load<F32>(gate + i, n - i)) * load<F32>(up + i, n - i);
            store<F32>(out + i, value, n - i);
        }
    }
};

void gated(const float* gate, const float* up, Activation activation, float* out, int64_t n) {
    with_activation<Gated>(activation, gate, up, out, n);
}

template <class Function>
struct Activated {
    static void run(float* x, int64_t n) {
        for (int64_t i = 0; i < n; i += lanes) {
            store<F32>(x + i, Function::of(load<F32>(x + i, n - i)), n - i);
        }
    }
};

void activate(float* x, int64_t n, Activation activation) {
    with_activation<Activated>(activation, x, n);
}

void exponential_row(float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += lanes)
        store<F32>(x + i, exponential(load<F32>(x + i, n - i)), n - i);
}

void blend(float* y, float y_factor, const float* x, float x_factor, int64_t n) {
    for (int64_t i = 0; i < n; i += lanes) {
        const Vec part = load<F32>(x + i, n - i) * broadcast(x_factor);
        store<F32>(y + i, fma(load<F32>(y + i, n - i), broadcast(y_factor), part), n - i);
    }
}

template <class Type>
struct AddedScaled {
    static void run(float* y, const void* x, float scale, int64_t n) {
        const auto* from = static_cast<const typename Type::Element*>(x);
        for (int64_t i = 0; i < n; i += lanes) {
            const Vec value =
                fma(load<Type>(from + i, n - i), broadcast(scale), load<F32>(y + i, n - i));
            store<F32>(y + i, value, n - i);
        }
    }
};

void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n) {
    with_type<AddedScaled>(x_dtype, y, x, scale, n);
}

/// A factor of 0 gives 0, whatever x is.
void scale_row(float* x, float factor, int64_t n) {
    for (int64_t i = 0; i < n; i += lanes) {
        const Vec value =
            factor == 0.0f ? broadcast(0.0f) : load<F32>(x + i, n - i) * broadcast(factor);
        store<F32>(x + i, value, n - i);
    }
}

template <class From, class To>
void convert_row(const void* from, void* to, int64_t n) {
    const auto* source = static_cast<const typename From::Element*>(from);
    auto* target = static_cast<typename To::Element*>(to);
    for (int64_t i = 0; i < n; i += lanes)
        store<To>(target + i, load<From>(source + i, n - i), n - i);
}

template <class From>
struct ConvertedFrom {
    static void run(const void* from, void* to, DType to_dtype, int64_t n) {
        switch (to_dtype) {
            case DType::bf16:
                return convert_row<From, Bf16>(from, to, n);
            case DType::f16:
                return convert_row<From, F16>(from, to, n);
            default:
                return convert_row<From, F32>(from, to, n);
        }
    }
};

/// from_dtype != to_dtype: a copy is not the leaf's work (it must keep every bit, also of a NaN).
void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n) {
    with_type<ConvertedFrom>(from_dtype, from, to, to_dtype, n);
}

void rope(float* x, int64_t heads, int64_t head_dim, const float* cos, const float* sin) {
    const int64_t half = head_dim / 2;
    for (int64_t h = 0; h < heads; ++h) {
        float* first = x + h * head_dim;
        float* second = first + half;
        for (int64_t i = 0; i < half; i += lanes) {
            const Vec a = load<F32>(first + i, half - i), b = load<F32>(second + i, half - i);
            const Vec c = load<F32>(cos + i, half - i), s = load<F32>(sin + i, half - i);
            const Vec zero = broadcast(0.0f);
            store<F32>(first + i, fma(a, c, (zero - b) * s), half - i);
            store<F32>(second + i, fma(b, c, a * s), half - i);
        }
    }
}

// ---- norms ----

/// The sum of (x - shift), or of its square, over a row: float32 lanes over 16 vectors at a time,
/// doubles over those.
template <bool square>
double sum_of_row(const float* x, float shift, int64_t width) {
    const int64_t block = 16 * lanes;
    double sum = 0.0;
    for (int64_t start = 0; start < width; start += block) {
        const int64_t end = at_most(start + block, width);
        Vec part = broadcast(0.0f);
        for (int64_t i = start; i < end; i += lanes) {
            Vec value = load<F32>(x + i, end - i);
            if (end - i >= lanes) {
                value = value - broadcast(shift);
            } else {  // the missing lanes must stay 0
                float parts[lanes];
                F32::store(parts, value);
                for (int64_t j = 0; j < end - i; ++j) parts[j] -= shift;
                value = F32::load(parts);
            }
            part = square ? fma(value, value, part) : part + value;
        }
        sum += sum_of_lanes(part);
    }
    return sum;
}

template <class Type>
struct RmsNormed {
    static void run(const float* x, int64_t width, const void* weight, float eps, float* out) {
        const auto* w = static_cast<const typename Type::Element*>(weight);
        const double mean_square = sum_of_row<true>(x, 0.0f, width) / static_cast<double>(width);
        const Vec norm = broadcast(static_cast<float>(1.0 / __builtin_sqrt(mean_square + eps)));
        for (int64_t i = 0; i < width; i += lanes) {
            const Vec value = load<F32>(x + i, width - i) * norm * load<Type>(w + i, width - i);
            store<F32>(out + i, value, width - i);
        }
    }
};

void rms_norm(const float* x, int64_t width, const void* weight, DType weight_dtype, float eps,
              float* out) {
    with_type<RmsNormed>(weight_dtype, x, width, weight, eps, out);
}

template <class Type>
struct LayerNormed {
    static void run(const float* x, int64_t width, const void* weight, const void* bias, float eps,
                    float* out) {
        const auto* w = static_cast<const typename Type::Element*>(weight);
        const auto* b = static_cast<const typename Type::Element*>(bias);
        const auto count = static_cast<double>(width);
        const auto mean = static_cast<float>(sum_of_row<false>(x, 0.0f, width) / count);
        const double variance = sum_of_row<true>(x, mean, width) / count;
        const Vec norm = broadcast(static_cast<float>(1.0 / __builtin_sqrt(variance + eps)));
        for (int64_t i = 0; i < width; i += lanes) {
            const Vec centred = (load<F32>(x + i, width - i) - broadcast(mean)) * norm;
            const Vec value =
                fma(centred, load<Type>(w + i, width - i), load<Type>(b + i, width - i));
            store<F32>(out + i, value, width - i);
        }
    }
};

void layer_norm(const float* x, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, float* out) {
    with_type<LayerNormed>(weight_dtype, x, width, weight, bias, eps, out);
}

// ---- matrix products ----

/// The multiply-add of a tile on plain floats.
struct FloatDot {
    using Element = float;
    using Panel = Vec;
    static constexpr int64_t group = 1;
    static Panel zero() { return broadcast(0.0f); }
    static Panel load_panel(const Element* from) { return F32::load(from); }
    static void store_panel(Element* to, Panel v) { F32::store(to, v); }
    static Panel broadcast_x(const Element* from) { return broadcast(*from); }
    static Panel broadcast_quad(const Element* from) { return mllama::cpu::broadcast_quad(from); }
    static Panel by_sum(Panel v) { return quads_by_place(v); }
    static Vec multiply_add(Panel x, Panel w, Vec sum) { return fma(x, w, sum); }
};

/// Elements of a type as float factors: as they are, or rounded to bfloat16 where there is no
/// instruction for its products.
template <class Type, bool rounded>
inline Vec float_factor(Vec v) {
    if constexpr (rounded && !Type::fits_bf16) return round_bf16(v);
    return v;
}

/// How a panel of floats takes its factors: see cpu_typed_product.h.
template <bool rounded>
struct FloatFactors {
    using Dot = FloatDot;

    template <class Type>
    struct Row {
        using Element = typename Type::Element;
        static Vec load(const Element* from, int64_t n) {
            return float_factor<Type, rounded>(mllama::cpu::load<Type>(from, n));
        }
    };

    /// The elements of a unit are a group each.
    template <class Type>
    struct Units {
        static constexpr int depth = Type::unit;
        static constexpr int unit_rows = 1;
        static void load(const std::byte* from, int64_t, int64_t, Vec (&groups)[depth]) {
            Type::unpack(from, groups);
            for (Vec& group : groups) group = float_factor<Type, rounded>(group);
        }
    };

    struct Probabilities {
        using Element = float;
        static constexpr int degree = rounded ? 4 : 6;
        static void store(Element* to, Vec v) {
            if constexpr (rounded) v = round_bf16(v);
            F32::store(to, v);
        }
    };
};

#include "kernels/cpu_columns.h"
#include "kernels/cpu_kv.h"
#include "kernels/cpu_softmax.h"
#include "kernels/cpu_tile.h"
#include "kernels/cpu_typed_product.h"

/// The table of all leaves of this file.
Table make_table(std::string_view name) {
    static_assert(tile_rows <= most_tile_rows);
    Table table{};
    table.name = name;
    table.f32 = make_product<FloatFactors<false>>();
    table.bf16 = make_product<FloatFactors<true>>();
    table.epilogue = epilogue;
    table.blend = blend;
    table.rms_norm = rms_norm;
    table.layer_norm = layer_norm;
    table.rope = rope;
    table.gated = gated;
    table.activate = activate;
    table.add_scaled = add_scaled;
    table.scale = scale_row;
    table.convert = convert;
    table.store_keys = store_keys;
    table.store_values = store_values;
    table.exponential = exponential_row;
    return table;
}
