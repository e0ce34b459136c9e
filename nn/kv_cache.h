// The keys and values that one attention layer keeps of one sequence.
#pragma once

#include <memory>
#include <utility>

#include "nn/kv_pool.h"

namespace mllama {

/// They lie as attention reads them, in blocks of 64 keys (kernels/kv_layout.h).
class KvCache {
  public:
    KvCache() = default;
    /// Of element type f32, bf16, f16 or i8 (with a scale for each key, value and head). Empty; room
    /// is made by reserve.
    KvCache(int64_t kv_heads, int64_t head_dim, DType dtype, Device device = Device::cpu)
        : layout_{kv_heads, head_dim, dtype}, device_(device) {}
    /// The same with its room in a pool of that device and layout, as long as the pool has it: a cache
    /// that outgrows the pool takes memory of its own.
    KvCache(int64_t kv_heads, int64_t head_dim, DType dtype, Device device,
            const std::shared_ptr<KvPool>& pool)
        : KvCache(kv_heads, head_dim, dtype, device) {
        pool_ = pool;
        if (pool_) run_ = pool_->new_run();
    }

    /// Makes room for at least `capacity` keys in all, keeping what is there. Memory is touched only
    /// as keys arrive. In a pool, others may move: views of their keys and values are valid no more.
    void reserve(int64_t capacity);

    /// k, v (keys, kv_heads * head_dim) f32, rounded to the cache's type. Makes room if there is
    /// none: the three steps that follow, in one.
    void append(const Tensor& k, const Tensor& v);

    // A step that may be recorded makes room before, stores, and advances behind it.

    /// Makes room for so many keys more: in a pool just these, else by doubling.
    void make_room(int64_t keys);
    /// Stores k and v behind the keys that are there; makes them no longer. `past`: i64 (1) on the
    /// device, length() of the time when the step runs; undefined: length() of now.
    void store(const Tensor& k, const Tensor& v, const Tensor& past = {});
    /// What `store` does, to be done together with what others store.
    [[nodiscard]] ops::StoreCall store_call(const Tensor& k, const Tensor& v,
                                            const Tensor& past = {}) const;
    /// So many keys that have been stored are there from now on.
    void advance(int64_t keys);

    /// Forgets all keys from `length` on.
    void truncate(int64_t length);

    [[nodiscard]] int64_t length() const { return length_; }
    [[nodiscard]] int64_t width() const { return layout_.kv_heads * layout_.head_dim; }
    /// Bytes of the keys and values that are there.
    /// 0 of a cache that no layer has, which has no layout.
    [[nodiscard]] int64_t bytes() const {
        return length_ == 0 ? 0 : length_ * layout_.bytes_of_key();
    }
    /// Keys that there is room for: whole blocks.
    [[nodiscard]] int64_t capacity() const {
        if (run_) return run_->blocks * KvLayout::block;
        return keys_.defined() ? keys_.dim(0) * KvLayout::block : 0;
    }
    [[nodiscard]] Device device() const { return device_; }
    [[nodiscard]] KeysValues keys_values() const { return keys_values(0); }
    /// Of the keys that are there and so many that have been stored behind them.
    [[nodiscard]] KeysValues keys_values(int64_t stored) const {
        KeysValues kv = room();
        kv.keys = length_ + stored;
        return kv;
    }
    /// Of a step that is recorded: `past` as of store.
    [[nodiscard]] KeysValues keys_values(const Tensor& past) const {
        KeysValues kv = room();
        kv.past = past;
        return kv;
    }

  private:
    /// All that there is room for.
    [[nodiscard]] KeysValues room() const;

    KvLayout layout_;
    Device device_ = Device::cpu;
    int64_t length_ = 0;
    std::shared_ptr<KvPool> pool_;      // or none
    std::shared_ptr<KvPool::Run> run_;  // where the room is in the pool; none: it is here
    Tensor keys_;                       // (blocks, kv_heads, key_rows, block, unit)
    Tensor values_;  // (blocks, kv_heads, value_parts, value_rows, part_width, unit)
    Tensor key_scales_, value_scales_;  // (blocks, kv_heads, block) of int8
};

}  // namespace mllama
