// Linear layers of few rows of x, a token's or a short prompt's: what counts is the speed of memory.
// The weights are read once for up to 32 rows, as they lie, and decoded in registers.
//
// Factors of bfloat16 go through the tensor cores even for one row: an mma multiplies eight rows of
// w by up to sixteen of x (the missing ones are zeros) in one instruction, so that nothing is left
// to do but to load. Each lane loads the columns of its row of w and of its rows of x that it likes:
// for a sum it does not matter which columns an mma calls which, as long as both factors agree.
//
// A block has 8 or 16 rows of w; its warps share the columns, and add up their sums at the end. The
// order of every sum is a function of the matrix alone.
#include <algorithm>
#include <array>
#include <type_traits>

#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/linear_parts.h"
#include "kernels/cuda/together.h"
#include "kernels/cuda/workspace.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr unsigned warps = threads / warp_size;
constexpr int tile = 8;             // rows of w, or of x, that a lane of an mma has one of
constexpr int most_tiles_of_x = 4;  // that go over the weights together

/// What the four lanes of a row take at a time: some loads each, their pieces, and all their columns.
template <class Source, int n>
struct Columns {
    static constexpr int loads = n;
    static constexpr int pieces = loads * Source::pieces;
    static constexpr int columns = 4 * 8 * pieces;
};

/// The step of a warp.
template <class Source>
using WarpStep = Columns<Source, Source::pieces <= 2 ? 4 : 2>;

/// The loads that a lane starts before it uses the first: those of a step, or half of them where the
/// registers are full of x.
template <class Source, int x_tiles>
using AtOnce = Columns<Source, WarpStep<Source>::loads / (x_tiles > 2 ? 2 : 1)>;

/// Where the i-th of those begins. The steps of the warps alternate, and which columns are whose does
/// not depend on how many loads are started at once.
template <class Source, class Step>
__device__ int place_of(int i) {
    constexpr int parts = WarpStep<Source>::loads / Step::loads;
    const int warp = static_cast<int>(threadIdx.x / warp_size);
    return (i / parts * int{warps} + warp) * WarpStep<Source>::columns + i % parts * Step::columns;
}

/// Rows of x, as f32 that are rounded on the way or as bf16; whole pieces.
template <class Element>
struct FewRows {
    const Element* data;
    int64_t stride;
    int rows;
};

