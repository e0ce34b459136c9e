#include "tensor/weight.h"

#include <cassert>

#include "kernels/decode.h"
#include "tensor/ops.h"

namespace mllama {

int64_t Weight::bytes() const {
    return data.bytes() + scale.bytes() + zero.bytes() + of_column.bytes() + nested_scale.bytes();
}

std::string_view Weight::type_name() const {
    switch (coding) {
        case Coding::plain:
            return data.dtype() == DType::bf16  ? "bf16"
                   : data.dtype() == DType::f16 ? "f16"
                                                : "f32";
        case Coding::int8:
            return "int8";
        case Coding::int4:
        case Coding::int4_by_column:
            return "int4";
        case Coding::fp8:
            return "fp8";
        case Coding::nf4:
            return "nf4";
    }
    return "?";
}

std::string Weight::description() const {
    std::string text(type_name());
    if (coding == Coding::plain) return text;
    if (coding == Coding::nf4) {
        text += " (blocks of " + std::to_string(group_size);
        return text + (scale.dtype() == DType::u8 ? ", scales in 8 bits)" : ")");
    }
    if (scale.numel() == 1 && rows > 1) {
        text += " (one scale";
    } else if (group_size >= cols) {
        text += " (a scale a row";
    } else {
        text += " (groups of " + std::to_string(group_size);
    }
    if (coding == Coding::int4 || coding == Coding::int4_by_column)
        text += zero.defined() ? ", zero points" : ", symmetric";
    if (of_column.defined()) text += ", activation order";
    return text + ")";
}

Matrix Weight::matrix() const {
    Matrix m{data.data(), data.dtype(), rows, cols, data.row_stride(), coding, {}};
    if (coding == Coding::plain) return m;
    const auto floats = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
    const auto words = [](const Tensor& t) { return t.defined() ? t.data<int32_t>() : nullptr; };
    Groups& g = m.groups;
    g.size = group_size;
    g.of_column = words(of_column);
    g.scale = scale.data();
    g.scale_dtype = scale.dtype();
    const int64_t across = scale.cols();
    const bool one_scale = scale.numel() == 1;
    g.scale_row = one_scale ? 0 : by_group ? 1 : across;
    g.scale_group = one_scale ? 0 : by_group ? across : 1;
    g.zero = words(zero);
    g.zero_row = by_group || !zero.defined() ? 1 : zero.cols();
    g.zero_group = by_group && zero.defined() ? zero.cols() : 1;
    g.zero_add = zero_add;
    g.code = floats(code);
    g.nested_code = floats(nested_code);
    g.nested_scale = floats(nested_scale);
    g.nested_size = nested_size;
    g.nested_offset = nested_offset;
    return m;
}

Tensor decoded(const Weight& weight, DType dtype) {
    assert(dtype == DType::f32 || dtype == DType::bf16);
    Tensor result = Tensor::empty({weight.rows, weight.cols}, dtype);
    auto* to = static_cast<std::byte*>(result.data());
    const Matrix m = weight.matrix();
    ops::parallel_for(weight.rows, [&](int64_t row) {
        cpu::decode_row(m, row, 0, weight.cols, dtype, to + row * weight.cols * dtype_size(dtype));
    });
    return result;
}

}  // namespace mllama
