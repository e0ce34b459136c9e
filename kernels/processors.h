// How many threads this process should compute with.
#pragma once

#include <string>

namespace mllama::cpu {

/// The physical cores among the processors that this process may run on (its affinity), or fewer if
/// its control group is allowed less processor time. Two hardware threads of a core share the units
/// that multiply: a second one brings nothing. At least 1. `root`: see control_group.h.
int usable_cores(const std::string& root = "");

}  // namespace mllama::cpu
