// quantization_config of config.json: which layers were quantised when a checkpoint was written, and
// how.
//
// Sources: compressed-tensors 0.11 (quantization/quant_config.py, quant_scheme.py, quant_args.py,
// lifecycle/apply.py), GPTQModel (quantization/config.py), and transformers 4.56.2
// (utils/quantization_config.py).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "mllama/module_pattern.h"

namespace mllama {

class JsonObject;

/// How compressed-tensors stores the layers of one of its config_groups.
struct CompressedScheme {
    enum class Format : uint8_t {
        packed_int4,  ///< pack-quantized
        int8,         ///< int-quantized
        fp8,          ///< float-quantized
    };
    enum class Strategy : uint8_t { tensor, channel, group };  ///< what has a scale of its own

    Format format = Format::packed_int4;
    Strategy strategy = Strategy::channel;
    int64_t group_size = 0;         ///< columns, of Strategy::group
    bool symmetric = true;          ///< no zero points
    bool activation_order = false;  ///< actorder "group": a g_idx tells the group of each column
    bool int8_activations =
        false;  ///< int8: activations are meant to be rounded to int8, a token at a
                ///< time, when the model runs
};

/// quant_method compressed-tensors.
class CompressedTensorsConfig {
  public:
    /// The scheme of a module, by its name in the files ("language_model.lm_head"), or null: it is
    /// ignored, or no group targets it. Names may be listed in either style: as in the files, or as
    /// transformers 4.52 and later name modules in memory.
    [[nodiscard]] const CompressedScheme* scheme(std::string_view module) const;

    static CompressedTensorsConfig read(const JsonObject& json);

  private:
    std::vector<ModulePattern> ignore_;
    // In the order in which they are tried: exact names, then expressions, each by their text.
    std::vector<std::pair<ModulePattern, CompressedScheme>> targets_;
};

/// quant_method gptq. Which layers are quantised, their names and tensors say.
struct GptqConfig {
    int64_t group_size = 128;       ///< columns; -1: the whole row
    bool activation_order = false;  ///< desc_act: columns belong to groups by g_idx
    bool stores_zero_less_one =
        true;  ///< of checkpoint_format gptq; gptq_v2 stores zeros as they are

    static GptqConfig read(const JsonObject& json);
};

/// quant_method bitsandbytes, in 4 bits. Every quantised layer describes itself.
struct BitsAndBytesConfig {
    static BitsAndBytesConfig read(const JsonObject& json);
};

/// monostate: no quantization_config.
using QuantisationConfig =
    std::variant<std::monostate, CompressedTensorsConfig, GptqConfig, BitsAndBytesConfig>;

/// Reads the quantization_config of a config.json, if it has one. Errors: Error naming the file and
/// the key, expected and found; what this program does not know is an error.
QuantisationConfig read_quantisation_config(const JsonObject& config);

}  // namespace mllama
