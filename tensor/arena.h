// Scratch memory of a forward pass: taken in a row, given back in reverse order, used again by the
// next token.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tensor/tensor.h"

namespace mllama {

/// Hands out tensors from blocks of memory, one behind the other. Nothing is freed: a Scope goes
/// back to where it began. When a block is full another one is added, and when everything has been
/// given back they are merged into one as large as was ever in use: so the second pass over the
/// same work allocates nothing. For one thread at a time.
class Arena {
  public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    /// An uninitialised contiguous tensor, aligned to Storage::alignment. It is valid until the
    /// scope that is innermost now ends (or reset): later tensors then get the same bytes. Throws
    /// Error if there is not enough memory.
    Tensor take(const Shape& shape, DType dtype = DType::f32);

    /// Gives everything back.
    void reset() { rewind({}); }

    /// The largest number of bytes that were in use at once.
    [[nodiscard]] int64_t peak_bytes() const { return peak_; }
    /// Bytes of all blocks.
    [[nodiscard]] int64_t capacity_bytes() const;

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
    /// Moves to a block that has room for `bytes`.
    void next_block(int64_t bytes);

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
