// Keys and values on their way into the blocks of kv_layout.h: those of several sequences in one launch.
#include <algorithm>
#include <span>

#include "kernels/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"
#include "kernels/rounding.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr unsigned warps = threads / warp_size;
constexpr int64_t tile_rows = 32;  ///< rows of a block: neighbouring keys lie next to each other

/// Travels with the launch. All are stored as one type.
struct Sequences {
    static constexpr size_t most = most_sequences;
    NewKeysValues of[most];
};

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

template <DType dtype>
__device__ Stored stored_of(const NewKeysValues& from, bool values) {
    const KvLayout layout{from.layout.kv_heads, from.layout.head_dim, dtype};
    if (values) {
        return {from.v,     from.rows, from.v_stride, layout,
                from.begin, from.past, from.values,   from.value_scales};
    }
    return {from.k,     from.rows, from.k_stride, layout,
            from.begin, from.past, from.keys,     from.key_scales};
}

/// What one block stores: some rows of one head.
struct Tile {
    const float* x;
    unsigned rows;
    int64_t first_key, head;
};

__device__ Tile tile_of(const Stored& stored) {
    const int64_t first = blockIdx.x * tile_rows;
    const int64_t begin = stored.begin + (stored.past != nullptr ? *stored.past : 0);
    const int64_t head = blockIdx.y;
    return {stored.x + first * stored.x_stride + head * stored.layout.head_dim,
            static_cast<unsigned>(std::min(int64_t{tile_rows}, stored.rows - first)), begin + first,
            head};
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
    for (unsigned r = threadIdx.x / warp_size; r < tile.rows; r += warps) {
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
__device__ void store_keys(const Stored& stored, const Tile& tile, const float* scales) {
    const KvLayout& layout = stored.layout;
    const int64_t unit = layout.unit();
    const unsigned n = tile.rows * static_cast<unsigned>(layout.key_rows());
    for (unsigned i = threadIdx.x; i < n; i += threads) {
        const unsigned r = i % tile.rows;
        const float* row = tile.x + r * stored.x_stride;
        const int64_t first = i / tile.rows * unit;
        for (int64_t d = first; d < first + unit; ++d) {
            const float value = d < layout.head_dim ? row[d] : 0.0f;
            store_element(stored, layout.key_index(tile.head, tile.first_key + r, d), value,
                          layout.scaled() ? scales[r] : 1.0f);
        }
    }
}

/// Neighbouring threads take neighbouring columns.
__device__ void store_values(const Stored& stored, const Tile& tile, const float* scales) {
    const KvLayout& layout = stored.layout;
    const auto head_dim = static_cast<unsigned>(layout.head_dim);
    for (unsigned i = threadIdx.x; i < tile.rows * head_dim; i += threads) {
        const unsigned r = i / head_dim;
        const unsigned d = i % head_dim;
        store_element(stored, layout.value_index(tile.head, tile.first_key + r, d),
                      tile.x[r * stored.x_stride + d], layout.scaled() ? scales[r] : 1.0f);
    }
}

/// Grid: tiles of rows and key heads, of the sequence that has most; for each sequence its keys and
/// its values.
template <DType dtype>
__global__ void store_kernel(const __grid_constant__ Sequences sequences) {
    after_previous();
    __shared__ float scales[tile_rows];
    const bool values = blockIdx.z % 2 != 0;
    const Stored stored = stored_of<dtype>(sequences.of[blockIdx.z / 2], values);
    if (blockIdx.x * tile_rows >= stored.rows || blockIdx.y >= stored.layout.kv_heads) return;
    const Tile tile = tile_of(stored);
    if (stored.layout.scaled()) store_scales(stored, tile, scales);
    if (values) {
        store_values(stored, tile, scales);
    } else {
        store_keys(stored, tile, scales);
    }
}

using StoreKernel = void (*)(Sequences);

StoreKernel kernel_of(DType dtype) {
    switch (dtype) {
        case DType::bf16:
            return store_kernel<DType::bf16>;
        case DType::f16:
            return store_kernel<DType::f16>;
        case DType::i8:
            return store_kernel<DType::i8>;
        default:
            return store_kernel<DType::f32>;
    }
}

/// How many from the first on are one launch.
size_t launched_together(std::span<const NewKeysValues> sequences) {
    size_t count = 1;
    while (count < std::min(sequences.size(), Sequences::most) &&
           sequences[count].layout.dtype == sequences[0].layout.dtype) {
        ++count;
    }
    return count;
}

void store_together(std::span<const NewKeysValues> sequences) {
    Sequences by_value{};
    std::copy(sequences.begin(), sequences.end(), by_value.of);
    int64_t rows = 0, heads = 0;
    for (const NewKeysValues& sequence : sequences) {
        rows = std::max(rows, sequence.rows);
        heads = std::max(heads, sequence.layout.kv_heads);
    }
    const dim3 grid(static_cast<unsigned>(pieces(rows, tile_rows)), static_cast<unsigned>(heads),
                    static_cast<unsigned>(2 * sequences.size()));
    launch("store_keys_values", kernel_of(sequences[0].layout.dtype), grid, threads, 0, by_value);
}

}  // namespace

void store_keys_values(std::span<const NewKeysValues> sequences) {
    while (!sequences.empty()) {
        const size_t count = launched_together(sequences);
        store_together(sequences.first(count));
        sequences = sequences.subspan(count);
    }
}

}  // namespace mllama::cuda
