// Scratch memory of a forward pass: taken in a row, given back in reverse order, used again by the
// next token.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace mllama {

/// Hands out tensors from blocks of memory, one behind the other. Nothing is freed: a Scope goes
/// back to where it began. When a block is full another one is added, and when everything has been
/// given back they are merged into one as large as was ever in use: so the second pass over the
/// same work allocates nothing. For one thread at a time.
class Arena {
  public:
    explicit Arena(Device device = Device::cpu) : device_(device) {}
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    /// An uninitialised contiguous tensor, aligned to Storage::alignment. It is valid until the
    /// scope that is innermost now ends (or reset): later tensors then get the same bytes. Throws
    /// Error if there is not enough memory.
    Tensor take(const Shape& shape, DType dtype = DType::f32);

    /// A tensor (n) with these elements. On another device than the CPU they are read when this
    /// returns, and are there for what is queued later.
    template <class T>
    Tensor take_copy(std::span<const T> values) {
        const auto n = static_cast<int64_t>(values.size());
        Tensor result = take({n}, dtype_of<T>());
        result.fill_from(values.data());
        return result;
    }

    /// Makes room for so many bytes at once, while nothing is in use.
    void reserve(int64_t bytes);

    /// Gives everything back.
    void reset() { rewind({}); }

    /// The largest number of bytes that were in use at once.
    [[nodiscard]] int64_t peak_bytes() const { return peak_; }
    /// Bytes of all blocks.
    [[nodiscard]] int64_t capacity_bytes() const;
    [[nodiscard]] Device device() const { return device_; }
    /// Where the first block begins: what is taken in the same order from the same place is at the
    /// same addresses.
    [[nodiscard]] const void* start() const {
        return blocks_.empty() ? nullptr : std::as_const(*blocks_[0]).data();
    }

    /// Gives back, when it ends, what was taken during its life. Scopes nest.
    class Scope;

  private:
    struct Position {
        size_t block = 0;    // the block that is being filled
        int64_t offset = 0;  // bytes used of that block
        int64_t used = 0;    // bytes used of all blocks, without what is left unused at the ends of
                             // the full ones
    };
    void rewind(const Position& position);
    [[nodiscard]] std::shared_ptr<Storage> new_block(int64_t bytes) const;
    /// Moves to a block that has room for `bytes`.
    void next_block(int64_t bytes);

    Device device_;
    std::vector<std::shared_ptr<Storage>> blocks_;
    Position position_;
    int64_t peak_ = 0;
};

class Arena::Scope {
  public:
    explicit Scope(Arena& arena) : arena_(arena), start_(arena.position_) {}
    ~Scope() { arena_.rewind(start_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

  private:
    Arena& arena_;
    Position start_;
};

}  // namespace mllama
