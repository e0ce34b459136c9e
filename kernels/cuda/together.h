// Several pieces of work of one kind in one launch: what few rows ask for is over in microseconds,
// and the next launch is then a good part of it.
#pragma once

#include <cassert>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace mllama::cuda {

/// Pieces of work with their blocks of a grid, those of one piece behind those of the other. Travels
/// with the launch, as a __grid_constant__ argument (each thread would copy it otherwise).
template <class Work>
struct Together {
    static constexpr int most = 4;
    Work of[most];
    unsigned end[most];  ///< behind the last block of each
    int count = 0;

    void add(const Work& work, int64_t blocks) {
        assert(count < most);
        end[count] = this->blocks() + static_cast<unsigned>(blocks);
        of[count++] = work;
    }
    [[nodiscard]] unsigned blocks() const { return count == 0 ? 0 : end[count - 1]; }

    /// The piece that this block belongs to.
    __device__ int mine() const {
        int i = 0;
        while (blockIdx.x >= end[i]) ++i;
        return i;
    }
    /// This block among those of its piece.
    __device__ int64_t block_of(int piece) const {
        return piece == 0 ? blockIdx.x : blockIdx.x - end[piece - 1];
    }
};

}  // namespace mllama::cuda
