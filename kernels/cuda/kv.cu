// Keys and values on their way into the blocks of kv_layout.h.
#include "kernels/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"
#include "kernels/rounding.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr unsigned warps = threads / warp_size;
constexpr int64_t tile_rows = 32;  ///< rows of a block: neighbouring keys lie next to each other

/// Rows of keys or values, and where they go.
struct Stored {
    const float* x;  ///< (rows, kv_heads, head_dim), rows x_stride apart
    int64_t rows, x_stride;
    KvLayout layout;
    int64_t begin;        ///< the key of row 0, without *past
    const int64_t* past;  ///< or none
    void* to;
    float* scales;
};

/// What one block stores: some rows of one head.
struct Tile {
    const float* x;
    int64_t rows, first_key, head;
};

__device__ Tile tile_of(const Stored& stored) {
    const int64_t first = blockIdx.x * tile_rows;
    const int64_t begin = stored.begin + (stored.past != nullptr ? *stored.past : 0);
    const int64_t head = blockIdx.y;
    return {stored.x + first * stored.x_stride + head * stored.layout.head_dim,
            std::min(int64_t{tile_rows}, stored.rows - first), begin + first, head};
}

/// The scale of a row of int8, in every lane: 0 if all is 0, a NaN if not all is finite.
__device__ float scale_of(const float* row, int64_t n) {
    constexpr float largest_float = 0x1.fffffep127f;
    float largest = 0.0f;
    float not_finite = 0.0f;
    for (int64_t i = threadIdx.x % warp_size; i < n; i += warp_size) {
        const float magnitude = fabsf(row[i]);
        if (!(magnitude <= largest_float)) not_finite = 1.0f;
        largest = fmaxf(largest, magnitude);
    }
    if (warp_max(not_finite) > 0.0f) return std::bit_cast<float>(0x7FC00000u);
    return warp_max(largest) / 127.0f;
}

/// Scales of all rows of the tile, to `scales` of the block and to memory; a warp for each row.
__device__ void store_scales(const Stored& stored, const Tile& tile, float* scales) {
    for (int64_t r = threadIdx.x / warp_size; r < tile.rows; r += warps) {
        const float scale = scale_of(tile.x + r * stored.x_stride, stored.layout.head_dim);
        if (threadIdx.x % warp_size != 0) continue;
        scales[r] = scale;
        stored.scales[stored.layout.scale_index(tile.head, tile.first_key + r)] = scale;
    }
    __syncthreads();
}

__device__ int8_t whole_number(float value, float scale) {
    if (scale == 0.0f || scale != scale) return 0;
    return static_cast<int8_t>(fminf(fmaxf(nearbyintf(value / scale), -127.0f), 127.0f));
}

__device__ void store_element(const Stored& stored, int64_t index, float value, float scale) {
    if (stored.layout.scaled()) {
        static_cast<int8_t*>(stored.to)[index] = whole_number(value, scale);
    } else {
        store_float(stored.to, stored.layout.dtype, index, value);
    }
}

/// Neighbouring threads take neighbouring keys, whose units are neighbours; if there is one row,
/// neighbouring units of it.
__global__ void store_keys_kernel(Stored stored) {
    after_previous();
    __shared__ float scales[tile_rows];
    const Tile tile = tile_of(stored);
    const KvLayout& layout = stored.layout;
    if (layout.scaled()) store_scales(stored, tile, scales);
    const int64_t unit = layout.unit();
    const int64_t n = tile.rows * layout.key_rows();
    for (int64_t i = threadIdx.x; i < n; i += threads) {
        const int64_t r = i % tile.rows;
        const float* row = tile.x + r * stored.x_stride;
        for (int64_t d = i / tile.rows * unit; d < (i / tile.rows + 1) * unit; ++d) {
            const float value = d < layout.head_dim ? row[d] : 0.0f;
            store_element(stored, layout.key_index(tile.head, tile.first_key + r, d), value,
                          layout.scaled() ? scales[r] : 1.0f);
        }
    }
}

/// Neighbouring threads take neighbouring columns.
__global__ void store_values_kernel(Stored stored) {
    after_previous();
    __shared__ float scales[tile_rows];
    const Tile tile = tile_of(stored);
    const KvLayout& layout = stored.layout;
    if (layout.scaled()) store_scales(stored, tile, scales);
    for (int64_t i = threadIdx.x; i < tile.rows * layout.head_dim; i += threads) {
        const int64_t r = i / layout.head_dim;
        const int64_t d = i % layout.head_dim;
        store_element(stored, layout.value_index(tile.head, tile.first_key + r, d),
                      tile.x[r * stored.x_stride + d], layout.scaled() ? scales[r] : 1.0f);
    }
}

dim3 grid_of(const Stored& stored) {
    return {static_cast<unsigned>(pieces(stored.rows, tile_rows)),
            static_cast<unsigned>(stored.layout.kv_heads)};
}

}  // namespace

void store_keys(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                int64_t begin, const int64_t* past, void* keys, float* scales) {
    const Stored stored{x, rows, x_stride, layout, begin, past, keys, scales};
    launch("store_keys", store_keys_kernel, grid_of(stored), threads, 0, stored);
}

void store_values(const float* x, int64_t rows, int64_t x_stride, const KvLayout& layout,
                  int64_t begin, const int64_t* past, void* values, float* scales) {
    const Stored stored{x, rows, x_stride, layout, begin, past, values, scales};
    launch("store_values", store_values_kernel, grid_of(stored), threads, 0, stored);
}

}  // namespace mllama::cuda
