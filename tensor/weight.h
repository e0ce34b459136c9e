// The weight of a linear layer: a matrix (rows, cols) = (out_features, in_features), plain or coded
// in one of the published formats, as views of the files that hold it.
#pragma once

#include <string>
#include <string_view>

#include "kernels/cpu_ops.h"
#include "tensor/tensor.h"

namespace mllama {

struct Weight {
    Weight() = default;
    /// A plain matrix: f32, bf16 or f16.
    Weight(const Tensor& plain)  // NOLINT(google-explicit-constructor): a matrix is a weight
        : data(plain), rows(plain.rows()), cols(plain.cols()) {}

    Tensor data;  ///< (rows, cols) if plain, else of the shape that `coding` says
    int64_t rows = 0, cols = 0;
    Coding coding = Coding::plain;
    bool weight_only = false;  ///< int8 of a format that leaves activations in 16 bits (W8A16)

    // Of a coded matrix; see kernels/coding.h.
    int64_t group_size = 0;  ///< columns of a group (nf4: elements of a block)
    bool by_group = false;   ///< scale and zero are (groups, rows) as in GPTQ, not (rows, groups)
    /// (rows, groups) f32, bf16 or f16, or one element for all; nf4: (blocks) f32, or u8 where they
    /// are quantised.
    Tensor scale;
    Tensor zero;  ///< i32 (ceil(rows / 8), groups), or (groups, ceil(rows / 8)); or undefined
    int32_t zero_add = 0;
    Tensor of_column;     ///< i32 (cols), the group of each column; or undefined: neighbours
    Tensor code;          ///< nf4: f32 (16)
    Tensor nested_code;   ///< nf4 with quantised scales: f32 (256)
    Tensor nested_scale;  ///< f32 (ceil(blocks / nested_size))
    int64_t nested_size = 0;
    float nested_offset = 0.0f;

    [[nodiscard]] bool defined() const { return data.defined(); }
    [[nodiscard]] int64_t numel() const { return rows * cols; }
    /// Bytes of all that is read when the matrix is multiplied.
    [[nodiscard]] int64_t bytes() const;
    /// "f32", "bf16", "f16", "int8", "int4", "fp8", "nf4"
    [[nodiscard]] std::string_view type_name() const;
    /// The same with what scales there are: "int4 (groups of 128, zero points)", "int8 (a scale a
    /// row)", "nf4 (blocks of 64, scales in 8 bits)".
    [[nodiscard]] std::string description() const;
    /// Calls visit(Tensor&) for all tensors that are there.
    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        for (Tensor* tensor :
             {&data, &scale, &zero, &of_column, &code, &nested_code, &nested_scale}) {
            if (tensor->defined()) visit(*tensor);
        }
    }

    /// For the kernels; valid as long as the tensors are.
    [[nodiscard]] Matrix matrix() const;
};

/// The same numbers as a plain matrix (rows, cols) of f32 or bf16.
Tensor decoded(const Weight& weight, DType dtype);

}  // namespace mllama
