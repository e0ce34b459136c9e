// Room for the keys and values of one layer, taken once and shared by all texts.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "tensor/ops.h"

namespace mllama {

/// So many blocks of 64 keys (kernels/kv_layout.h), of which each text has some that follow each other:
/// a run. A run grows where it lies if it can; if it cannot, it moves to a gap, or all move together. So
/// whatever is not in use can be had, in any order, without more memory.
class KvPool : public std::enable_shared_from_this<KvPool> {
  public:
    struct Run {
        int64_t first = 0;   ///< block
        int64_t blocks = 0;  ///< 0: nowhere
    };

    /// Takes the memory. Throws Error if there is not as much.
    static std::shared_ptr<KvPool> take(const KvLayout& layout, int64_t keys, Device device);
    KvPool(const KvPool&) = delete;
    KvPool& operator=(const KvPool&) = delete;

    /// A run of no blocks; it ends with the last copy of the pointer, which keeps the pool.
    std::shared_ptr<Run> new_run();

    /// Makes the run have `blocks` blocks, at least as many as it has, and keeps what is in them. It and
    /// others may move: views of before are not valid any more. False if not so many are free; then
    /// nothing changes.
    bool grow(Run& run, int64_t blocks);

    /// Keys and values of a run's blocks, as KeysValues has them; scales are undefined if there are none.
    [[nodiscard]] Tensor keys(const Run& run) const { return part(keys_, run); }
    [[nodiscard]] Tensor values(const Run& run) const { return part(values_, run); }
    [[nodiscard]] Tensor key_scales(const Run& run) const { return part(key_scales_, run); }
    [[nodiscard]] Tensor value_scales(const Run& run) const { return part(value_scales_, run); }

    [[nodiscard]] int64_t blocks() const { return keys_.dim(0); }

  private:
    KvPool(const KvLayout& layout, int64_t keys, Device device);
    [[nodiscard]] static Tensor part(const Tensor& all, const Run& run) {
        return all.defined() ? all.rows(run.first, run.first + run.blocks) : Tensor();
    }
    [[nodiscard]] std::vector<Run*> others_in_order(const Run& run) const;
    void move(Run& run, int64_t to);
    void move_together(Run& run, const std::vector<Run*>& others);

    Tensor keys_, values_, key_scales_, value_scales_;  // of `blocks` blocks; see KvCache
    std::mutex mutex_;                                  // of runs_: texts may end in other threads
    std::vector<Run*> runs_;
};

}  // namespace mllama
