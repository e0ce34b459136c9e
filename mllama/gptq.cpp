// Layers quantised by GPTQModel or AutoGPTQ, in 4 bits.
#include <algorithm>
#include <array>

#include "kernels/error.h"
#include "mllama/quantised_formats.h"

namespace mllama {

std::optional<LayerShape> quantised_shape(const Checkpoint& checkpoint, const GptqConfig&,
                                          const std::string& layer) {
    const std::string name = layer + ".qweight";
    const bool without_numbers = checkpoint.has(layer + ".scales") &&
                                 !checkpoint.has(layer + ".weight");  // the missing one is named
    if (!checkpoint.has(name) && !without_numbers) return std::nullopt;
    const std::vector<int64_t>& shape = checkpoint.info(name).shape;
    if (shape.size() != 2) reject_tensor(checkpoint, name, "I32 (in_features / 8, out_features)");
    return LayerShape{shape[1], 8 * shape[0]};
}

Weight quantised_weight(const Checkpoint& checkpoint, const GptqConfig& config,
                        const std::string& layer, LayerShape shape) {
    const auto [rows, cols] = shape;
    if (rows % 8 != 0 || cols % 8 != 0) {
        fail(checkpoint.where(layer + ".qweight"),
             ": expected in_features and out_features that are multiples of 8, found ", cols,
             " and ", rows);
    }
    Weight w;
    w.rows = rows;
    w.cols = cols;
    w.coding = Coding::int4_by_column;
    w.by_group = true;
    w.group_size = config.group_size > 0 ? config.group_size : std::max<int64_t>(cols, 1);
    const int64_t groups = pieces(cols, w.group_size);
    w.data = checkpoint.get(layer + ".qweight", DType::i32, {cols / 8, rows});
    w.scale = checkpoint.get(layer + ".scales", {groups, rows});
    w.zero = checkpoint.get(layer + ".qzeros", DType::i32, {groups, rows / 8});
    w.zero_add = config.stores_zero_less_one ? 1 : 0;
    const std::string g_idx = layer + ".g_idx";
    if (config.activation_order) (void)checkpoint.info(g_idx);  // cannot do without
    w.of_column = group_of_column(checkpoint, g_idx, cols, w.group_size, groups);
    return w;
}

std::span<const std::string_view> tensor_names(const GptqConfig&) {
    static constexpr std::array<std::string_view, 4> names = {".qweight", ".scales", ".qzeros",
                                                              ".g_idx"};
    return names;
}

}  // namespace mllama
