// What config.json says about quantised weights: the quantization_config of compressed-tensors.
//
//     {"quant_method": "compressed-tensors", "format": ..., "quantization_status": "compressed",
//      "config_groups": {"group_0": {"targets": [...], "weights": {...}, ...}, ...},
//      "ignore": [...]}
//
// Source: QuantizationConfig, QuantizationScheme and QuantizationArgs of compressed-tensors 0.11,
// src/compressed_tensors/quantization.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "io/json.h"
#include "mllama/quantise.h"

namespace mllama {

/// Collects the formats of all layers that are written, and puts them into words. Group sizes may
/// differ; int8 and int4 in one directory are not put into words here, since the readers of
/// transformers 4.56.2 take the one format that stands first.
class WrittenQuantisation {
  public:
    /// A linear layer by its published name, as QuantisationPlan::of. Layers that differ in nothing
    /// but their number must have one format: false if this one has another.
    [[nodiscard]] bool add(std::string_view module, const QuantisedFormat& format);

    [[nodiscard]] bool empty() const { return formats_.empty(); }

    /// Where all layers have one format its target is "Linear", as in what llm-compressor writes;
    /// else the kinds of layers by regular expressions, which fit the names of every version of
    /// transformers.
    /// Not of an empty one.
    [[nodiscard]] OrderedJson to_json() const;

  private:
    std::map<std::string, QuantisedFormat> formats_;  // by the expression for a kind of layer
};

}  // namespace mllama
