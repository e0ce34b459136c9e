// Several pieces of work of one kind in one launch: what few rows ask for is over in microseconds,
// and the next launch is then a good part of it.
#pragma once

#include <cassert>
#include <cstdint>
#include <limits>

#include "kernels/cuda/launch.h"

namespace mllama::cuda {

/// Pieces of work with their blocks of the grid's x, those of one piece behind those of the other.
/// Travels with the launch, as a __grid_constant__ argument (each thread would copy it otherwise): all
/// arguments of a kernel together are at most 4 KiB.
template <class Work, size_t room>
struct Together {
    static constexpr size_t most = room;
    Work of[most];
    unsigned first_block[most];  ///< of each; behind all blocks where there is no piece
    unsigned count = 0, blocks = 0;

    Together() {
        for (unsigned& first : first_block) first = std::numeric_limits<unsigned>::max();
    }
    void add(const Work& work, int64_t blocks_of_work) {
        assert(count < most);
        of[count] = work;
        first_block[count++] = blocks;
        blocks += static_cast<unsigned>(blocks_of_work);
    }

    /// The piece that this block belongs to.
    __device__ unsigned mine() const {
        unsigned piece = 0;
#pragma unroll
        for (size_t i = 1; i < most; ++i) piece += blockIdx.x >= first_block[i] ? 1 : 0;
        return piece;
    }
    /// This block among those of its piece.
    __device__ unsigned block_of(unsigned piece) const {
        return blockIdx.x - first_block[piece];
    }
};

}  // namespace mllama::cuda
