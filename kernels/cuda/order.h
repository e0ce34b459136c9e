// For tests of the kernels.
#pragma once

namespace mllama::cuda {

/// Threads of a block of the emulated device run in descending order from now on, or in ascending
/// order again. Means nothing to a real one.
void set_reversed(bool reversed);

/// Whether attention may use warpgroups, if the device has them: it may, unless a test says otherwise.
void allow_warpgroups(bool allowed);

}  // namespace mllama::cuda
