// The published formats of quantised linear layers: which tensors a layer is made of, and what they
// must be. One file a format: compressed_tensors.cpp, gptq.cpp, bitsandbytes.cpp. None of them
// converts weights: a Weight is made of views of the files, to be read by kernels/coding.h.
//
// A layer is called as in the files ("language_model.model.layers.0.mlp.up_proj"); its tensors are
// that name and what is written here behind "X".
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "io/checkpoint.h"
#include "mllama/quantisation_config.h"
#include "tensor/weight.h"

namespace mllama {

/// Sizes of a linear layer.
struct LayerShape {
    int64_t out_features = 0;
    int64_t in_features = 0;
};

// For each format three functions.
//
// quantised_shape: the sizes of layer X as its tensors say, or none if X is not quantised. Throws
// Error only if there is too little to tell them.
//
// quantised_weight: the weight of a layer X that is quantised. Throws Error naming file and tensor,
// expected and found, if a tensor is missing or not of the type and shape that the sizes and the
// config ask for.
//
// tensor_names: the endings of all tensors that the weight of a layer may be made of.

// compressed-tensors (https://github.com/neuralmagic/compressed-tensors, compressors/
// quantized_compressors/):
//
//   pack-quantized  X.weight_packed I32 (out, ceil(in / 8)), X.weight_shape I64 or I32 (2) = (out,
//                   in), X.weight_scale; nibble i (low first) of word w is column 8 w + i, plus 8.
//                   Not symmetric: X.weight_zero_point I32 (ceil(out / 8), groups), nibbles along
//                   the rows, plus 8 as well (before version 0.9: I8 (out, groups), as they
//                   are). Symmetric: none may be there. Activation order: X.weight_g_idx I32 (in),
//                   the group of each column, which actorder "group" cannot do without; one that
//                   holds a -1 was never set, and is not used
//   int-quantized   X.weight I8 (out, in), X.weight_scale
//   float-quantized X.weight F8_E4M3 (out, in), X.weight_scale
//
// weight_scale is F32, BF16 or F16: by group (out, ceil(in / group_size)), by channel (out, 1), by
// tensor of one element.
//
// A layer that `ignore` names is read as a plain one; so is one that holds no quantised tensors
// though a group targets it: the tensors decide.
std::optional<LayerShape> quantised_shape(const Checkpoint& checkpoint,
                                          const CompressedTensorsConfig& config,
                                          const std::string& layer);
Weight quantised_weight(const Checkpoint& checkpoint, const CompressedTensorsConfig& config,
                        const std::string& layer, LayerShape shape);
std::span<const std::string_view> tensor_names(const CompressedTensorsConfig& config);

// GPTQ (https://github.com/ModelCloud/GPTQModel, nn_modules/qlinear; AutoGPTQ before it):
// X.qweight I32 (in / 8, out), nibbles along the columns; X.scales (groups, out), F16, BF16 or F32;
// X.qzeros I32 (groups, out / 8), nibbles along the rows; X.g_idx I32 (in).
// w = (number - zero) * scale.
std::optional<LayerShape> quantised_shape(const Checkpoint& checkpoint, const GptqConfig& config,
                                          const std::string& layer);
Weight quantised_weight(const Checkpoint& checkpoint, const GptqConfig& config,
                        const std::string& layer, LayerShape shape);
std::span<const std::string_view> tensor_names(const GptqConfig& config);

// bitsandbytes (https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py, QuantState):
// X.weight U8 (out * in / 2, 1), X.weight.quant_map F32 (16), X.weight.absmax of each block;
// X.weight.quant_state.bitsandbytes__nf4 U8, the text of a JSON object {quant_type, blocksize,
// shape, ...}. Quantised twice: absmax is U8, with X.weight.nested_absmax F32, nested_quant_map F32
// (256), and nested_blocksize and nested_offset in the object.
std::optional<LayerShape> quantised_shape(const Checkpoint& checkpoint,
                                          const BitsAndBytesConfig& config,
                                          const std::string& layer);
Weight quantised_weight(const Checkpoint& checkpoint, const BitsAndBytesConfig& config,
                        const std::string& layer, LayerShape shape);
std::span<const std::string_view> tensor_names(const BitsAndBytesConfig& config);

// What they share.

/// "FILE: tensor NAME: expected ..., found TYPE (SHAPE)"
[[noreturn]] void reject_tensor(const Checkpoint& checkpoint, const std::string& name,
                                const std::string& expected);

/// A g_idx: the group of each column, I32 (in_features) of values in [0, groups); or undefined if
/// there is no tensor of that name, or columns are grouped in their order (g_idx[i] = i /
/// group_size).
Tensor group_of_column(const Checkpoint& checkpoint, const std::string& name, int64_t in_features,
                       int64_t group_size, int64_t groups);

}  // namespace mllama
