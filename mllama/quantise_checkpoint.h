// Writing a quantised checkpoint directory, as compressed-tensors has them: int8 as "int-quantized"
// (W8A8), int4 as "pack-quantized" (W4A16). Of a layer X of (out, in):
//
//     int8   X.weight I8 (out, in)               X.weight_scale BF16 (out, 1)
//     int4   X.weight_packed I32 (out, in / 8)   X.weight_scale BF16 (out, groups)
//            X.weight_shape I64 (2) = out, in
//
// Source: compressed-tensors 0.11, compressors/quantized_compressors.
#pragma once

#include <functional>
#include <string>

#include "mllama/calibration.h"
#include "mllama/quantise.h"

namespace mllama {

struct QuantiseObserver {
    std::function<void(int64_t done, int64_t all)> progress;  ///< bytes of the tensors read
    std::function<bool()> cancelled;  ///< asked between 64 MB; true ends it with an Interrupted
};

/// The formats of the plan must have one coding. Reads the checkpoint directory `from` and writes
/// the new directory `to`: its shards one by one under their names, with the layers of the plan
/// quantised (columns weighed by `importance`, where a layer has one) and all else as it is; their
/// index; config.json with a quantization_config; and copies of the other files that are no weights.
/// Holds 64 MB of a tensor in memory at a time, and what that is quantised to. `to` appears when it
/// is complete (AtomicDirectory). Throws Error naming the file and the tensor: `to` exists, the disk
/// is full, a checkpoint that does not load or is quantised already, layers that cannot be quantised.
void quantise_checkpoint(const std::string& from, const std::string& to,
                         const QuantisationPlan& plan, const ColumnImportance& importance,
                         const QuantiseObserver& observer);

}  // namespace mllama
