// Rotary position embedding (Su et al. 2021), with the stretched wavelengths of Llama 3.1.
#pragma once

#include <cstdint>

#include "tensor/ops.h"

namespace mllama {

/// `standard` is "default" in config files. `llama3` leaves short wavelengths, divides the
/// frequency of long ones by `factor` and goes smoothly between: source
/// `_compute_llama3_parameters`, modeling_rope_utils.py of transformers.
struct RopeConfig {
    enum class Type { standard, llama3 };
    Type type = Type::standard;
    double theta = 0;
    double factor = 1;
    double low_freq_factor = 1;
    double high_freq_factor = 1;
    int64_t original_max_position_embeddings = 0;
};

class RotaryEmbedding {
  public:
    RotaryEmbedding() = default;
    /// Pair i of head_dim / 2 turns by position * theta^(-2i / head_dim) radians. head_dim is even.
    RotaryEmbedding(int64_t head_dim, const RopeConfig& config);

    /// cos, sin (positions, head_dim / 2) f32 of the angles at these positions, all on one device.
    /// positions (positions) i64.
    void angles(const Tensor& positions, Tensor& cos, Tensor& sin) const {
        ops::rope_angles(positions, inverse_frequencies_[cos.device()], cos, sin);
    }

    /// (head_dim / 2) radians a position. Float32 as in the reference: at position 100,000 the last
    /// bit of a frequency shows.
    [[nodiscard]] const Tensor& inverse_frequencies() const {
        return inverse_frequencies_[Device::cpu];
    }

    /// Gives a device frequencies of its own; angles then serves it too.
    void add_device(Device device) {
        inverse_frequencies_[device] = inverse_frequencies().to(device);
    }

  private:
    PerDevice<Tensor> inverse_frequencies_;  // (head_dim / 2) f32
};

}  // namespace mllama
