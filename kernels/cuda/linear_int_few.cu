// Linear layers of integers of at most eight rows of x, a token's: what counts is the speed of
// memory. The weights are read once, as they lie.
//
// The tensor cores multiply 16 rows of w by eight of x (missing ones are zeros) in one instruction,
// so that even one row is best left to them. A lane loads 16 bytes of row `group` of w, 16 of row
// group + 8, and what meets them of row `group` of x: which columns an mma calls which does not
// matter, as long as both factors agree. So the four lanes of a row have 64 neighbouring bytes, a
// chunk: 64 columns of int8, or 128 of int4, a piece of x.
//
// The columns of a lane's 16 bytes in int4 are 32 neighbours. Where groups are narrower than a
// piece, an mma is made for each with the x of the other lanes taken as zeros: sums of one group.
//
// The warps of a block share the columns of its rows of w, and add up their sums at the end. The
// order of every sum is a function of the matrix alone.
#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/linear_int_parts.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/together.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr int warps = threads / warp_size;
constexpr int half_rows = 8;     // of w: an mma has one or two halves
constexpr int chunk_bytes = 64;  // of a row of w, that its four lanes load at a time
constexpr int lane_bytes = 16;   // of those
constexpr int row_places = static_cast<int>(few_rows);

/// Where this thread stands.
struct Lane {
    int warp = static_cast<int>(threadIdx.x / warp_size);
    int group = static_cast<int>(threadIdx.x % warp_size / 4);
    int quad = static_cast<int>(threadIdx.x % 4);
};

/// The row of w that this lane has of a half of the block's; where there is none, the last one is read
/// and its sum dropped.
__device__ inline int64_t lane_row(int64_t first, int half, int64_t rows) {
    const int64_t row = first + half * half_rows + Lane().group;
    return row < rows ? row : rows - 1;
}

/// This lane's rows of w, from its columns of a chunk on.
template <int halves, int alignment>
struct LaneRows {
    const uint8_t* of[halves];
    int bytes;  ///< of a row from there on

    __device__ LaneRows(const IntWeights& w, int64_t first)
        : bytes(w.row_bytes - Lane().quad * lane_bytes) {
        for (int h = 0; h < halves; ++h)
            of[h] = w.row(lane_row(first, h, w.rows)) + Lane().quad * lane_bytes;
    }
    __device__ uint4 load(int half, int chunk) const {
        const int at = chunk * chunk_bytes;
        if constexpr (alignment < 16) {
            return load_crooked<alignment>(of[half], at, bytes);
        } else {
            return at < bytes ? load_once(of[half] + at) : uint4{0, 0, 0, 0};
        }
    }
};

/// The chunks [chunk, chunk + loads) of this lane's rows of w.
template <int halves, int loads>
struct Chunks {
    uint4 of[halves][loads];

    template <int alignment>
    __device__ void load(const LaneRows<halves, alignment>& rows, int chunk) {
        for (int h = 0; h < halves; ++h) {
            for (int i = 0; i < loads; ++i) of[h][i] = rows.load(h, chunk + i);
        }
    }
    /// Word `word` of row group, and of row group + 8.
    __device__ uint32_t low(int i, int word) const { return word_of(of[0][i], word); }
    __device__ uint32_t high(int i, int word) const {
        return halves == 2 ? word_of(of[halves - 1][i], word) : 0;
    }
};

/// The row of x that this lane has: the numbers that meet its columns of a chunk, so many bytes of
/// them. Where there is none, the last one is read and its sums dropped.
__device__ inline const int8_t* lane_numbers(const IntRows& x, int bytes) {
    const Lane lane;
    const int row = lane.group < x.rows ? lane.group : x.rows - 1;
    return x.numbers + row * x.stride + lane.quad * bytes;
}
__device__ inline uint4 load_numbers(const int8_t* from) {
    return *reinterpret_cast<const uint4*>(from);
}

