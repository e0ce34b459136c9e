// Linear layers of at most eight rows of x, a token's: what counts is the speed of memory. The
// weights are read once, as they lie, and decoded in registers.
//
// Factors of bfloat16 go through the tensor cores even for one row: an mma multiplies eight rows of
// w by up to eight of x (the missing ones are zeros) in one instruction, so that nothing is left to
// do but to load. Each lane loads the columns of its row of w and of its row of x that it likes: for
// a sum it does not matter which columns an mma calls which, as long as both factors agree.
//
// A block has 8 or 16 rows of w; its warps share the columns, and add up their sums at the end. The
// order of every sum is a function of the matrix alone.
#include <type_traits>

#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/linear_parts.h"
#include "kernels/cuda/workspace.h"

namespace mllama::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr unsigned warps = threads / warp_size;
constexpr int tile = 8;  // rows of w of an mma

/// A step of a warp: the loads of a row that each lane starts before it uses the first, their
/// pieces, and the columns of all four lanes that have this row.
template <class Source>
struct Step {
    static constexpr int loads = Source::pieces == 1 ? 4 : 2;
    static constexpr int pieces = loads * Source::pieces;
    static constexpr int64_t columns = 4 * 8 * pieces;
};

/// Rows of x, as f32 that are rounded on the way or as bf16; whole pieces.
template <class Element>
struct FewRows {
    const Element* data;
    int64_t stride;
    int rows;
};

