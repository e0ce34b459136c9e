// A step that is done over and over: on a GPU its operations are recorded once and started together
// from then on, which takes the time of one launch instead of hundreds (a CUDA graph).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "tensor/storage.h"

namespace mllama {

class Recording {
  public:
    Recording();
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    /// Does what body() does. `key` holds all that the operations of the body depend on beside the
    /// contents of tensors: shapes, numbers, addresses. The first two calls with a new key run the
    /// body (the second while it is recorded); later ones repeat the recording.
    ///
    /// What changes from call to call under the same key must be read from tensors.
    template <class Body>
    void run(std::span<const int64_t> key, Body&& body) {
        switch (next(key)) {
            case Next::run:
                body();
                break;
            case Next::record:
                begin();
                try {
                    body();
                } catch (...) {
                    abandon();
                    throw;
                }
                end();
                launch();
                break;
            case Next::repeat:
                launch();
                break;
        }
    }

    /// How often something was recorded, and how often a recording ran: for tests.
    [[nodiscard]] int64_t records() const { return records_; }
    [[nodiscard]] int64_t repeats() const { return repeats_; }

  private:
    enum class Next { run, record, repeat };
    Next next(std::span<const int64_t> key);
    void begin();
    void end();
    void abandon() noexcept;
    void launch();

    struct Graph;
    std::unique_ptr<Graph> graph_;
    std::vector<int64_t> key_;  // of the last call
    bool recorded_ = false;     // there is a recording of that key
    int64_t records_ = 0;
    int64_t repeats_ = 0;
};

}  // namespace mllama
