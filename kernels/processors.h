// How many threads this process should compute with.
#pragma once

namespace mllama::cpu {

/// The physical cores among the processors that this process may run on (its affinity), or fewer if
/// its control group is allowed less processor time. Two hardware threads of a core share the units
/// that multiply: a second one brings nothing. At least 1.
int usable_cores();

}  // namespace mllama::cpu
