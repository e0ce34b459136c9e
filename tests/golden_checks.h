// Goldens of transformers against the program as its users run it, on whatever device.
#pragma once

#include <string>
#include <vector>

#include "tests/goldens.h"
#include "tests/temporary_directory.h"

namespace mllama::test {

/// Logits and hidden states may differ by this share of the largest; the wrong kind of GELU makes
/// 2e-4.
inline constexpr double state_share = 2e-5;

/// What is compared: a program, and options that every call gets.
struct Engine {
    std::string program;
    std::vector<std::string> options;

    /// Runs `forward` on a case and opens what it wrote.
    [[nodiscard]] SafetensorsFile forward(const GoldenCase& golden,
                                          const TemporaryDirectory& folder,
                                          const std::vector<std::string>& more) const;
};

/// Inputs, logits, hidden states, probabilities, loss and greedy answers of all cases of a
/// checkpoint, in float32.
void check_checkpoint(const Engine& engine, const std::string& checkpoint);

}  // namespace mllama::test