/// The sums of the warps, (warp, row of x, row of w), that are added up to results.
template <class Sum, int halves>
struct BlockSums {
    Sum of[warps][row_places][halves * half_rows];

    /// c as mma.h says: rows of w times rows of x.
    __device__ void put(const Sum (&c)[4]) {
        const Lane lane;
        for (int i = 0; i < 2 * halves; ++i)
            of[lane.warp][2 * lane.quad + i % 2][lane.group + i / 2 * half_rows] = c[i];
    }
    __device__ Sum total(int row, int column) const {
        Sum sum = 0;
        for (int i = 0; i < warps; ++i) sum += of[i][row][column];
        return sum;
    }
};

/// A layer: out (x.rows, w.rows).
struct IntLayer {
    IntWeights w;
    Epilogue epilogue;
    float* out;
    int64_t out_stride;
};

using IntLayers = Together<IntLayer, most_projections>;

/// Block b of a layer: the rows [8 halves b, 8 halves (b + 1)) of w in int8.
template <int halves, int alignment>
__global__ void __launch_bounds__(threads, 2)
    few_int8_kernel(const __grid_constant__ IntLayers layers, IntRows x) {
    constexpr int loads = 4;
    constexpr int block_rows = halves * half_rows;
    const unsigned mine = layers.mine();
    const IntLayer& layer = layers.of[mine];
    const IntWeights& w = layer.w;
    const int64_t first = int64_t{layers.block_of(mine)} * block_rows;
    const LaneRows<halves, alignment> rows(w, first);
    const int8_t* x_row = lane_numbers(x, lane_bytes);
    const int chunks = (w.row_bytes + chunk_bytes - 1) / chunk_bytes;
    int32_t c[4] = {};
    int chunk = Lane().warp * loads;
    Chunks<halves, loads> next;
    next.load(rows, chunk);
    after_previous();
    for (; chunk < chunks; chunk += warps * loads) {
        const Chunks<halves, loads> now = next;
        next.load(rows, chunk + warps * loads);
#pragma unroll
        for (int i = 0; i < loads; ++i) {
            if (chunk + i >= chunks) break;
            const uint4 numbers = load_numbers(x_row + (chunk + i) * chunk_bytes);
            for (int word = 0; word < 4; word += 2) {
                const uint32_t a[4] = {now.low(i, word), now.high(i, word), now.low(i, word + 1),
                                       now.high(i, word + 1)};
                const uint32_t b[2] = {word_of(numbers, word), word_of(numbers, word + 1)};
                mma_int8(c, a, b);
            }
        }
    }
    __shared__ BlockSums<int32_t, halves> sums;
    sums.put(c);
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x) / block_rows;
    const int column = static_cast<int>(threadIdx.x) % block_rows;
    if (row >= x.rows || first + column >= w.rows) return;
    const float scale = w.cols > 0 ? scale_of(w.groups, first + column, 0) : 0.0f;
    store_result(layer.epilogue, scaled_sum(sums.total(row, column), x.scales[row], scale), row,
                 first + column, layer.out, layer.out_stride);
}

/// Scales and zeros of this lane's rows of w.
template <int halves>
struct LaneScales {
    RowScales of[halves];

    __device__ LaneScales(const IntWeights& w, int64_t first);
};
template <>
__device__ inline LaneScales<1>::LaneScales(const IntWeights& w, int64_t first)
    : of{RowScales(w.groups, lane_row(first, 0, w.rows))} {}
template <>
__device__ inline LaneScales<2>::LaneScales(const IntWeights& w, int64_t first)
    : of{RowScales(w.groups, lane_row(first, 0, w.rows)),
         RowScales(w.groups, lane_row(first, 1, w.rows))} {}

/// Those of the groups that this lane's columns of some pieces are in.
template <int parts, int halves, int loads>
struct PieceScales {
    uint32_t bits[halves][loads];
    int32_t zero[halves][loads];