/// Eight columns of a row as bfloat16; zeros where x has no such row.
__device__ inline uint4 load_piece(const FewRows<uint16_t>& x, int row, int col) {
    if (row >= x.rows) return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(x.data + row * x.stride + col);
}
__device__ inline Eight load_floats(const FewRows<float>& x, int row, int64_t col) {
    const auto* at = reinterpret_cast<const float4*>(x.data + row * x.stride + col);
    const float4 low = at[0], high = at[1];
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
__device__ inline uint4 load_piece(const FewRows<float>& x, int row, int col) {
    if (row >= x.rows) return {0, 0, 0, 0};
    return to_bf16(load_floats(x, row, col));
}

/// Piece i of a load as bfloat16.
template <class Source>
__device__ uint4 bf16_piece(const Source& w, const typename Source::Raw& raw, int i) {
    if constexpr (std::is_same_v<Source, HalfSource<DType::bf16>>) {
        return raw;
    } else {
        return to_bf16(w.eight(raw, i));
    }
}

/// c += the products of one piece of two tiles of x: 32 columns, in two mma.
__device__ inline void multiply_piece(float (&c)[4], const uint4& x, const uint4& next_x,
                                      const uint4& w) {
    const uint32_t a0[4] = {x.x, next_x.x, x.y, next_x.y}, b0[2] = {w.x, w.y};
    const uint32_t a1[4] = {x.z, next_x.z, x.w, next_x.w}, b1[2] = {w.z, w.w};
    mma_bf16(c, a0, b0);
    mma_bf16(c, a1, b1);
}

/// How many mma so many tiles of x take: two each, or one and zeros.
constexpr int pairs_of(int x_tiles) {
    return (x_tiles + 1) / 2;
}

/// The first column of piece i of this lane, of the step that begins at `begin`: the lanes' loads
/// are neighbours.
template <class Source>
__device__ int piece_column(int begin, int i) {
    constexpr int n = Source::pieces;
    const int quad = static_cast<int>(threadIdx.x % 4);
    return begin + (i / n * 4 + quad) * (8 * n) + i % n * 8;
}

/// What a lane loads of its rows of w for a step.
template <class Source, class Step, int tiles>
struct StepWeights {
    typename Source::Raw raw[tiles][Step::loads];

    /// rows: of w, this lane's. Columns behind the last become zeros.
    __device__ void load(const Source& w, const int64_t (&rows)[tiles], int begin, int cols) {
        if (begin + Step::columns <= cols) {
            load_columns<true>(w, rows, begin, cols);
        } else {
            load_columns<false>(w, rows, begin, cols);
        }
    }

  private:
    template <bool whole>
    __device__ void load_columns(const Source& w, const int64_t (&rows)[tiles], int begin,
                                 int cols) {
        for (int i = 0; i < Step::loads; ++i) {
            const int col = piece_column<Source>(begin, i * Source::pieces);
            for (int t = 0; t < tiles; ++t) {
                raw[t][i] = {};
                if (whole || col < cols) raw[t][i] = w.load(rows[t], col);
            }
        }
    }
};

/// Adds the products of a step. whole: all of its columns are there.
template <bool whole, int x_tiles, class Source, class Step, class Element, int tiles>
__device__ void add_step(float (&sums)[tiles][pairs_of(x_tiles)][4], const Source& w,
                         const StepWeights<Source, Step, tiles>& weights, const FewRows<Element>& x,
                         int begin, int cols) {
    constexpr int n = Source::pieces;
    const int x_row = static_cast<int>(threadIdx.x % warp_size / 4);
#pragma unroll
    for (int i = 0; i < Step::pieces; ++i) {
        const int col = piece_column<Source>(begin, i);
        uint4 x_piece[2 * pairs_of(x_tiles)] = {};
#pragma unroll
        for (int j = 0; j < x_tiles; ++j) {
            if (whole || col < cols) x_piece[j] = load_piece(x, x_row + j * tile, col);
        }
        for (int t = 0; t < tiles; ++t) {
            const uint4 w_piece = bf16_piece(w, weights.raw[t][i / n], i % n);
            for (int p = 0; p < pairs_of(x_tiles); ++p)
                multiply_piece(sums[t][p], x_piece[2 * p], x_piece[2 * p + 1], w_piece);
        }
    }
}

/// Where the sums of a warp's tiles wait for those of the others: of_warp (rows of x, block_rows).
template <int x_tiles, int tiles>
__device__ void keep_sums(const float (&sums)[tiles][pairs_of(x_tiles)][4], float* of_warp) {
    const int lane = static_cast<int>(threadIdx.x % warp_size);
    for (int t = 0; t < tiles; ++t) {
        for (int j = 0; j < x_tiles; ++j) {  // c[0] and c[1] of an mma, or c[2] and c[3]
            const int row = j * tile + lane / 4, column = t * tile + 2 * (lane % 4);
            float* to = of_warp + row * (tiles * tile) + column;
            to[0] = sums[t][j / 2][j % 2 * 2];
            to[1] = sums[t][j / 2][j % 2 * 2 + 1];
        }
    }
}

/// The end of a block that has the rows [first, first + block_rows) of w: adds up the sums (rows of
/// x, block_rows) of its warps, and stores what becomes of them.
template <int block_rows, int n>
__device__ void store_sums(const float (&of_warp)[warps][n], int64_t first, int64_t w_rows,
                           int x_rows, const Epilogue& epilogue, const Floats& out,
                           int64_t out_stride) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += int{threads}) {
        const int64_t row = i / block_rows, column = first + i % block_rows;
        if (row >= x_rows || column >= w_rows) continue;
        float sum = 0;
        for (unsigned warp = 0; warp < warps; ++warp) sum += of_warp[warp][i];
        store_float(out, row * out_stride + column,
                    result_of(epilogue, sum, row, column, out_stride));
    }
}

/// A layer: w (w_rows, cols), out (x.rows, w_rows).
template <class Source>
struct FewLayer {
    Source w;
    int64_t w_rows;
    Epilogue epilogue;
    Floats out;
    int64_t out_stride;
};

template <class Source>
using FewLayers = Together<FewLayer<Source>, most_projections>;

