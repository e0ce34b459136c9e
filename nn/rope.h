// Rotary position embedding (Su et al. 2021), with the stretched wavelengths of Llama 3.1.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/tensor.h"

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

    /// cos, sin (positions, head_dim / 2) f32 of the angles at these positions.
    void angles(std::span<const int64_t> positions, Tensor& cos, Tensor& sin) const;

    /// (head_dim / 2) radians a position. Float32 as in the reference: at position 100,000 the last
    /// bit of a frequency shows.
    [[nodiscard]] const std::vector<float>& inverse_frequencies() const {
        return inverse_frequencies_;
    }

  private:
    std::vector<float> inverse_frequencies_;
};

}  // namespace mllama
