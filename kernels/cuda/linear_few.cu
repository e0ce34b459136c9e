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
constexpr int tile = 8;                        // rows of w of an mma
constexpr int step_pieces = 4;                 // pieces of a row that a lane loads at a time, and
constexpr int64_t step = 4 * 8 * step_pieces;  // columns that the four lanes of a row do

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
__device__ inline uint4 load_piece(const FewRows<float>& x, int row, int64_t col) {
    if (row >= x.rows) return {0, 0, 0, 0};
    const auto* at = reinterpret_cast<const float4*>(x.data + row * x.stride + col);
    const float4 low = at[0], high = at[1];
    return {pack_bf16(low.x, low.y), pack_bf16(low.z, low.w), pack_bf16(high.x, high.y),
            pack_bf16(high.z, high.w)};
}

/// Piece i of a load as bfloat16.
template <class Source>
__device__ uint4 bf16_piece(const Source& w, const typename Source::Raw& raw, int i, int64_t row,
                            int64_t col) {
    if constexpr (std::is_same_v<Source, HalfSource<DType::bf16>>)
        return raw;
    else
        return to_bf16(w.eight(raw, i, row, col));
}

/// The sums of a warp, in two chains for each tile: c (rows of x, rows of w) as mma.h says.
template <int tiles>
struct Sums {
    float c[tiles][2][4];
};

/// c += the products of one piece: 32 columns, in two mma.
__device__ inline void multiply_piece(float (&c)[2][4], const uint4& x, const uint4& w) {
    const uint32_t a0[4] = {x.x, 0, x.y, 0}, b0[2] = {w.x, w.y};
    const uint32_t a1[4] = {x.z, 0, x.w, 0}, b1[2] = {w.z, w.w};
    mma_bf16(c[0], a0, b0);
    mma_bf16(c[1], a1, b1);
}

/// The first column of piece i of this lane, of the step that begins at `begin`: the lanes' loads
/// are neighbours.
template <class Source>
__device__ int64_t piece_column(int64_t begin, int i) {
    constexpr int n = Source::pieces;
    const int quad = static_cast<int>(threadIdx.x % 4);
    return begin + (i / n * 4 + quad) * (8 * n) + i % n * 8;
}

/// Adds the products of `step` columns. whole: all of them are there. rows: of w, this lane's.
template <bool whole, class Source, class Element, int tiles>
__device__ void add_step(Sums<tiles>& sums, const Source& w, const FewRows<Element>& x,
                         const int64_t (&rows)[tiles], int64_t begin, int64_t cols) {
    constexpr int loads = step_pieces / Source::pieces;
    typename Source::Raw raw[tiles][loads] = {};
    uint4 x_piece[step_pieces] = {};
    for (int i = 0; i < loads; ++i) {
        const int64_t col = piece_column<Source>(begin, i * Source::pieces);
        if (!whole && col >= cols) continue;
        for (int t = 0; t < tiles; ++t) raw[t][i] = w.load(rows[t], col);
    }
    const int x_row = static_cast<int>(threadIdx.x % warp_size / 4);
    for (int i = 0; i < step_pieces; ++i) {
        const int64_t col = piece_column<Source>(begin, i);
        if (whole || col < cols) x_piece[i] = load_piece(x, x_row, col);
    }
    for (int i = 0; i < step_pieces; ++i) {
        const int64_t col = piece_column<Source>(begin, i);
        for (int t = 0; t < tiles; ++t) {
            uint4 piece{0, 0, 0, 0};
            if (whole || col < cols) {
                piece = bf16_piece(w, raw[t][i / Source::pieces], i % Source::pieces, rows[t], col);
            }
            multiply_piece(sums.c[t], x_piece[i], piece);
        }
    }
}

/// Block b: the rows [8 tiles b, 8 tiles (b + 1)) of w. out (x.rows, w_rows).
template <class Source, class Element, int tiles>
__global__ void __launch_bounds__(threads)
    few_bf16_kernel(Source w, int64_t w_rows, int64_t cols, FewRows<Element> x, Epilogue epilogue,
                    float* out, int64_t out_stride) {
    constexpr int block_rows = tile * tiles;
    const int64_t first = int64_t{blockIdx.x} * block_rows;
    const int lane = static_cast<int>(threadIdx.x % warp_size);
    const int warp = static_cast<int>(threadIdx.x / warp_size);
    int64_t rows[tiles];  // where there is no such row, the last one is read and its sum dropped
    for (int t = 0; t < tiles; ++t) {
        const int64_t row = first + t * tile + lane / 4;
        rows[t] = row < w_rows ? row : w_rows - 1;
    }
    Sums<tiles> sums = {};
    for (int64_t begin = warp * step; begin < cols; begin += warps * step) {
        if (begin + step <= cols) {
            add_step<true>(sums, w, x, rows, begin, cols);
        } else {
            add_step<false>(sums, w, x, rows, begin, cols);
        }
    }
    __shared__ float of_warp[warps][tile][block_rows];  // (warp, row of x, row of w)
    for (int t = 0; t < tiles; ++t) {
        float* to = &of_warp[warp][lane / 4][t * tile + 2 * (lane % 4)];
        to[0] = sums.c[t][0][0] + sums.c[t][1][0];
        to[1] = sums.c[t][0][1] + sums.c[t][1][1];
    }
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x) / block_rows;
    const int column = static_cast<int>(threadIdx.x) % block_rows;
    if (row >= x.rows || first + column >= w_rows) return;
    float sum = 0;
    for (unsigned i = 0; i < warps; ++i) sum += of_warp[i][row][column];
    store_result(epilogue, sum, row, first + column, out, out_stride);
}