    __device__ void load(const IntWeights& w, const LaneScales<halves>& rows, int piece) {
        constexpr int segment_columns = static_cast<int>(x_piece) / parts;
        for (int i = 0; i < loads; ++i) {
            const int segment = (piece + i) * parts + Lane().quad * parts / 4;
            const bool there = segment * segment_columns < w.cols;
            const int group = there ? w.group(segment) : 0;  // of what is not there x is 0
            for (int h = 0; h < halves; ++h) {
                bits[h][i] = rows.of[h].bits(w.groups, group);
                zero[h][i] = rows.of[h].zero_number(w.groups, group);
            }
        }
    }
};

/// `mine` of the lane of this row that has the columns of a part.
template <int parts, class T>
__device__ T of_part(T mine, int part) {
    if (parts == 1) return mine;
    const unsigned lane = threadIdx.x % warp_size;
    return __shfl_sync(whole_warp, mine, lane / 4 * 4 + static_cast<unsigned>(part * (4 / parts)));
}

/// What of x meets a chunk: 32 numbers.
struct PieceNumbers {
    uint4 of[2];  ///< that meet low and high nibbles
    __device__ explicit PieceNumbers(const int8_t* from)
        : of{load_numbers(from), load_numbers(from + lane_bytes)} {}
    __device__ uint32_t word(int word, int high) const { return word_of(of[high], word); }
};

/// sums += the products of chunk i of `w` with a piece of x.
template <int parts, int halves, int loads>
__device__ void add_piece(float (&sums)[4], const Chunks<halves, loads>& w,
                          const PieceScales<parts, halves, loads>& scales, DType scale_dtype, int i,
                          const IntRows& x, const int8_t* x_row, int piece) {
    const Lane lane;
    const PieceNumbers numbers(x_row + piece * static_cast<int>(x_piece));
    const int column = 2 * lane.quad;  // of c: the first of two rows of x
    const auto x_scale = *reinterpret_cast<const float2*>(x.scales + piece * row_places + column);
    int32_t c[parts][4];
    for (int part = 0; part < parts; ++part) {
        const auto x_sum =
            *reinterpret_cast<const uint2*>(x.sums + (piece * parts + part) * row_places + column);
        for (int h = 0; h < 2; ++h) {
            const int32_t zero = h < halves ? of_part<parts>(scales.zero[h % halves][i], part) : 0;
            c[part][2 * h] = sum_start - zero * static_cast<int32_t>(x_sum.x);
            c[part][2 * h + 1] = sum_start - zero * static_cast<int32_t>(x_sum.y);
        }
    }
    for (int word = 0; word < 4; ++word) {
        const uint32_t low = w.low(i, word), high = w.high(i, word);
        const uint32_t a[4] = {low_nibbles(low), low_nibbles(high), high_nibbles(low),
                               high_nibbles(high)};
        for (int part = 0; part < parts; ++part) {
            const bool mine = lane.quad * parts / 4 == part;
            const uint32_t b[2] = {mine ? numbers.word(word, 0) : 0,
                                   mine ? numbers.word(word, 1) : 0};
            mma_int8(c[part], a, b);
        }
    }
    for (int part = 0; part < parts; ++part) {
        for (int h = 0; h < halves; ++h) {
            const float scale = scale_of_bits(of_part<parts>(scales.bits[h][i], part), scale_dtype);
            sums[2 * h] += sum_to_float(c[part][2 * h]) * (scale * x_scale.x);
            sums[2 * h + 1] += sum_to_float(c[part][2 * h + 1]) * (scale * x_scale.y);
        }
    }
}