/// How a kernel holds a source: it reads its fields where it needs them, which takes fewer registers
/// than a copy, except for the many of nf4's (nvcc 13.0).
template <class Source>
using InKernel = std::conditional_t<std::is_same_v<Source, Nf4Source>, const Source, const Source&>;

/// Blocks that share a processor: what there are registers for.
template <class Source, int x_tiles>
constexpr unsigned blocks_at_once = std::is_same_v<Source, Nf4Source>&& x_tiles > 1 ? 1 : 2;

/// Block b of a layer: the rows [8 tiles b, 8 tiles (b + 1)) of w. The first weights are loaded before
/// the kernel in front has ended, if they `stand`: nothing queued writes them. x: at most 8 x_tiles rows.
template <class Source, class Element, int tiles, int x_tiles>
__global__ void __launch_bounds__(threads, blocks_at_once<Source, x_tiles>)
    few_bf16_kernel(const __grid_constant__ FewLayers<Source> layers, bool stand, int cols,
                    FewRows<Element> x) {
    if (!stand) after_previous();
    constexpr int block_rows = tile * tiles;
    const unsigned mine = layers.mine();
    const FewLayer<Source>& layer = layers.of[mine];
    InKernel<Source> w = layer.w;
    const int64_t w_rows = layer.w_rows;
    const int64_t first = int64_t{layers.block_of(mine)} * block_rows;
    const int lane = static_cast<int>(threadIdx.x % warp_size);
    const int warp = static_cast<int>(threadIdx.x / warp_size);
    int64_t rows[tiles];  // where there is no such row, the last one is read and its sum dropped
    for (int t = 0; t < tiles; ++t) {
        const int64_t row = first + t * tile + lane / 4;
        rows[t] = row < w_rows ? row : w_rows - 1;
    }
    float sums[tiles][pairs_of(x_tiles)][4] = {};  // (rows of x, rows of w) as mma.h has c
    using Step = AtOnce<Source, x_tiles>;
    const auto place = place_of<Source, Step>;
    StepWeights<Source, Step, tiles> next;
    next.load(w, rows, place(0), cols);
    after_previous();
    for (int i = 0; place(i) < cols; ++i) {
        const StepWeights<Source, Step, tiles> now = next;
        next.load(w, rows, place(i + 1), cols);
        if (place(i) + Step::columns <= cols) {
            add_step<true, x_tiles>(sums, w, now, x, place(i), cols);
        } else {
            add_step<false, x_tiles>(sums, w, now, x, place(i), cols);
        }
    }
    __shared__ float of_warp[warps][x_tiles * tile * block_rows];  // (warp, row of x, row of w)
    keep_sums<x_tiles>(sums, of_warp[warp]);
    __syncthreads();
    store_sums<block_rows>(of_warp, first, w_rows, x.rows, layer.epilogue, layer.out,
                           layer.out_stride);
}

constexpr int f32_rows = 4;  // of w, of a block

/// Factors of float32, by multiply-adds: a thread has some columns of all rows.
template <class Source, int x_rows>
__global__ void __launch_bounds__(threads, 2)
    few_f32_kernel(Source w, int64_t w_rows, int64_t cols, FewRows<float> x, Epilogue epilogue,
                   Floats out, int64_t out_stride) {
    after_previous();
    constexpr int columns = 8 * Source::pieces;
    const int64_t first = int64_t{blockIdx.x} * f32_rows;
    float sums[x_rows * f32_rows] = {};  // (x_rows, f32_rows)
    for (int64_t col = threadIdx.x * columns; col < cols; col += threads * columns) {
        typename Source::Raw raw[f32_rows];
        for (int j = 0; j < f32_rows; ++j) {
            const int64_t row = first + j < w_rows ? first + j : w_rows - 1;
            raw[j] = w.load(row, col);
        }
        for (int i = 0; i < Source::pieces; ++i) {
            Eight piece[f32_rows];
            for (int j = 0; j < f32_rows; ++j) piece[j] = w.eight(raw[j], i);
            for (int r = 0; r < x_rows; ++r) {
                if (r >= x.rows) break;
                const Eight x_piece = load_floats(x, r, col + 8 * i);
                for (int k = 0; k < 8; ++k) {
                    for (int j = 0; j < f32_rows; ++j) {
                        float& sum = sums[r * f32_rows + j];
                        sum = fmaf(x_piece.of[k], piece[j].of[k], sum);
                    }
                }
            }
        }
    }
    __shared__ float of_warp[warps][x_rows * f32_rows];
    constexpr unsigned lanes_of_sum = warp_size / (x_rows * f32_rows);
    const float sum = warp_sums(sums);
    const unsigned lane = threadIdx.x % warp_size;
    if (lane % lanes_of_sum == 0) of_warp[threadIdx.x / warp_size][lane / lanes_of_sum] = sum;
    __syncthreads();
    store_sums<f32_rows>(of_warp, first, w_rows, x.rows, epilogue, out, out_stride);
}

