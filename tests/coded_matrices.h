// Random matrices in every coding, for tests of what reads them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/arguments.h"
#include "kernels/rounding.h"
#include "tests/compare.h"

namespace mllama::test {

/// How a matrix of random bits is coded.
struct Style {
    Coding coding;
    const char* name;
    int64_t group = 0;      ///< columns (nf4: elements); 0: a row
    bool zeros = false;     ///< zero points
    bool by_group = false;  ///< scales and zeros as GPTQ has them
    bool order = false;     ///< columns belong to groups in no order
    bool nested = false;    ///< nf4 with quantised scales
    bool one_scale = false;
    DType scale = DType::bf16;
};

inline const Style coded_styles[] = {
    {Coding::int8, "int8"},
    {.coding = Coding::int8, .name = "int8, groups of 24", .group = 24, .scale = DType::f32},
    {.coding = Coding::int8, .name = "int8, groups of 32", .group = 32, .scale = DType::f16},
    {.coding = Coding::int8, .name = "int8, one scale", .one_scale = true},
    {.coding = Coding::int4, .name = "int4, a row", .scale = DType::f16},
    {.coding = Coding::int4, .name = "int4, groups of 16", .group = 16},
    {.coding = Coding::int4, .name = "int4, groups of 32, zeros", .group = 32, .zeros = true},
    {.coding = Coding::int4, .name = "int4, ordered", .group = 16, .zeros = true, .order = true},
    {.coding = Coding::int4_by_column,
     .name = "gptq",
     .group = 32,
     .zeros = true,
     .by_group = true,
     .scale = DType::f16},
    {.coding = Coding::int4_by_column,
     .name = "gptq, ordered",
     .group = 16,
     .zeros = true,
     .by_group = true,
     .order = true,
     .scale = DType::f16},
    {.coding = Coding::fp8, .name = "fp8"},
    {.coding = Coding::fp8, .name = "fp8, one scale", .one_scale = true, .scale = DType::f32},
    {.coding = Coding::fp8, .name = "fp8, groups", .group = 32},
    {.coding = Coding::nf4, .name = "nf4", .group = 64, .scale = DType::f32},
    {.coding = Coding::nf4, .name = "nf4, nested", .group = 64, .nested = true, .scale = DType::u8},
};

/// A random coded matrix and all that it points to. Elements are below 1 in magnitude.
class Coded {
  public:
    Coded(const Style& style, int64_t rows, int64_t cols, uint32_t seed)
        : numbers_(seed), w_{nullptr, DType::f32, rows, cols, cols, style.coding, {}} {
        Groups& g = w_.groups;
        g.size = style.group > 0 ? style.group : std::max<int64_t>(cols, 1);
        if (style.coding == Coding::nf4) {
            make_nf4(style);
            return;
        }
        const int64_t groups = std::max<int64_t>(1, pieces(cols, g.size));
        const float largest = style.coding == Coding::int8  ? 128.0f
                              : style.coding == Coding::fp8 ? 448.0f
                                                            : 15.0f;
        const int64_t scales = style.one_scale ? 1 : rows * groups;
        floats_ = numbers_.floats(scales, 0.1f / largest, 1.0f / largest);
        scale_ = Typed(floats_, style.scale);
        g.scale = scale_.data();
        g.scale_dtype = style.scale;
        g.scale_row = style.one_scale ? 0 : style.by_group ? 1 : groups;
        g.scale_group = style.one_scale ? 0 : style.by_group ? rows : 1;
        g.zero_add = style.by_group ? 1 : style.coding == Coding::int4 && !style.zeros ? 8 : 0;
        if (style.zeros) {
            zero_ = words(pieces(rows, 8) * groups);
            g.zero = zero_.data();
            g.zero_row = style.by_group ? 1 : groups;
            g.zero_group = style.by_group ? pieces(rows, 8) : 1;
        }
        if (style.order) {
            for (int64_t i = 0; i < cols; ++i)
                of_column_.push_back(static_cast<int32_t>(numbers_.below(groups)));
            g.of_column = of_column_.data();
        }
        data_ = words(pieces(rows * pieces(cols, 8) * 8, 1));  // enough for every coding
        if (style.coding == Coding::fp8) remove_nans();
        w_.data = data_.data();
    }
    Coded(const Coded&) = delete;
    Coded& operator=(const Coded&) = delete;

