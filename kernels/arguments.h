// What operations are told: matrices, epilogues, masks and the arguments of attention, the same for
// every device. Pointers are to memory of the device that computes.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/coding.h"
#include "kernels/dtype.h"
#include "kernels/kv_layout.h"

namespace mllama {

/// What the factors of products are rounded to. f32: not at all; bf16: both are bfloat16; sums are
/// float32 in either case. int8 (linear layers with weights in int8 or int4): the weights are the
/// integers that they are stored as, and every row of x is rounded to integers of 8 bits with a
/// scale of its own (int8), or one for each 128 columns (int4); see reference::quantise.
enum class Compute { f32, bf16, int8 };

/// A row whose largest magnitude is below this is taken as zeros when it is rounded to integers.
inline constexpr float smallest_quantised = 0x1p-100f;

/// gelu is the erf form, gelu_tanh its tanh approximation, quick_gelu x * sigmoid(1.702 x).
enum class Activation { none, gelu, gelu_tanh, quick_gelu, silu, relu };

/// A matrix as it lies in memory. Plain ones are f32, bf16 or f16, rows contiguous and `stride`
/// elements apart; coded ones lie as `Coding` says, without gaps.
struct Matrix {
    const void* data = nullptr;
    DType dtype = DType::f32;  ///< of the elements of a plain matrix
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t stride = 0;
    Coding coding = Coding::plain;
    Groups groups{};
};

/// Whether linear multiplies integers: Compute::int8, and weights in int8 with a scale a row, or in
/// int4 with groups of 32, 64, a multiple of 128 neighbouring columns or a whole row. All others
/// are decoded, and multiplied as bfloat16.
inline bool multiplies_integers(const Matrix& w, Compute compute) {
    if (compute != Compute::int8 || w.groups.of_column != nullptr) return false;
    if (w.cols > 1 && w.groups.scale_group != 1 && w.groups.size < w.cols) return false;
    const int64_t size = w.groups.size;
    if (w.coding == Coding::int8)
        return size >= w.cols && w.groups.zero == nullptr && w.groups.zero_add == 0;
    if (w.coding != Coding::int4) return false;
    return size == 32 || size == 64 || size % 128 == 0 || size == w.cols;
}

/// Where results go: an array of f32; or, on a GPU and for what linear layers alone read, of bf16.
/// Those would round it in any case, and half of the bytes travel.
struct Floats {
    void* data = nullptr;
    DType dtype = DType::f32;

    constexpr Floats() = default;
    constexpr Floats(float* array)  // NOLINT(google-explicit-constructor): it is one
        : data(array) {}
    constexpr Floats(void* array, DType type) : data(array), dtype(type) {}

