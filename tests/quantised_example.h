// A layer of each quantised format, right until a test spoils it.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/json_object.h"
#include "mllama/checkpoint_weights.h"
#include "tests/temporary_directory.h"

namespace mllama::test {

inline const std::string layer = "language_model.model.layers.0.mlp.up_proj";
inline constexpr int64_t rows = 24, cols = 64;

using Tensors = std::map<std::string, Tensor>;  // by what stands behind the layer's name

inline Tensor words(const Shape& shape, int32_t value = 0x53535353) {
    return Tensor::from(std::vector<int32_t>(static_cast<size_t>(shape.numel()), value), shape);
}

inline Tensor floats(const Shape& shape, float value = 0.5f) {
    return Tensor::from(std::vector<float>(static_cast<size_t>(shape.numel()), value), shape);
}

inline Tensor bytes(std::string_view text) {
    return Tensor::from(std::vector<uint8_t>(text.begin(), text.end()));
}

inline Json weights_args(int bits, const char* type, const char* strategy, const Json& group_size) {
    return {{"num_bits", bits},
            {"type", type},
            {"symmetric", true},
            {"strategy", strategy},
            {"group_size", group_size}};
}

inline Json compressed(const char* format, const Json& weights) {
    return {{"quant_method", "compressed-tensors"},
            {"format", format},
            {"quantization_status", "compressed"},
            {"ignore", {"lm_head"}},
            {"config_groups",
             {{"group_0",
               {{"targets", {"Linear"}}, {"weights", weights}, {"input_activations", nullptr}}}}}};
}

/// A quantization_config and the tensors of a layer (rows, cols).
struct Example {
    Json config;
    Tensors tensors;

    /// What reading the layer gives.
    template <class Function>
    void with_weights(const Function& function) const {
        const TemporaryDirectory folder;
        std::vector<std::pair<std::string, Tensor>> stored;
        for (const auto& [ending, tensor] : tensors) stored.emplace_back(layer + ending, tensor);
        write_safetensors(folder / "model.safetensors", stored);
        const Json document = {{"quantization_config", config}};
        const QuantisationConfig read =
            read_quantisation_config(JsonObject(document, "config.json"));
        const Checkpoint checkpoint = open_checkpoint(folder.path());
        function(CheckpointWeights(checkpoint, read));
    }
    [[nodiscard]] Weight weight() const {
        Weight result;
        with_weights([&](const auto& w) { result = w.weight(layer, rows, cols); });
        return result;
    }
    [[nodiscard]] std::string error() const {
        return error_of([&] { (void)weight(); });
    }
};

inline Example int4() {
    return {compressed("pack-quantized", weights_args(4, "int", "group", 32)),
            {{".weight_packed", words({rows, cols / 8})},
             {".weight_scale", floats({rows, cols / 32})},
             {".weight_shape", Tensor::from(std::vector<int64_t>{rows, cols})}}};
}

inline Example int4_with_zeros() {
    Example e = int4();
    e.config["config_groups"]["group_0"]["weights"]["symmetric"] = false;
    e.tensors[".weight_zero_point"] = words({rows / 8, cols / 32});
    return e;
}

inline Example int8() {
    Example e = {compressed("int-quantized", weights_args(8, "int", "channel", nullptr)),
                 {{".weight", Tensor::zeros({rows, cols}, DType::i8)},
                  {".weight_scale", floats({rows, 1})}}};
    e.config["config_groups"]["group_0"]["input_activations"] = {{"num_bits", 8},
                                                                 {"type", "int"},
                                                                 {"symmetric", true},
                                                                 {"strategy", "token"},
                                                                 {"dynamic", true}};
    return e;
}

inline Example fp8() {
    return {
        compressed("float-quantized", weights_args(8, "float", "tensor", nullptr)),
        {{".weight", Tensor::zeros({rows, cols}, DType::f8_e4m3)}, {".weight_scale", floats({1})}}};
}

inline Example gptq() {
    std::vector<int32_t> groups;
    for (int32_t i = 0; i < cols; ++i) groups.push_back(i / 32);
    return {{{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 32}, {"desc_act", true}},
            {{".qweight", words({cols / 8, rows})},
             {".scales", floats({cols / 32, rows})},
             {".qzeros", words({cols / 32, rows / 8})},
             {".g_idx", Tensor::from(groups)}}};
}

inline Json nf4_state() {
    return {
        {"quant_type", "nf4"}, {"blocksize", 64}, {"dtype", "bfloat16"}, {"shape", {rows, cols}}};
}

inline Example nf4() {
    return {{{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}},
            {{".weight", Tensor::zeros({rows * cols / 2, 1}, DType::u8)},
             {".weight.absmax", floats({rows * cols / 64})},
             {".weight.quant_map", floats({16})},
             {".weight.quant_state.bitsandbytes__nf4", bytes(nf4_state().dump())}}};
}

inline Example nf4_nested() {
    Example e = nf4();
    Json state = nf4_state();
    state.update({{"nested_blocksize", 16}, {"nested_dtype", "float32"}, {"nested_offset", 0.25}});
    e.tensors[".weight.quant_state.bitsandbytes__nf4"] = bytes(state.dump());
    e.tensors[".weight.absmax"] = Tensor::zeros({rows * cols / 64}, DType::u8);
    e.tensors[".weight.nested_absmax"] = floats({2});
    e.tensors[".weight.nested_quant_map"] = floats({256});
    return e;
}

using Make = Example (*)();

}  // namespace mllama::test
