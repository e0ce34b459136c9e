// Layers quantised by bitsandbytes to nf4 (QLoRA, Dettmers et al. 2023): blocks of neighbouring
// elements share a scale, absmax, which may be quantised itself.
#include <array>

#include "io/json_object.h"
#include "mllama/quantised_formats.h"

namespace mllama {
namespace {

constexpr const char* nf4_state = ".weight.quant_state.bitsandbytes__nf4";
constexpr const char* fp4_state = ".weight.quant_state.bitsandbytes__fp4";
constexpr int64_t most_state_bytes = 1 << 16;  // real ones have some 200
constexpr int64_t largest_size = int64_t{1} << 31;
constexpr int64_t largest_block = int64_t{1} << 20;

/// The text of a layer's quant_state.
std::string state_text(const Checkpoint& checkpoint, const std::string& name) {
    const TensorInfo& info = checkpoint.info(name);
    if (info.shape.size() != 1 || info.bytes > most_state_bytes) {
        reject_tensor(checkpoint, name,
                      "U8 of one dimension, at most " + std::to_string(most_state_bytes));
    }
    const Tensor bytes = checkpoint.get(name, DType::u8, info.shape);
    const uint8_t* data = bytes.data<uint8_t>();
    return {data, data + bytes.numel()};
}

/// What quant_state says, beside its tensors.
struct State {
    LayerShape shape;
    int64_t blocksize = 0;
    bool nested = false;  ///< absmax is quantised
    int64_t nested_blocksize = 0;
    float nested_offset = 0.0f;
};

State read_state(const Checkpoint& checkpoint, const std::string& layer) {
    const std::string name = layer + nf4_state;
    const std::string where = checkpoint.where(name);
    const Json document = parse_json(state_text(checkpoint, name), where);
    const JsonObject json(document, where);
    if (json.text("quant_type") != "nf4") json.reject("quant_type", "nf4");
    State state;
    const std::vector<int64_t> shape = json.integers("shape", 0, largest_size);
    if (shape.size() != 2) json.reject("shape", "out_features and in_features");
    state.shape = {shape[0], shape[1]};
    const int64_t bytes = checkpoint.info(layer + ".weight").bytes;
    if (pieces(shape[0] * shape[1], 2) != bytes) {
        json.reject("shape", "sizes of a matrix of " + std::to_string(bytes) +
                                 " bytes of two elements, as " + layer + ".weight is");
    }
    state.blocksize = json.integer("blocksize", 1, largest_block);
    state.nested = checkpoint.has(layer + ".weight.nested_absmax");
    if (!state.nested) return state;
    state.nested_blocksize = json.integer("nested_blocksize", 1, largest_block);
    state.nested_offset = static_cast<float>(json.number("nested_offset", -1e30, 1e30));
    return state;
}

}  // namespace

std::optional<LayerShape> quantised_shape(const Checkpoint& checkpoint, const BitsAndBytesConfig&,
                                          const std::string& layer) {
    if (checkpoint.has(layer + fp4_state))
        fail(checkpoint.where(layer + fp4_state), ": expected nf4, found fp4");
    if (!checkpoint.has(layer + nf4_state)) return std::nullopt;
    return read_state(checkpoint, layer).shape;
}

Weight quantised_weight(const Checkpoint& checkpoint, const BitsAndBytesConfig&,
                        const std::string& layer, LayerShape shape) {
    const State state = read_state(checkpoint, layer);
    const auto [rows, cols] = shape;
    if (state.shape.out_features != rows || state.shape.in_features != cols) {
        fail(checkpoint.where(layer + nf4_state), ": shape: expected [", rows, ",", cols,
             "], found [", state.shape.out_features, ",", state.shape.in_features, "]");
    }
    const int64_t elements = rows * cols;
    const int64_t blocks = pieces(elements, state.blocksize);
    const std::string weight = layer + ".weight";
    Weight w;
    w.rows = rows;
    w.cols = cols;
    w.coding = Coding::nf4;
    w.group_size = state.blocksize;
    w.data = checkpoint.get(weight, DType::u8, {pieces(elements, 2), 1});
    w.code = checkpoint.get(weight + ".quant_map", DType::f32, {16});
    w.scale = checkpoint.get(weight + ".absmax", state.nested ? DType::u8 : DType::f32, {blocks});
    if (!state.nested) return w;
    w.nested_size = state.nested_blocksize;
    w.nested_offset = state.nested_offset;
    w.nested_code = checkpoint.get(weight + ".nested_quant_map", DType::f32, {256});
    w.nested_scale = checkpoint.get(weight + ".nested_absmax", DType::f32,
                                    {pieces(blocks, state.nested_blocksize)});
    return w;
}

std::span<const std::string_view> tensor_names(const BitsAndBytesConfig&) {
    static constexpr std::array<std::string_view, 7> names = {
        ".weight.quant_state.bitsandbytes__nf4",
        ".weight.quant_state.bitsandbytes__fp4",
        ".weight",
        ".weight.absmax",
        ".weight.quant_map",
        ".weight.nested_absmax",
        ".weight.nested_quant_map"};
    return names;
}

}  // namespace mllama