/// Two tiles a block read x half as often, where there are rows enough for all processors, or much
/// of x.
template <class Source>
constexpr bool has_two_tiles = std::is_same_v<Source, HalfSource<DType::bf16>>;
constexpr int64_t many_rows = 4096;

template <int tiles, int x_tiles, class Source, class Element>
void launch_bf16(std::span<const Projection> layers, bool stand, const FewRows<Element>& x) {
    FewLayers<Source> together;
    for (const auto& [w, epilogue, compute, out, out_stride] : layers)
        together.add({Source(w), w.rows, epilogue, out, out_stride}, pieces(w.rows, tile * tiles));
    launch("linear", few_bf16_kernel<Source, Element, tiles, x_tiles>, together.blocks, threads, 0,
           together, stand, static_cast<int>(layers.front().w.cols), x);
}

/// By the tiles of x. What is rounded on the way is one.
template <class Source, class Element>
void launch_bf16(std::span<const Projection> layers, bool stand, const FewRows<Element>& x) {
    constexpr int most_tiles = has_two_tiles<Source> ? 2 : 1;
    if constexpr (!std::is_same_v<Element, float>) {
        if (x.rows > 2 * tile) return launch_bf16<most_tiles, 4, Source>(layers, stand, x);
        if (x.rows > tile) return launch_bf16<most_tiles, 2, Source>(layers, stand, x);
    }
    int64_t rows = 0;
    for (const Projection& layer : layers) rows += layer.w.rows;
    if (rows >= many_rows) return launch_bf16<most_tiles, 1, Source>(layers, stand, x);
    launch_bf16<1, 1, Source>(layers, stand, x);
}

template <class Source>
bool is_read_by(const Matrix& w) {
    bool result = false;
    with_fast_source(w, [&]<class Other>(const Other&) { result = std::is_same_v<Source, Other>; });
    return result;
}

/// Layers from the front that one launch can take.
template <class Source>
size_t taken_together(std::span<const Projection> layers) {
    const size_t most = std::min(layers.size(), FewLayers<Source>::most);
    size_t count = 1;
    while (count < most && is_read_by<Source>(layers[count].w)) ++count;
    return count;
}

template <class Element>
void multiply_bf16(std::span<const Projection> layers, bool stand, const FewRows<Element>& x) {
    while (!layers.empty()) {
        with_fast_source(layers.front().w, [&]<class Source>(const Source&) {
            const auto some = layers.first(taken_together<Source>(layers));
            layers = layers.subspan(some.size());
            launch_bf16<Source>(some, stand, x);
        });
    }
}

template <int x_rows, class Source>
void launch_f32(const Source& source, const Projection& layer, const FewRows<float>& x) {
    const auto& [w, epilogue, compute, out, out_stride] = layer;
    const auto blocks = static_cast<unsigned>(pieces(w.rows, f32_rows));
    launch("linear", few_f32_kernel<Source, x_rows>, blocks, threads, 0, source, w.rows, w.cols, x,
           epilogue, out, out_stride);
}

void multiply_f32(std::span<const Projection> layers, const FewRows<float>& x) {
    for (const Projection& layer : layers) {
        with_fast_source(layer.w, [&](const auto& source) {
            if (x.rows == 1) return launch_f32<1>(source, layer, x);
            launch_f32<few_rows>(source, layer, x);
        });
    }
}

/// x as it lies.
template <class Element>
FewRows<Element> rows_of(const Matrix& x) {
    return {static_cast<const Element*>(x.data), x.stride, static_cast<int>(x.rows)};
}