    /// The array from element n on.
    [[nodiscard]] constexpr Floats from(int64_t n) const {
        return {static_cast<std::byte*>(data) + n * dtype_size(dtype), dtype};
    }
    /// The array, of an operation that writes nothing but f32 (on the CPU all of them).
    [[nodiscard]] float* f32() const {
        assert(dtype == DType::f32);
        return static_cast<float*>(data);
    }
};

/// What happens to each row of a product before it is stored: residual + scale * activation(product + bias).
struct Epilogue {
    const float* bias = nullptr;  ///< (out_features), or none
    Activation activation = Activation::none;
    float scale = 1.0f;
    const float* residual =
        nullptr;  ///< (rows, out_features), rows out_stride apart; may be an f32 output itself; or none
};

/// One of the linear layers that are given the same rows x (rows, in_features): out = epilogue(x w^T).
struct Projection {
    Matrix w;  ///< (out_features, in_features)
    Epilogue epilogue;
    Compute compute = Compute::f32;
    Floats out;              ///< (rows, out_features), rows out_stride apart; overlaps no x, and no
                             ///< other projection's out
    int64_t out_stride = 0;  ///< elements
};

/// So many are taken together at most (a GPU starts them as one).
inline constexpr size_t most_projections = 4;

/// How many projections, from the first on, take the rows of x in the same form. same_layout(a, b):
/// whether two matrices whose integers are multiplied do.
template <class SameLayout>
size_t count_rounded_alike(std::span<const Projection> projections, const SameLayout& same_layout) {
    const Projection& first = projections.front();
    const bool integers = multiplies_integers(first.w, first.compute);
    size_t count = 1;
    for (; count < projections.size(); ++count) {
        const Projection& next = projections[count];
        if (next.compute != first.compute) break;
        if (multiplies_integers(next.w, next.compute) != integers) break;
        if (integers && !same_layout(first.w, next.w)) break;
    }
    return count;
}

/// Calls visit(neighbours) for all projections: as many at a time as take the rows of x in the same form.
template <class SameLayout, class Visit>
void for_each_rounded_alike(std::span<const Projection> projections, const SameLayout& same_layout,
                            const Visit& visit) {
    while (!projections.empty()) {
        const size_t count = count_rounded_alike(projections, same_layout);
        visit(projections.first(count));
        projections = projections.subspan(count);
    }
}

/// Keys [begin, end).
struct KeyRange {
    int64_t begin = 0;
    int64_t end = 0;
};

/// A mask as a rule: which keys each query sees. Never an array of queries x keys. Either all keys,
/// or (`causal_from`) query i sees the keys [0, causal_from + i], or (`first`) sorted disjoint
/// ranges: query i sees ranges[first[i]] ... ranges[first[i + 1] - 1].
struct Visibility {
    const int64_t* first = nullptr;  ///< (queries + 1), or none
    const KeyRange* ranges = nullptr;
    int64_t causal_from = -1;  ///< -1: not causal
};

/// softmax(scale q k^T + key_bias, over the visible keys) v, grouped heads: query head h uses key
/// head h / (heads / kv_heads).
struct Attention {
    const float* q = nullptr;     ///< (queries, heads, head_dim), rows q_stride elements apart
    const void* k = nullptr;      ///< keys in blocks, see kv_layout.h
    const void* v = nullptr;      ///< values in blocks; finite at every key, seen or not
    Floats out;                   ///< (queries, heads, head_dim), rows out_stride elements apart
    DType kv_dtype = DType::f32;  ///< f32, bf16, f16 or i8
    const float* k_scales = nullptr;  ///< of i8, in blocks; else none
    const float* v_scales = nullptr;
    int64_t queries = 0, keys = 0, heads = 0, kv_heads = 0, head_dim = 0;
    int64_t q_stride = 0, out_stride = 0;
    float scale = 1.0f;               ///< above 0
    const float* key_bias = nullptr;  ///< (keys) added to every query's logits, or none
    Visibility visible;
    const int64_t* past =
        nullptr;  ///< cuda.h alone: where the number of keys before the first query stands; see there

    [[nodiscard]] constexpr KvLayout layout() const { return {kv_heads, head_dim, kv_dtype}; }
};

/// So many sequences are taken together at most (a GPU starts their storing, and their attention, as
/// one).
inline constexpr size_t most_sequences = 8;

/// Rows of two projections that become the keys and values begin, begin + 1, ... of one sequence.
struct NewKeysValues {
    const float* k = nullptr;  ///< (rows, kv_heads, head_dim), rows k_stride elements apart
    const float* v = nullptr;  ///< (rows, kv_heads, head_dim), rows v_stride elements apart
    int64_t rows = 0, k_stride = 0, v_stride = 0;
    KvLayout layout;
    int64_t begin = 0;
    const int64_t* past =
        nullptr;           ///< cuda.h alone: where a number stands that is added to begin; or none
    void* keys = nullptr;  ///< the first block of the sequence, see kv_layout.h
    void* values = nullptr;
    float* key_scales = nullptr;  ///< of i8, in blocks; else none
    float* value_scales = nullptr;
};

}  // namespace mllama
