// Layers quantised by compressed-tensors: pack-quantized, int-quantized, float-quantized.
#include <algorithm>
#include <array>

#include "kernels/error.h"
#include "mllama/quantised_formats.h"

namespace mllama {
namespace {

using Format = CompressedScheme::Format;
using Strategy = CompressedScheme::Strategy;

bool is_packed(const CompressedScheme& scheme) {
    return scheme.format == Format::packed_int4;
}

/// The type of the weight in int-quantized and float-quantized.
bool is_coded(const TensorInfo& info) {
    return info.dtype == DType::i8 || info.dtype == DType::f8_e4m3;
}

/// A quantised layer has a scale, and of int-quantized and float-quantized the type of its weight
/// gives it away as well: so that the one that is missing is named.
bool holds_quantised(const Checkpoint& checkpoint, const CompressedScheme& scheme,
                     const std::string& layer) {
    const std::string weight = layer + ".weight";
    const bool scaled = checkpoint.has(layer + ".weight_scale");
    if (is_packed(scheme))
        return checkpoint.has(layer + ".weight_packed") || (scaled && !checkpoint.has(weight));
    if (scaled || !checkpoint.has(weight)) return scaled;
    return is_coded(checkpoint.info(weight));
}

/// Whether any scheme could find it quantised. Asked first, since the patterns that give a layer its
/// scheme take time, and most tensors of a checkpoint are plain ones.
bool may_be_quantised(const Checkpoint& checkpoint, const std::string& layer) {
    const std::string weight = layer + ".weight";
    if (checkpoint.has(layer + ".weight_packed") || checkpoint.has(layer + ".weight_scale"))
        return true;
    return checkpoint.has(weight) && is_coded(checkpoint.info(weight));
}

/// weight_shape: two integers, I64 (as the writer's torch makes them) or I32.
LayerShape stored_shape(const Checkpoint& checkpoint, const std::string& layer) {
    constexpr int64_t largest = int64_t{1} << 31;
    const std::string name = layer + ".weight_shape";
    const bool i32 = checkpoint.has(name) && checkpoint.info(name).dtype == DType::i32;
    const Tensor stored = checkpoint.get(name, i32 ? DType::i32 : DType::i64, {2});
    const auto size = [&](int64_t i) {
        const int64_t found = i32 ? stored.data<int32_t>()[i] : stored.data<int64_t>()[i];
        if (found < 0 || found > largest)
            fail(checkpoint.where(name), ": expected a size in [0, ", largest, "], found ", found);
        return found;
    };
    return {size(0), size(1)};
}

/// Sizes that the words of the layer do not have are those of no tensor.
void check_words(const Checkpoint& checkpoint, const std::string& layer, LayerShape shape) {
    const std::string name = layer + ".weight_packed";
    const std::vector<int64_t> words = {shape.out_features, pieces(shape.in_features, 8)};
    if (checkpoint.info(name).shape == words) return;
    reject_tensor(checkpoint, name,
                  "I32 (" + std::to_string(words[0]) + ", " + std::to_string(words[1]) +
                      ") of the " + std::to_string(shape.out_features) + " rows and " +
                      std::to_string(shape.in_features) + " columns of its weight_shape");
}

void check_stored_shape(const Checkpoint& checkpoint, const std::string& layer, LayerShape shape) {
    const LayerShape found = stored_shape(checkpoint, layer);
    if (found.out_features != shape.out_features || found.in_features != shape.in_features) {
        fail(checkpoint.where(layer + ".weight_shape"), ": expected ", shape.out_features, ", ",
             shape.in_features, ", found ", found.out_features, ", ", found.in_features);
    }
}

/// weight_scale (rows, groups), or of one element.
Tensor read_scale(const Checkpoint& checkpoint, const CompressedScheme& scheme,
                  const std::string& layer, int64_t rows, int64_t groups) {
    const std::string name = layer + ".weight_scale";
    if (scheme.strategy != Strategy::tensor) return checkpoint.get(name, {rows, groups});
    // A scalar, a vector or a matrix, as torch has it.
    const bool one =
        checkpoint.has(name) && checkpoint.info(name).shape.size() <= 2 &&
        std::all_of(checkpoint.info(name).shape.begin(), checkpoint.info(name).shape.end(),
                    [](int64_t size) { return size == 1; });
    return checkpoint.get(name, one ? Shape(checkpoint.info(name).shape) : Shape{1}).view({1, 1});
}

/// Zeros as versions before 0.9 write them, I8 (rows, groups) in [-8, 7], packed as later ones do it.
Tensor pack_zeros(const Checkpoint& checkpoint, const std::string& name, int64_t rows,
                  int64_t groups) {
    const Tensor stored = checkpoint.get(name, DType::i8, {rows, groups});
    Tensor packed = Tensor::zeros({pieces(rows, 8), groups}, DType::i32);
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t g = 0; g < groups; ++g) {
            const int zero = stored.data<int8_t>()[row * groups + g];
            if (zero < -8 || zero > 7)
                fail(checkpoint.where(name), ": expected zeros in [-8, 7], found ", zero);
            int32_t& word = packed.data<int32_t>()[row / 8 * groups + g];
            const uint32_t nibble = static_cast<uint32_t>(zero + 8) << (4 * (row % 8));
            word = static_cast<int32_t>(static_cast<uint32_t>(word) | nibble);
        }
    }
    return packed;
}

