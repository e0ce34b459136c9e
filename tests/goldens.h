// The goldens of tests/goldens/models: checkpoints, requests, and what transformers computed
// (make_model_goldens.py).
#pragma once

#include <string>
#include <vector>

#include "io/safetensors.h"
#include "tests/temporary_directory.h"

namespace mllama::test {

/// tests/goldens/models; requests name their pictures relative to it.
std::string models_folder();

struct GoldenCase {
    std::string checkpoint;  ///< name of the checkpoint directory
    std::string name;
    std::string date;
    int64_t max_new_tokens = 0;
    std::vector<std::string> texts;           ///< continuation of each sample
    std::vector<std::string> finish_reasons;  ///< of each sample

    [[nodiscard]] std::string directory() const { return models_folder() + "/" + checkpoint; }
    [[nodiscard]] std::string requests() const { return directory() + "/case_" + name + ".jsonl"; }
    [[nodiscard]] SafetensorsFile expected() const {
        return SafetensorsFile::open(directory() + "/case_" + name + ".safetensors");
    }
    [[nodiscard]] size_t samples() const { return texts.size(); }
    /// "" or "sample_2.": what the names of a sample's own tensors begin with.
    [[nodiscard]] std::string prefix(size_t sample) const {
        return samples() == 1 ? "" : "sample_" + std::to_string(sample) + ".";
    }
};

/// All checkpoints that have cases, in order of their names.
std::vector<std::string> golden_checkpoints();
std::vector<GoldenCase> golden_cases(const std::string& checkpoint);

/// A copy of a golden checkpoint that a test may spoil.
std::string copy_of_golden(const TemporaryDirectory& folder, const std::string& name);

/// Writes a_published's weights to its copy `directory`, all but `name`, which is `tensor`; not
/// defined: left out.
void replace_in_golden(const std::string& directory, const std::string& name, const Tensor& tensor);

/// "" if all elements are within `share` of the largest expected magnitude, else one line about the
/// worst. f32 tensors of equal shape.
std::string compare_to_largest(const Tensor& found, const Tensor& expected, double share);

/// "" if types, shapes and all bytes are equal, else what differs.
std::string compare_exactly(const Tensor& found, const Tensor& expected);

}  // namespace mllama::test