/// x in memory of the workspace, rounded.
template <class Element>
FewRows<Element> panel_of(const Matrix& x, DType dtype, void* room) {
    decode(x, 0, x.rows, dtype, room);
    return {static_cast<const Element*>(room), panel_stride(x.cols), static_cast<int>(x.rows)};
}

/// Layers whose weights have fast sources. stand: nothing queued writes those.
void multiply(const Matrix& x, std::span<const Projection> layers, bool stand, DType factor,
              void* x_room) {
    const bool floats_lie = lies_as_panel(x) && x.dtype == DType::f32;
    // Up to two rows stay in the first-level cache, and rounding them there costs less than a
    // kernel of its own.
    constexpr int64_t rounded_on_the_way = 2;
    if (factor == DType::f32) {
        multiply_f32(layers, floats_lie ? rows_of<float>(x) : panel_of<float>(x, factor, x_room));
    } else if (floats_lie && x.rows <= rounded_on_the_way) {
        multiply_bf16(layers, stand, rows_of<float>(x));
    } else if (lies_as_panel(x) && x.dtype == DType::bf16) {
        multiply_bf16(layers, stand, rows_of<uint16_t>(x));
    } else {
        multiply_bf16(layers, stand, panel_of<uint16_t>(x, DType::bf16, x_room));
    }
}

/// A layer whose weights no source reads fast: they are decoded first, in panels that stay in the
/// second-level cache.
void multiply_decoded(const Matrix& x, const Projection& layer, DType factor, void* x_room,
                      void* w_room) {
    constexpr int64_t parts = 6;
    const Matrix& w = layer.w;
    const int64_t panel = std::max<int64_t>(1, panel_rows(w.cols, factor) / parts);
    const int64_t stride = panel_stride(w.cols);
    for (int64_t first = 0; first < w.rows; first += panel) {
        const int64_t count = std::min(panel, w.rows - first);
        decode(w, first, count, factor, w_room);
        const Projection part{{w_room, factor, count, stride, stride},
                              part_of(layer.epilogue, 0, first, layer.out_stride),
                              layer.compute,
                              layer.out.from(first),
                              layer.out_stride};
        multiply(x, {&part, 1}, false, factor, x_room);
    }
}

/// Rows of x that go over the weights together.
void multiply_together(const Matrix& x, std::span<const Projection> layers, DType factor,
                       void* x_room, void* w_room) {
    const auto is_fast = [](const Projection& layer) { return has_fast_source(layer.w); };
    while (!layers.empty()) {
        const auto slow = std::find_if_not(layers.begin(), layers.end(), is_fast);
        const auto fast = static_cast<size_t>(slow - layers.begin());
        if (fast > 0) multiply(x, layers.first(fast), true, factor, x_room);
        if (fast < layers.size()) multiply_decoded(x, layers[fast], factor, x_room, w_room);
        layers = layers.subspan(std::min(fast + 1, layers.size()));
    }
}

/// The rows of the outputs from `first` on.
Projection rows_from(Projection layer, int64_t first) {
    layer.epilogue = part_of(layer.epilogue, first, 0, layer.out_stride);
    layer.out = layer.out.from(first * layer.out_stride);
    return layer;
}

}  // namespace

void linear_few(const Matrix& x, std::span<const Projection> layers, DType factor) {
    panel_rows(x.cols, factor);  // or an Error
    Workspace memory;
    auto* x_room = memory.take<std::byte>(panel_bytes);
    auto* w_room = memory.take<std::byte>(panel_bytes);
    const int64_t together = factor == DType::f32 ? few_rows : most_tiles_of_x * tile;
    while (!layers.empty()) {
        const auto some = layers.first(std::min(layers.size(), most_projections));
        layers = layers.subspan(some.size());
        for (int64_t r = 0; r < x.rows; r += together) {
            std::array<Projection, most_projections> parts;
            std::transform(some.begin(), some.end(), parts.begin(),
                           [&](const Projection& layer) { return rows_from(layer, r); });
            multiply_together(rows_from(x, r, std::min(together, x.rows - r)),
                              std::span<const Projection>(parts).first(some.size()), factor, x_room,
                              w_room);
        }
    }
}

}  // namespace mllama::cuda