Tensor read_zeros(const Checkpoint& checkpoint, const std::string& layer, int64_t rows,
                  int64_t groups) {
    const std::string name = layer + ".weight_zero_point";
    if (checkpoint.has(name) && checkpoint.info(name).dtype == DType::i8)
        return pack_zeros(checkpoint, name, rows, groups);
    return checkpoint.get(name, DType::i32, {pieces(rows, 8), groups});
}

/// A g_idx that the writer made and never set holds nothing but -1.
bool has_order(const Checkpoint& checkpoint, const std::string& name, int64_t in_features) {
    if (!checkpoint.has(name)) return false;
    const Tensor group = checkpoint.get(name, DType::i32, {in_features});
    const int32_t* begin = group.data<int32_t>();
    return !std::all_of(begin, begin + in_features, [](int32_t g) { return g == -1; });
}

}  // namespace

std::optional<LayerShape> quantised_shape(const Checkpoint& checkpoint,
                                          const CompressedTensorsConfig& config,
                                          const std::string& layer) {
    if (!may_be_quantised(checkpoint, layer)) return std::nullopt;
    const CompressedScheme* scheme = config.scheme(layer);
    if (scheme == nullptr || !holds_quantised(checkpoint, *scheme, layer)) return std::nullopt;
    if (is_packed(*scheme)) {
        const LayerShape shape = stored_shape(checkpoint, layer);
        check_words(checkpoint, layer, shape);
        return shape;
    }
    const std::vector<int64_t>& shape = checkpoint.info(layer + ".weight").shape;
    if (shape.size() != 2) reject_tensor(checkpoint, layer + ".weight", "a matrix");
    return LayerShape{shape[0], shape[1]};
}

Weight quantised_weight(const Checkpoint& checkpoint, const CompressedTensorsConfig& config,
                        const std::string& layer, LayerShape shape) {
    const CompressedScheme& scheme = *config.scheme(layer);
    const auto [rows, cols] = shape;
    Weight w;
    w.rows = rows;
    w.cols = cols;
    w.group_size =
        scheme.strategy == Strategy::group ? scheme.group_size : std::max<int64_t>(cols, 1);
    const int64_t groups = pieces(cols, w.group_size);
    switch (scheme.format) {
        case Format::packed_int4:
            w.coding = Coding::int4;
            w.data = checkpoint.get(layer + ".weight_packed", DType::i32, {rows, pieces(cols, 8)});
            check_stored_shape(checkpoint, layer, shape);
            // Numbers and zeros are stored plus 8; without zeros those 8 are the zero.
            w.zero_add = scheme.symmetric ? 8 : 0;
            break;
        case Format::int8:
            w.coding = Coding::int8;
            w.weight_only = !scheme.int8_activations;
            w.data = checkpoint.get(layer + ".weight", DType::i8, {rows, cols});
            break;
        case Format::fp8:
            w.coding = Coding::fp8;
            w.data = checkpoint.get(layer + ".weight", DType::f8_e4m3, {rows, cols});
            break;
    }
    w.scale = read_scale(checkpoint, scheme, layer, rows, groups);
    const std::string zeros = layer + ".weight_zero_point";
    if (!scheme.symmetric) w.zero = read_zeros(checkpoint, layer, rows, groups);
    if (scheme.symmetric && checkpoint.has(zeros))
        reject_tensor(checkpoint, zeros, "none, since weights are symmetric");
    const std::string g_idx = layer + ".weight_g_idx";
    if (scheme.activation_order) (void)checkpoint.info(g_idx);  // cannot do without
    if (has_order(checkpoint, g_idx, cols))
        w.of_column = group_of_column(checkpoint, g_idx, cols, w.group_size, groups);
    return w;
}

std::span<const std::string_view> tensor_names(const CompressedTensorsConfig&) {
    static constexpr std::array<std::string_view, 6> names = {
        ".weight_packed", ".weight_scale", ".weight",
        ".weight_shape",  ".weight_g_idx", ".weight_zero_point"};
    return names;
}

}  // namespace mllama