/// Eight columns of a row as bfloat16; zeros where x has no such row.
__device__ inline uint4 load_piece(const FewRows<uint16_t>& x, int row, int64_t col) {
    if (row >= x.rows) return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(x.data + row * x.stride + col);
}
__device__ inline Eight load_floats(const FewRows<float>& x, int row, int64_t col) {
    const auto* at = reinterpret_cast<const float4*>(x.data + row * x.stride + col);
    const float4 low = at[0], high = at[1];
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
__device__ inline uint4 load_piece(const FewRows<float>& x, int row, int64_t col) {
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

/// c += the products of one piece: 32 columns, in two mma.
__device__ inline void multiply_piece(float (&c)[4], const uint4& x, const uint4& w) {
    const uint32_t a0[4] = {x.x, 0, x.y, 0}, b0[2] = {w.x, w.y};
    const uint32_t a1[4] = {x.z, 0, x.w, 0}, b1[2] = {w.z, w.w};
    mma_bf16(c, a0, b0);
    mma_bf16(c, a1, b1);
}

/// The first column of piece i of this lane, of the step that begins at `begin`: the lanes' loads
/// are neighbours.
template <class Source>
__device__ int64_t piece_column(int64_t begin, int i) {
    constexpr int n = Source::pieces;
    const int quad = static_cast<int>(threadIdx.x % 4);
    return begin + (i / n * 4 + quad) * (8 * n) + i % n * 8;
}

/// What a lane loads of its rows of w for a step.
template <class Source, int tiles>
struct StepWeights {
    typename Source::Raw raw[tiles][Step<Source>::loads];

    /// rows: of w, this lane's. Columns behind the last become zeros.
    __device__ void load(const Source& w, const int64_t (&rows)[tiles], int64_t begin,
                         int64_t cols) {
        if (begin + Step<Source>::columns <= cols) {
            load_columns<true>(w, rows, begin, cols);
        } else {
            load_columns<false>(w, rows, begin, cols);
        }
    }

  private:
    template <bool whole>
    __device__ void load_columns(const Source& w, const int64_t (&rows)[tiles], int64_t begin,
                                 int64_t cols) {
        for (int i = 0; i < Step<Source>::loads; ++i) {
            const int64_t col = piece_column<Source>(begin, i * Source::pieces);
            for (int t = 0; t < tiles; ++t) {
                raw[t][i] = {};
                if (whole || col < cols) raw[t][i] = w.load(rows[t], col);
            }
        }
    }
};

/// Adds the products of a step. whole: all of its columns are there.
template <bool whole, class Source, class Element, int tiles>
__device__ void add_step(float (&sums)[tiles][4], const Source& w,
                         const StepWeights<Source, tiles>& weights, const FewRows<Element>& x,
                         int64_t begin, int64_t cols) {
    constexpr int n = Source::pieces;
    const int x_row = static_cast<int>(threadIdx.x % warp_size / 4);
    for (int i = 0; i < Step<Source>::pieces; ++i) {
        const int64_t col = piece_column<Source>(begin, i);
        uint4 x_piece{0, 0, 0, 0};
        if (whole || col < cols) x_piece = load_piece(x, x_row, col);
        for (int t = 0; t < tiles; ++t)
            multiply_piece(sums[t], x_piece, bf16_piece(w, weights.raw[t][i / n], i % n));
    }
}

/// The end of a block that has the rows [first, first + block_rows) of w: adds up the sums (rows of
/// x, block_rows) of its warps, and stores what becomes of them.
template <int block_rows, int n>
__device__ void store_sums(const float (&of_warp)[warps][n], int64_t first, int64_t w_rows,
                           int x_rows, const Epilogue& epilogue, float* out, int64_t out_stride) {
    const int i = static_cast<int>(threadIdx.x);
    const int64_t row = i / block_rows, column = first + i % block_rows;
    if (row >= x_rows || column >= w_rows) return;
    float sum = 0;
    for (unsigned warp = 0; warp < warps; ++warp) sum += of_warp[warp][i];
    out[row * out_stride + column] = result_of(epilogue, sum, row, column, out_stride);
}

/// Block b: the rows [8 tiles b, 8 tiles (b + 1)) of w. out (x.rows, w_rows). The first
/// weights are loaded before the kernel in front has ended, if w `stands`: nothing queued writes it.
template <class Source, class Element, int tiles>
__global__ void __launch_bounds__(threads, 2)
    few_bf16_kernel(Source w, bool stands, int64_t w_rows, int64_t cols, FewRows<Element> x,
                    Epilogue epilogue, float* out, int64_t out_stride) {
    if (!stands) after_previous();
    constexpr int block_rows = tile * tiles;
    const int64_t first = int64_t{blockIdx.x} * block_rows;
    const int lane = static_cast<int>(threadIdx.x % warp_size);
    const int warp = static_cast<int>(threadIdx.x / warp_size);
    int64_t rows[tiles];  // where there is no such row, the last one is read and its sum dropped
    for (int t = 0; t < tiles; ++t) {
        const int64_t row = first + t * tile + lane / 4;
        rows[t] = row < w_rows ? row : w_rows - 1;
    }
    float sums[tiles][4] = {};  // (rows of x, rows of w) as mma.h has c
    constexpr int64_t step = Step<Source>::columns;
    StepWeights<Source, tiles> next;
    next.load(w, rows, warp * step, cols);
    after_previous();
    for (int64_t begin = warp * step; begin < cols; begin += warps * step) {
        const StepWeights<Source, tiles> now = next;
        next.load(w, rows, begin + warps * step, cols);
        if (begin + step <= cols) {
            add_step<true>(sums, w, now, x, begin, cols);
        } else {
            add_step<false>(sums, w, now, x, begin, cols);
        }
    }
    __shared__ float of_warp[warps][tile * block_rows];  // (warp, row of x, row of w)
    for (int t = 0; t < tiles; ++t) {
        float* to = &of_warp[warp][lane / 4 * block_rows + t * tile + 2 * (lane % 4)];
        to[0] = sums[t][0];
        to[1] = sums[t][1];
    }
    __syncthreads();
    store_sums<block_rows>(of_warp, first, w_rows, x.rows, epilogue, out, out_stride);
}

constexpr int f32_rows = 4;  // of w, of a block

/// Factors of float32, by multiply-adds: a thread has some columns of all rows.
template <class Source, int x_rows>
__global__ void __launch_bounds__(threads, 2)
    few_f32_kernel(Source w, int64_t w_rows, int64_t cols, FewRows<float> x, Epilogue epilogue,
                   float* out, int64_t out_stride) {
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

struct Output {
    const Epilogue& epilogue;
    float* data;
    int64_t stride;
};

/// Two tiles a block read x half as often, where there are rows enough for all processors.
template <class Source>
constexpr bool has_two_tiles = std::is_same_v<Source, HalfSource<DType::bf16>>;
constexpr int64_t many_rows = 4096;

/// A matrix of weights. stands: nothing that is queued writes it.
struct Weights {
    const Matrix& matrix;
    bool stands;
};

template <int tiles, class Source, class Element>
void launch_bf16(const Source& source, const Weights& weights, const FewRows<Element>& x,
                 const Output& out) {
    const Matrix& w = weights.matrix;
    const auto blocks = static_cast<unsigned>(pieces(w.rows, tile * tiles));
    launch("linear", few_bf16_kernel<Source, Element, tiles>, blocks, threads, 0, source,
           weights.stands, w.rows, w.cols, x, out.epilogue, out.data, out.stride);
}

template <class Element>
void multiply_bf16(const Weights& w, const FewRows<Element>& x, const Output& out) {
    with_fast_source(w.matrix, [&]<class Source>(const Source& source) {
        if constexpr (has_two_tiles<Source>) {
            if (w.matrix.rows >= many_rows) return launch_bf16<2>(source, w, x, out);
        }
        launch_bf16<1>(source, w, x, out);
    });
}

template <int x_rows, class Source>
void launch_f32(const Source& source, const Matrix& w, const FewRows<float>& x, const Output& out) {
    const auto blocks = static_cast<unsigned>(pieces(w.rows, f32_rows));
    launch("linear", few_f32_kernel<Source, x_rows>, blocks, threads, 0, source, w.rows, w.cols, x,
           out.epilogue, out.data, out.stride);
}

void multiply_f32(const Matrix& w, const FewRows<float>& x, const Output& out) {
    with_fast_source(w, [&](const auto& source) {
        if (x.rows == 1) return launch_f32<1>(source, w, x, out);
        launch_f32<few_rows>(source, w, x, out);
    });
}

/// x in memory of the workspace, rounded.
template <class Element>
FewRows<Element> panel_of(const Matrix& x, DType dtype, void* room) {
    decode(x, 0, x.rows, dtype, room);
    return {static_cast<const Element*>(room), panel_stride(x.cols), static_cast<int>(x.rows)};
}

/// w has a fast source.
void multiply(const Matrix& x, const Weights& w, DType factor, const Output& out, void* x_room) {
    const bool lies = lies_as_panel(x);
    const FewRows<float> as_it_lies{static_cast<const float*>(x.data), x.stride,
                                    static_cast<int>(x.rows)};
    // Up to two rows stay in the first-level cache, and rounding them there costs less than a
    // kernel of its own.
    constexpr int64_t rounded_on_the_way = 2;
    if (factor == DType::f32) {
        multiply_f32(w.matrix, lies ? as_it_lies : panel_of<float>(x, DType::f32, x_room), out);
    } else if (lies && x.rows <= rounded_on_the_way) {
        multiply_bf16(w, as_it_lies, out);
    } else {
        multiply_bf16(w, panel_of<uint16_t>(x, DType::bf16, x_room), out);
    }
}

}  // namespace

void linear_few(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
                const Epilogue& epilogue, DType factor, float* out, int64_t out_stride) {
    const Matrix x_rows{x, DType::f32, rows, w.cols, x_stride};
    const int64_t fitting = panel_rows(w.cols, factor);  // or an Error
    Workspace memory;
    auto* x_room = memory.take<std::byte>(panel_bytes);
    if (has_fast_source(w)) {
        multiply(x_rows, {w, true}, factor, {epilogue, out, out_stride}, x_room);
        return;
    }
    // What no source reads fast is decoded first, in panels that stay in the second-level cache.
    constexpr int64_t parts = 6;
    const int64_t panel = std::max<int64_t>(1, fitting / parts);
    auto* w_room = memory.take<std::byte>(panel_bytes);
    const int64_t stride = panel_stride(w.cols);
    for (int64_t first = 0; first < w.rows; first += panel) {
        const int64_t count = std::min(panel, w.rows - first);
        decode(w, first, count, factor, w_room);
        const Epilogue part = part_of(epilogue, 0, first, out_stride);
        const Matrix decoded{w_room, factor, count, stride, stride};
        multiply(x_rows, {decoded, false}, factor, {part, out + first, out_stride}, x_room);
    }
}

}  // namespace mllama::cuda