constexpr int f32_rows = 4;  // of w, of a block

/// Factors of float32, by multiply-adds: a thread has some columns of all rows.
template <class Source, int x_rows>
__global__ void __launch_bounds__(threads)
    few_f32_kernel(Source w, int64_t w_rows, int64_t cols, FewRows<float> x, Epilogue epilogue,
                   float* out, int64_t out_stride) {
    constexpr int columns = 8 * Source::pieces;
    const int64_t first = int64_t{blockIdx.x} * f32_rows;
    float sums[x_rows][f32_rows] = {};
    for (int64_t col = threadIdx.x * columns; col < cols; col += threads * columns) {
        typename Source::Raw raw[f32_rows];
        for (int j = 0; j < f32_rows; ++j) {
            const int64_t row = first + j < w_rows ? first + j : w_rows - 1;
            raw[j] = w.load(row, col);
        }
        for (int i = 0; i < Source::pieces; ++i) {
            Eight piece[f32_rows];
            for (int j = 0; j < f32_rows; ++j) {
                const int64_t row = first + j < w_rows ? first + j : w_rows - 1;
                piece[j] = w.eight(raw[j], i, row, col + 8 * i);
            }
            for (int r = 0; r < x_rows; ++r) {
                if (r >= x.rows) break;
                const float* x_piece = x.data + r * x.stride + col + 8 * i;
                for (int k = 0; k < 8; ++k) {
                    for (int j = 0; j < f32_rows; ++j)
                        sums[r][j] = fmaf(x_piece[k], piece[j].of[k], sums[r][j]);
                }
            }
        }
    }
    __shared__ float of_warp[warps][x_rows][f32_rows];
    for (int r = 0; r < x_rows; ++r) {
        for (int j = 0; j < f32_rows; ++j) {
            const float sum = warp_sum(sums[r][j]);
            if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size][r][j] = sum;
        }
    }
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x) / f32_rows;
    const int column = static_cast<int>(threadIdx.x) % f32_rows;
    if (row >= x.rows || first + column >= w_rows) return;
    float sum = 0;
    for (unsigned i = 0; i < warps; ++i) sum += of_warp[i][row][column];
    store_result(epilogue, sum, row, first + column, out, out_stride);
}

struct Output {
    const Epilogue& epilogue;
    float* data;
    int64_t stride;
};

template <int tiles, class Element>
void launch_bf16(const Matrix& w, const FewRows<Element>& x, const Output& out) {
    with_source(w, [&]<class Source>(const Source& source) {
        const auto blocks = static_cast<unsigned>(pieces(w.rows, tile * tiles));
        launch("linear", few_bf16_kernel<Source, Element, tiles>, blocks, threads, 0, source,
               w.rows, w.cols, x, out.epilogue, out.data, out.stride);
    });
}

/// Matrices of many rows: two tiles a block read x half as often.
template <class Element>
void multiply_bf16(const Matrix& w, const FewRows<Element>& x, const Output& out) {
    constexpr int64_t many_rows = 4096;
    if (w.rows >= many_rows) {
        launch_bf16<2>(w, x, out);
    } else {
        launch_bf16<1>(w, x, out);
    }
}

template <int x_rows>
void launch_f32(const Matrix& w, const FewRows<float>& x, const Output& out) {
    with_source(w, [&]<class Source>(const Source& source) {
        const auto blocks = static_cast<unsigned>(pieces(w.rows, f32_rows));
        launch("linear", few_f32_kernel<Source, x_rows>, blocks, threads, 0, source, w.rows, w.cols,
               x, out.epilogue, out.data, out.stride);
    });
}

void multiply_f32(const Matrix& w, const FewRows<float>& x, const Output& out) {
    if (x.rows == 1) {
        launch_f32<1>(w, x, out);
    } else if (x.rows == 2) {
        launch_f32<2>(w, x, out);
    } else if (x.rows <= 4) {
        launch_f32<4>(w, x, out);
    } else {
        launch_f32<8>(w, x, out);
    }
}

/// x in the workspace, rounded.
template <class Element>
FewRows<Element> panel_of(const Matrix& x, DType dtype) {
    const int64_t stride = panel_stride(x.cols);
    auto* panel = Workspace().take<Element>(x.rows * stride);
    decode(x, 0, x.rows, dtype, panel);
    return {panel, stride, static_cast<int>(x.rows)};
}

}  // namespace

void linear_few(const float* x, int64_t rows, int64_t x_stride, const Matrix& w,
                const Epilogue& epilogue, DType factor, float* out, int64_t out_stride) {
    const Output output{epilogue, out, out_stride};
    const Matrix all{x, DType::f32, rows, w.cols, x_stride};
    const FewRows<float> as_it_lies{x, x_stride, static_cast<int>(rows)};
    // Up to two rows stay in the first-level cache, and rounding them there costs less than a
    // kernel of its own.
    constexpr int64_t rounded_on_the_way = 2;
    if (factor == DType::f32) {
        const bool lies = lies_as_panel(all);
        multiply_f32(w, lies ? as_it_lies : panel_of<float>(all, DType::f32), output);
    } else if (rows <= rounded_on_the_way && lies_as_panel(all)) {
        multiply_bf16(w, as_it_lies, output);
    } else {
        multiply_bf16(w, panel_of<uint16_t>(all, DType::bf16), output);
    }
}

}  // namespace mllama::cuda
