// What is timed: pictures, prompts, tokens.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "apps/bench/work.h"
#include "mllama/model.h"

namespace mllama {

/// What to time. Lengths and sizes are those of the command line, checked.
struct BenchPlan {
    int64_t images = 0;                    ///< pictures in front of every prompt; 0: none is timed
    std::vector<int64_t> prefill_tokens;   ///< lengths of prompts
    int64_t new_tokens = 0;                ///< tokens that a run of decoding makes
    std::vector<int64_t> decode_contexts;  ///< tokens before the first one that is timed, ...
    std::vector<int64_t> decode_batches;   ///< ... the first context with all of these, the others
                                           ///< with the first of these
};

/// One run of a workload.
struct BenchRun {
    double seconds = 0;
    double busy = 0;    ///< part of that time that the threads computed: 1 on a machine of its own
    double work = 0;    ///< floating-point operations, or bytes read if the memory is the limit
    double tokens = 0;  ///< tokens that went through the model; 0: not counted in tokens
};

struct Workload {
    /// first_token: pictures and prompt, as one who asks about a picture waits for it.
    enum class Kind { vision, prefill, first_token, decode };

    Kind kind = Kind::vision;
    std::string label;  ///< "decode at 512, 8 together"
    int64_t size = 0;   ///< tiles of a picture, tokens of a prompt, or of the context of decoding
    int64_t tiles = 0;  ///< first_token: of each picture
    int64_t batch = 1;  ///< sequences that are decoded together
    double bytes_touched =
        0;  ///< decode: what a step reads; less than a few caches never leaves them
    int64_t cache_bytes = 0;  ///< decode: keys and values to be made
    std::function<BenchRun()> run;
};

/// Makes the workloads of a plan. They hold on to `this`.
class Workloads {
  public:
    Workloads(const Model& model, const BenchPlan& plan) : model_(model), plan_(plan) {}
    Workloads(const Workloads&) = delete;
    Workloads& operator=(const Workloads&) = delete;

    /// In the order in which they are to run. Decoding that needs more memory than the `available`
    /// bytes (0: unknown), is left out, and named in `left_out` with what it needs: its keys and
    /// values, and weights that are pages of files, which the system may have to drop and read again.
    /// Weights in memory of their own are there already.
    [[nodiscard]] std::vector<Workload> list(int64_t available, std::vector<std::string>& left_out);

  private:
    [[nodiscard]] int64_t mapped_weights() const;
    void add_vision(std::vector<Workload>& list);
    [[nodiscard]] Workload prefill(int64_t tokens);
    [[nodiscard]] Workload first_token(int64_t tokens);
    [[nodiscard]] Workload decode(int64_t context, int64_t batch);
    [[nodiscard]] const VisionRows& picture_rows();
    /// The image tokens, then random ones.
    [[nodiscard]] std::vector<int64_t> prompt(int64_t tokens) const;
    /// A text of `tokens` tokens, with pictures, whose keys and values are random numbers: decoding
    /// reads them all the same.
    [[nodiscard]] Sequence random_text(int64_t tokens, int64_t capacity);

    const Model& model_;
    BenchPlan plan_;
    VisionRows picture_;  // of the largest picture that was timed
};

}  // namespace mllama
