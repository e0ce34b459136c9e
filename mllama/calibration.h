// What matters in a layer's weight, from what goes into the layer: an error in a column counts as
// much as the column's inputs are large.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "mllama/request.h"

namespace mllama {

/// By the published name of a linear layer: what a column of its weight counts, (in_features).
using ColumnImportance = std::map<std::string, std::vector<float>, std::less<>>;

/// The mean square of every column of what goes into each linear layer of the model, when it reads
/// these requests, as stored. Layers that nothing goes into (of pictures, where there is none) are
/// left out. `progress`: requests. Throws Error as Mllama::load and Mllama::prepare, and where an
/// input is not finite; Interrupted if `cancelled`, asked between requests, says so.
ColumnImportance column_importance(const std::string& checkpoint_dir,
                                   std::span<const Request> requests,
                                   const std::function<void(int64_t done, int64_t all)>& progress,
                                   const std::function<bool()>& cancelled);

}  // namespace mllama
