// Weights that nobody trained: of the shapes and sizes of a published model, for measuring speed
// where there is no checkpoint. They are made when they are asked for, so there is no list of
// tensors: the loader knows what the model consists of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mllama/config.h"
#include "mllama/tensor_source.h"

namespace mllama {

/// Every element is determined by the seed, the name of its tensor and its place in it. States keep
/// their size through the layers:
/// - a matrix (out, in): normal, standard deviation 1 / sqrt(in);
/// - embeddings: normal, standard deviation 1/2. Tables by aspect ratio are zero for the tiles that
///   a picture of that ratio leaves unused, as in the published files;
/// - the weights of norms: about 1; biases: about 0; standard deviation 1/10;
/// - gates, of shape (1): between 1/4 and 3/4.
/// The normal distribution is that of its 4096 quantiles.
class RandomWeights : public TensorSource {
  public:
    /// `dtype`: bf16 or f32.
    RandomWeights(const ModelConfig& config, DType dtype, uint64_t seed = 1);

    /// Made by all threads, in huge pages where the system has them. Throws Error if there is not
    /// enough memory.
    [[nodiscard]] Tensor tensor(const std::string& name,
                                const std::vector<int64_t>& shape) const override;
    [[nodiscard]] Tensor outline(const std::string& /*name*/,
                                 const std::vector<int64_t>& shape) const override {
        return Tensor::outline(shape, dtype_);
    }

  private:
    template <class Element>
    void fill(Tensor& tensor, uint64_t key, float mean, float deviation) const;
    void clear_unused_tiles(Tensor& table) const;

    VisionConfig vision_;
    DType dtype_;
    uint64_t seed_;
    std::vector<float> quantiles_;  // of the standard normal distribution
};

}  // namespace mllama