    [[nodiscard]] const Matrix& matrix() const { return w_; }

    /// The matrix in other memory: copy(data, bytes) gives the address of a copy.
    template <class Copy>
    [[nodiscard]] Matrix in_memory_of(const Copy& copy) const {
        const auto copy_all = [&](const auto& values, auto*& pointer) {
            if (pointer == nullptr) return;
            const auto bytes = static_cast<int64_t>(values.size() * sizeof(values[0]));
            pointer = static_cast<std::remove_reference_t<decltype(pointer)>>(
                copy(static_cast<const void*>(values.data()), bytes));
        };
        Matrix w = w_;
        Groups& g = w.groups;
        w.data = copy(w_.data, data_bytes());
        copy_all(of_column_, g.of_column);
        copy_all(zero_, g.zero);
        copy_all(code_, g.code);
        copy_all(nested_code_, g.nested_code);
        copy_all(nested_scale_, g.nested_scale);
        const auto scales = static_cast<int64_t>(floats_.size());
        g.scale = copy(w_.groups.scale, scales * dtype_size(g.scale_dtype));
        return w;
    }

  private:
    [[nodiscard]] int64_t data_bytes() const {
        const int64_t words = w_.rows * int4_words(w_.cols);
        if (w_.coding == Coding::nf4) return pieces(w_.rows * w_.cols, 2);
        const bool nibbles = w_.coding == Coding::int4 || w_.coding == Coding::int4_by_column;
        return nibbles ? 4 * words : w_.rows * w_.cols;
    }
    std::vector<int32_t> words(int64_t n) {
        std::vector<int32_t> result(static_cast<size_t>(n));
        for (int32_t& word : result) {
            word = static_cast<int32_t>(static_cast<uint32_t>(numbers_.below(1 << 16)) << 16 |
                                        static_cast<uint32_t>(numbers_.below(1 << 16)));
        }
        return result;
    }
    void remove_nans() {
        for (int32_t& word : data_) {
            for (int shift = 0; shift < 32; shift += 8) {
                if ((static_cast<uint32_t>(word) >> shift & 0x7Fu) == 0x7Fu) word ^= 1 << shift;
            }
        }
    }
    void make_nf4(const Style& style) {
        Groups& g = w_.groups;
        const int64_t blocks = pieces(w_.rows * w_.cols, g.size);
        code_ = numbers_.floats(16);
        g.code = code_.data();
        data_ = words(pieces(w_.rows * w_.cols, 8));
        w_.data = data_.data();
        g.scale_dtype = style.scale;
        floats_ = numbers_.floats(blocks, 0.1f, 1.0f);
        g.scale = floats_.data();
        if (!style.nested) return;
        bytes_ = words(pieces(blocks, 4));
        nested_code_ = numbers_.floats(256, -1.0f, 1.0f);
        nested_scale_ = numbers_.floats(pieces(blocks, 4), 0.1f, 0.4f);
        g.scale = bytes_.data();
        g.nested_code = nested_code_.data();
        g.nested_scale = nested_scale_.data();
        g.nested_size = 4;
        g.nested_offset = 0.5f;
    }

    Numbers numbers_;
    Matrix w_;
    std::vector<int32_t> data_, zero_, of_column_, bytes_;
    std::vector<float> floats_, code_, nested_code_, nested_scale_;
    Typed scale_{{}, DType::f32};
};

/// GPTQ's matrices are whole words in both directions.
inline void round_to_words(const Style& style, int64_t& rows, int64_t& cols) {
    if (style.coding != Coding::int4_by_column) return;
    rows = pieces(rows, 8) * 8;
    cols = pieces(cols, 8) * 8;
}

/// For sums of k products with elements of a matrix that was decoded: each is a rounded product
/// itself, which may lie on the other side of a step of bf16.
inline Tolerance coded_tolerance(int64_t k, Compute compute) {
    Tolerance tolerance = sum_tolerance(k);
    const double terms = static_cast<double>(k);
    tolerance.absolute +=
        compute == Compute::bf16 ? std::sqrt(terms) * 0x1p-9 * 0.25 : terms * 4 * unit_roundoff;
    return tolerance;
}

}  // namespace mllama::test