/// The same in int4. parts: groups in a piece.
template <int parts, int halves, int alignment>
__global__ void __launch_bounds__(threads, 2)
    few_int4_kernel(const __grid_constant__ IntLayers layers, IntRows x) {
    constexpr int loads = 2;
    constexpr int block_rows = halves * half_rows;
    const unsigned mine = layers.mine();
    const IntLayer& layer = layers.of[mine];
    const IntWeights& w = layer.w;
    const int64_t first = int64_t{layers.block_of(mine)} * block_rows;
    const LaneRows<halves, alignment> rows(w, first);
    const LaneScales<halves> row_scales(w, first);
    const int8_t* x_row = lane_numbers(x, 2 * lane_bytes);
    const DType scale_dtype = w.groups.scale_dtype;
    float lane_sums[4] = {};
    int piece = Lane().warp * loads;
    Chunks<halves, loads> next;
    PieceScales<parts, halves, loads> next_scales;
    next.load(rows, piece);
    if (x.pieces > 0) next_scales.load(w, row_scales, piece);
    after_previous();
    for (; piece < x.pieces; piece += warps * loads) {
        const Chunks<halves, loads> now = next;
        const PieceScales<parts, halves, loads> scales = next_scales;
        next.load(rows, piece + warps * loads);
        next_scales.load(w, row_scales, piece + warps * loads);
#pragma unroll
        for (int i = 0; i < loads; ++i) {
            if (piece + i >= x.pieces) break;
            add_piece(lane_sums, now, scales, scale_dtype, i, x, x_row, piece + i);
        }
    }
    __shared__ BlockSums<float, halves> sums;
    sums.put(lane_sums);
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x) / block_rows;
    const int column = static_cast<int>(threadIdx.x) % block_rows;
    if (row >= x.rows || first + column >= w.rows) return;
    store_result(layer.epilogue, sums.total(row, column), row, first + column, layer.out,
                 layer.out_stride);
}

using Kernel = void (*)(IntLayers, IntRows);

/// The kernel for groups of so many parts of a piece; 0: int8.
template <int halves, int int8_alignment, int int4_alignment>
Kernel kernel_for(int64_t parts) {
    if (parts == 0) return few_int8_kernel<halves, int8_alignment>;
    if (parts == 1) return few_int4_kernel<1, halves, int4_alignment>;
    if (parts == 2) return few_int4_kernel<2, halves, int4_alignment>;
    return few_int4_kernel<4, halves, int4_alignment>;
}

/// layers: all aligned or none.
void launch_few(const IntRows& x, std::span<const Projection> layers) {
    int64_t rows = 0;
    for (const Projection& layer : layers) rows += layer.w.rows;
    const bool aligned = IntWeights(layers.front().w, x.layout).aligned;
    const int64_t parts = x.layout.nibbles ? x.layout.segments_per_piece() : 0;
    // Where blocks of 16 rows are not one and a half for each processor, there are those of eight.
    const bool many = 2 * pieces(rows, 2 * half_rows) >= 3 * processors();
    const int halves = many || !aligned ? 2 : 1;
    const Kernel kernel = halves == 1 ? kernel_for<1, 16, 16>(parts)
                          : aligned   ? kernel_for<2, 16, 16>(parts)
                                      : kernel_for<2, 1, 4>(parts);
    IntLayers together;
    for (const auto& [w, epilogue, compute, out, out_stride] : layers)
        together.add({IntWeights(w, x.layout), epilogue, out.f32(), out_stride},
                     pieces(w.rows, halves * half_rows));
    launch("linear_int", kernel, together.blocks, threads, 0, together, x);
}

}  // namespace

void linear_int_few(const IntRows& x, std::span<const Projection> layers) {
    constexpr size_t most = IntLayers::most;
    const auto aligned = [&](const Projection& layer) {
        return IntWeights(layer.w, x.layout).aligned;
    };
    while (!layers.empty()) {
        size_t count = 1;
        while (count < std::min(layers.size(), most) &&
               aligned(layers[count]) == aligned(layers.front()))
            ++count;
        launch_few(x, layers.first(count));
        layers = layers.subspan(count);
    }
}

}  // namespace mllama::cuda
