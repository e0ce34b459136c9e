// Linear layers of integers of many rows of x: a block multiplies a tile of rows of x with a tile of
// rows of w on the tensor cores.
//
//     for each step of columns                     64 of int8; 128 of int4, a piece of x
//       copy the step after the next ones into shared memory, while
//       each warp multiplies its part of the tile: k = 32 at a time
//         int4: the sum of each segment becomes a float, with its scales
//     scales of int8, epilogue
//
// Rows of a step lie in shared memory without gaps; the 16 bytes of eight rows that are read together
// are exchanged with others of their rows such that they meet different banks.
//
// Fragments of int8 are loaded as they lie. 16 bytes of int4 are 32 columns, of which the low nibbles
// are every other one: quantise_rows has brought those of x together. Which columns an mma calls which
// does not matter, as long as both factors agree.
#include <type_traits>

#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/linear_int_parts.h"
#include "kernels/cuda/mma.h"

namespace mllama::cuda {
namespace {

/// parts: segments of a piece; 0: int8. A warp has 16 m_tiles rows of x times 8 n_tiles of w, a
/// block has warps_m x warps_n warps.
template <int parts_, int m_tiles_, int n_tiles_, int warps_m_, int warps_n_>
struct TileShape {
    static constexpr int parts = parts_, m_tiles = m_tiles_, n_tiles = n_tiles_;
    static constexpr int warps_n = warps_n_;
    static constexpr bool nibbles = parts > 0;
    static constexpr int warp_rows = 16 * m_tiles, warp_columns = 8 * n_tiles;
    static constexpr int rows = warps_m_ * warp_rows, columns = warps_n_ * warp_columns;
    static constexpr int threads = 32 * warps_m_ * warps_n_;
    static constexpr int stages = nibbles ? 3 : 4;
    /// Blocks that a processor has registers for.
    static constexpr int blocks = nibbles && m_tiles == 4 ? 1 : m_tiles == 4 ? 2 : 3;
    // Of a row, in a step.
    static constexpr int x_bytes = nibbles ? 128 : 64;
    static constexpr int w_bytes = 64;
    static constexpr int mma_steps = x_bytes / 32;
};

/// Where the 16 bytes `chunk` begin in a row of so many bytes. It depends on row % 8 alone.
template <int row_bytes>
__device__ constexpr int chunk_place(int row, int chunk) {
    constexpr int rows_of_all_banks = 128 / row_bytes, chunks = row_bytes / 16;
    return (chunk ^ (row / rows_of_all_banks % chunks)) * 16;
}

template <class Shape, bool nibbles>
struct StageScales {};  // int8 has its scales at the end
template <class Shape>
struct StageScales<Shape, true> {
    float x_scale[Shape::rows];
    int32_t x_sum[Shape::parts][Shape::rows];
    float w_scale[Shape::parts][Shape::columns];
    int32_t w_zero[Shape::parts][Shape::columns];
};

/// A step in shared memory.
template <class Shape>
struct alignas(16) Stage : StageScales<Shape, Shape::nibbles> {
    uint8_t x[Shape::rows * Shape::x_bytes];
    uint8_t w[Shape::columns * Shape::w_bytes];
};

/// What a block multiplies: the rows of x from `row` on with the rows of w from `column` on.
struct Factors {
    const IntRows& x;
    const IntWeights& w;
    int64_t row, column;
};

/// Copies rows of a step to shared memory: what a thread copies is found once, and moves along the rows.
/// A thread has the same 16 bytes of every row_step-th row.
template <int rows_, int row_bytes, int threads>
struct RowCopies {
    static constexpr int row_chunks = row_bytes / 16;
    static constexpr int row_step = threads / row_chunks;
    static constexpr int count = rows_ / row_step;
    static_assert(count * row_step == rows_ && row_step % 8 == 0);
    const uint8_t* from;
    int64_t step;  ///< bytes to this thread's next row
    int there;     ///< rows of it that are
    int chunk;     ///< bytes into a row
    int place;     ///< of the first one in shared memory

    /// rows: those that there are from `data` on, `stride` bytes apart.
    __device__ RowCopies(const void* data, int64_t stride, int64_t rows) {
        const int thread = static_cast<int>(threadIdx.x);
        const int row = thread / row_chunks;
        chunk = thread % row_chunks * 16;
        from = static_cast<const uint8_t*>(data) + (row < rows ? row * stride + chunk : 0);
        step = row_step * stride;
        const int behind = static_cast<int>(rows < rows_ ? rows : rows_) - row;
        there = behind > 0 ? (behind - 1) / row_step + 1 : 0;
        place = row * row_bytes + chunk_place<row_bytes>(row, thread % row_chunks);
    }
    /// `at`: the step's first byte in a row of `bytes`.
    __device__ void copy(uint8_t* to, int at, int bytes) const {
        const bool in_row = at + chunk < bytes;
        for (int i = 0; i < count; ++i) {
            copy_async_16(to + place + i * row_step * row_bytes, from + i * step + at,
                          in_row && i < there);
        }
    }
    /// The same for rows that are not aligned.
    template <int alignment>
    __device__ void copy_crooked(uint8_t* to, int at, int bytes) const {
        for (int i = 0; i < count; ++i) {
            *reinterpret_cast<uint4*>(to + place + i * row_step * row_bytes) =
                i < there ? load_crooked<alignment>(from + i * step - chunk, at + chunk, bytes)
                          : uint4{0, 0, 0, 0};
        }
    }
};

/// Copies the scales and sums of x: 16 bytes a thread.
template <class Shape>
struct XScaleCopies {
    static constexpr int row_chunks = Shape::rows / 4;
    static_assert((1 + Shape::parts) * row_chunks <= Shape::threads);
    const uint8_t* from;
    int64_t step;

    __device__ explicit XScaleCopies(const Factors& f) {
        const int line = static_cast<int>(threadIdx.x) / row_chunks;  // scales, sums of part 0, ...
        const int64_t row = f.row + static_cast<int>(threadIdx.x) % row_chunks * 4;
        const int64_t padded = f.x.padded_rows;
        from = reinterpret_cast<const uint8_t*>(f.x.scales + row);
        step = 4 * padded;
        if (line == 0) return;
        from = reinterpret_cast<const uint8_t*>(f.x.sums + (line - 1) * padded + row);
        step *= Shape::parts;
    }
    __device__ void copy(Stage<Shape>& stage, int at_step) const {
        const int thread = static_cast<int>(threadIdx.x);
        if (thread >= (1 + Shape::parts) * row_chunks) return;
        // The sums stand behind the scales in shared memory.
        copy_async_16(reinterpret_cast<uint8_t*>(&stage) + thread * 16, from + at_step * step,
                      true);
    }
};

/// The scales and zeros of w of a step on their way through registers: they are of any type, and are
/// loaded before a multiplication and stored behind it. A thread has one row of w, and every
/// part_step-th part of a piece.
template <class Shape>
struct WScaleCopies {
    static constexpr int part_step = Shape::threads / Shape::columns;
    static constexpr int count = (Shape::parts + part_step - 1) / part_step;
    RowScales row;
    int column, first_part;
    bool there;
    uint32_t bits[count];
    int32_t zero[count];

    __device__ explicit WScaleCopies(const Factors& f)
        : row(f.w.groups, column_of(f)),
          column(static_cast<int>(threadIdx.x) % Shape::columns),
          first_part(static_cast<int>(threadIdx.x) / Shape::columns),
          there(f.column + column < f.w.rows) {}
    static __device__ int64_t column_of(const Factors& f) {
        const int64_t n = f.column + static_cast<int>(threadIdx.x) % Shape::columns;
        return n < f.w.rows ? n : 0;
    }
    __device__ void load(const IntWeights& w, int step) {
        constexpr int segment_columns = static_cast<int>(x_piece) / Shape::parts;
        for (int i = 0; i < count; ++i) {
            const int part = first_part + i * part_step;
            const int segment = step * Shape::parts + part;
            bits[i] = 0;
            zero[i] = 0;
            if (!there || part >= Shape::parts || segment * segment_columns >= w.cols) continue;
            bits[i] = row.bits(w.groups, w.group(segment));
            zero[i] = row.zero_number(w.groups, w.group(segment));
        }
    }
    __device__ void store(Stage<Shape>& stage, DType dtype) const {
        for (int i = 0; i < count; ++i) {
            const int part = first_part + i * part_step;
            if (part >= Shape::parts) continue;
            stage.w_scale[part][column] = scale_of_bits(bits[i], dtype);
            stage.w_zero[part][column] = zero[i];
        }
    }
};

/// What a thread copies to shared memory.
template <class Shape, bool nibbles>
struct ScaleCopies {
    __device__ explicit ScaleCopies(const Factors&) {}
    __device__ void start(Stage<Shape>&, const IntWeights&, int) {}
    __device__ void finish(Stage<Shape>&, const IntWeights&) const {}
};
template <class Shape>
struct ScaleCopies<Shape, true> {
    XScaleCopies<Shape> x;
    WScaleCopies<Shape> w;

    __device__ explicit ScaleCopies(const Factors& f) : x(f), w(f) {}
    __device__ void start(Stage<Shape>& stage, const IntWeights& weights, int step) {
        if (step * static_cast<int>(x_piece) < weights.cols) x.copy(stage, step);
        w.load(weights, step);
    }
    __device__ void finish(Stage<Shape>& stage, const IntWeights& weights) const {
        w.store(stage, weights.groups.scale_dtype);
    }
};
template <class Shape>
struct Copies {
    RowCopies<Shape::rows, Shape::x_bytes, Shape::threads> x;
    RowCopies<Shape::columns, Shape::w_bytes, Shape::threads> w;
    ScaleCopies<Shape, Shape::nibbles> scales;

    __device__ explicit Copies(const Factors& f)
        : x(f.x.numbers + f.row * f.x.stride, f.x.stride, f.x.rows - f.row),
          w(f.w.row(f.column), f.w.row_bytes, f.w.rows - f.column),
          scales(f) {}
    /// Starts to copy a step.
    __device__ void start(Stage<Shape>& stage, const Factors& f, int step) {
        constexpr int crooked = Shape::nibbles ? 4 : 1;
        const int at = step * Shape::w_bytes;
        if (at < f.w.row_bytes) {
            x.copy(stage.x, step * Shape::x_bytes, static_cast<int>(f.x.stride));
            if (f.w.aligned) {
                w.copy(stage.w, at, f.w.row_bytes);
            } else {
                w.template copy_crooked<crooked>(stage.w, at, f.w.row_bytes);
            }
        }
        scales.start(stage, f.w, step);
        copy_async_commit();
    }
    /// Stores what came through registers.
    __device__ void finish(Stage<Shape>& stage, const Factors& f) const {
        scales.finish(stage, f.w);
    }
};

/// Where this lane's elements of c stand in the tile: rows row, row + 8 and columns column, column + 1
/// of each product of 16 x 8.
template <class Shape>
struct LanePlace {
    int group = static_cast<int>(threadIdx.x % warp_size / 4);
    int quad = static_cast<int>(threadIdx.x % 4);
    int warp_row = static_cast<int>(threadIdx.x / warp_size) / Shape::warps_n * Shape::warp_rows;
    int warp_column =
        static_cast<int>(threadIdx.x / warp_size) % Shape::warps_n * Shape::warp_columns;

    __device__ int row(int m) const { return warp_row + 16 * m + group; }
    __device__ int column(int n) const { return warp_column + 8 * n + 2 * quad; }
};

/// The products of a warp.
template <class Shape, class T>
struct Products {
    T of[Shape::m_tiles][Shape::n_tiles][4];
};

/// 16 rows of x and 32 columns.
template <class Shape>
__device__ void load_a(uint32_t (&a)[4], const Stage<Shape>& stage, int m, int step) {
    const int lane = static_cast<int>(threadIdx.x % warp_size), in_eight = lane % 8;
    const int row = LanePlace<Shape>().warp_row + 16 * m + lane / 8 % 2 * 8 + in_eight;
    load_matrices(a, stage.x + row * Shape::x_bytes +
                         chunk_place<Shape::x_bytes>(in_eight, 2 * step + lane / 16));
}

/// Fragments of w.
template <class Shape>
struct Fragments {
    uint32_t of[Shape::n_tiles][2];

    /// All rows of w of this warp, and 32 columns.
    __device__ void load(const Stage<Shape>& stage, int step) {
        constexpr int tiles = Shape::nibbles ? 4 : 2;  // of a load
        const int lane = static_cast<int>(threadIdx.x % warp_size), in_eight = lane % 8;
        const int tile = Shape::nibbles ? lane / 8 : lane / 16;
        const int chunk = Shape::nibbles ? step : 2 * step + lane / 8 % 2;
        const uint8_t* from =
            stage.w + chunk_place<Shape::w_bytes>(in_eight, chunk) +
            (LanePlace<Shape>().warp_column + 8 * tile + in_eight) * Shape::w_bytes;
        for (int n = 0; n < Shape::n_tiles; n += tiles) {
            uint32_t units[4];
            load_matrices(units, from + 8 * n * Shape::w_bytes);
            put(units, n);
        }
    }
    __device__ void put(const uint32_t (&units)[4], int n) {
        if constexpr (Shape::nibbles) {
            for (int i = 0; i < 4; ++i) {
                of[n + i][0] = low_nibbles(units[i]);
                of[n + i][1] = high_nibbles(units[i]);
            }
        } else {
            for (int i = 0; i < 4; ++i) of[n + i / 2][i % 2] = units[i];
        }
    }
};

/// c += the products of 32 columns.
template <class Shape>
__device__ void multiply(Products<Shape, int32_t>& c, const Stage<Shape>& stage, int step) {
    Fragments<Shape> b;
    b.load(stage, step);
    for (int m = 0; m < Shape::m_tiles; ++m) {
        uint32_t a[4];
        load_a(a, stage, m, step);
        for (int n = 0; n < Shape::n_tiles; ++n) mma_int8(c.of[m][n], a, b.of[n]);
    }
}

/// What sums of a segment begin with: what zeros take from them.
template <class Shape>
__device__ void start_segment(Products<Shape, int32_t>& c, const Stage<Shape>& stage, int part) {
    const LanePlace<Shape> lane;
    for (int m = 0; m < Shape::m_tiles; ++m) {
        const int32_t* sum = stage.x_sum[part] + lane.row(m);
        for (int n = 0; n < Shape::n_tiles; ++n) {
            const int32_t* zero = stage.w_zero[part] + lane.column(n);
            for (int i = 0; i < 4; ++i) c.of[m][n][i] = sum_start - zero[i % 2] * sum[i / 2 * 8];
        }
    }
}

/// sums += c with the scales of a segment.
template <class Shape>
__device__ void end_segment(Products<Shape, float>& sums, const Products<Shape, int32_t>& c,
                            const Stage<Shape>& stage, int part) {
    const LanePlace<Shape> lane;
    for (int m = 0; m < Shape::m_tiles; ++m) {
        const float* x_scale = stage.x_scale + lane.row(m);
        for (int n = 0; n < Shape::n_tiles; ++n) {
            const float* w_scale = stage.w_scale[part] + lane.column(n);
            for (int i = 0; i < 4; ++i) {
                sums.of[m][n][i] +=
                    sum_to_float(c.of[m][n][i]) * (x_scale[i / 2 * 8] * w_scale[i % 2]);
            }
        }
    }
}

template <class Shape>
__device__ void multiply_step(Products<Shape, int32_t>& sums, const Stage<Shape>& stage) {
    for (int step = 0; step < Shape::mma_steps; ++step) multiply(sums, stage, step);
}

template <class Shape>
__device__ void multiply_step(Products<Shape, float>& sums, const Stage<Shape>& stage) {
    constexpr int steps = Shape::mma_steps / Shape::parts;
    for (int part = 0; part < Shape::parts; ++part) {
        Products<Shape, int32_t> c;
        start_segment(c, stage, part);
        for (int step = 0; step < steps; ++step) multiply(c, stage, part * steps + step);
        end_segment(sums, c, stage, part);
    }
}

/// Where an element of a tile of results stands in shared memory: lanes that store together meet
/// different banks.
template <class Shape>
__device__ int result_place(int row, int column) {
    return row * Shape::columns + (column ^ (row % 4 * 8));
}

template <class Shape, class T>
__device__ void put_results(T* results, const Products<Shape, T>& sums) {
    const LanePlace<Shape> lane;
    for (int m = 0; m < Shape::m_tiles; ++m) {
        for (int n = 0; n < Shape::n_tiles; ++n) {
            for (int i = 0; i < 4; ++i) {
                const int place =
                    result_place<Shape>(lane.row(m) + i / 2 * 8, lane.column(n) + i % 2);
                results[place] = sums.of[m][n][i];
            }
        }
    }
}

__device__ inline float result_of(float sum, const Factors&, int64_t, int64_t) {
    return sum;
}
__device__ inline float result_of(int32_t sum, const Factors& f, int64_t row, int64_t column) {
    const float scale = f.w.cols > 0 ? scale_of(f.w.groups, column, 0) : 0.0f;
    return scaled_sum(sum, f.x.scales[row], scale);
}

template <class Shape, class T>
__device__ void store_results(const T* results, const Factors& f, const Epilogue& epilogue,
                              float* out, int64_t out_stride) {
    for (int i = static_cast<int>(threadIdx.x); i < Shape::rows * Shape::columns;
         i += Shape::threads) {
        const int row = i / Shape::columns, column = i % Shape::columns;
        const int64_t r = f.row + row, n = f.column + column;
        if (r >= f.x.rows || n >= f.w.rows) continue;
        const T sum = results[result_place<Shape>(row, column)];
        store_result(epilogue, result_of(sum, f, r, n), r, n, out, out_stride);
    }
}

/// The tile of block b: of rows of x b % row_tiles (so blocks that run together share rows of w).
template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks)
    tile_kernel(IntWeights w, IntRows x, int64_t row_tiles, Epilogue epilogue, float* out,
                int64_t out_stride) {
    after_previous();
    using Sum = std::conditional_t<Shape::nibbles, float, int32_t>;
    constexpr int stages = Shape::stages;
    auto* stage = reinterpret_cast<Stage<Shape>*>(dynamic_shared());
    const Factors f{x, w, blockIdx.x % row_tiles * Shape::rows,
                    blockIdx.x / row_tiles * Shape::columns};
    const int steps = (w.row_bytes + Shape::w_bytes - 1) / Shape::w_bytes;
    Copies<Shape> copies(f);
    for (int i = 0; i < stages - 1; ++i) {
        copies.start(stage[i], f, i);
        copies.finish(stage[i], f);
    }
    Products<Shape, Sum> sums = {};
    int now = 0, free = stages - 1;
    for (int step = 0; step < steps; ++step) {
        copy_async_wait<stages - 2>();
        __syncthreads();  // everybody's copies are there, and everybody has left the free stage
        copies.start(stage[free], f, step + stages - 1);
        multiply_step(sums, stage[now]);
        copies.finish(stage[free], f);
        free = now;
        now = now + 1 == stages ? 0 : now + 1;
    }
    copy_async_wait<0>();
    __syncthreads();
    auto* results = reinterpret_cast<Sum*>(dynamic_shared());
    put_results(results, sums);
    __syncthreads();
    store_results<Shape>(results, f, epilogue, out, out_stride);
}

struct Output {
    const Epilogue& epilogue;
    float* data;
    int64_t stride;
};

template <class Shape>
void launch_tiles(const IntRows& x, const IntWeights& w, const Output& out) {
    constexpr int64_t results = int64_t{4} * Shape::rows * Shape::columns;
    constexpr int64_t staged = Shape::stages * int64_t{sizeof(Stage<Shape>)};
    static_assert(tile_rows % Shape::rows == 0);  // all scales of a tile can be read
    const int64_t row_tiles = pieces(x.rows, Shape::rows);
    const int64_t tiles = row_tiles * pieces(w.rows, Shape::columns);
    launch("linear_int", tile_kernel<Shape>, static_cast<unsigned>(tiles), Shape::threads,
           results > staged ? results : staged, w, x, row_tiles, out.epilogue, out.data,
           out.stride);
}

/// A warp of the large tile has as many products as registers hold: of int4, twice. The small one is
/// for what would not give every processor a large one.
template <int parts>
void choose_tile(const IntRows& x, const IntWeights& w, const Output& out) {
    using Large =
        std::conditional_t<parts == 0, TileShape<parts, 4, 8, 2, 2>, TileShape<parts, 4, 4, 2, 4>>;
    using Small = TileShape<parts, 2, 4, 2, 2>;
    const int64_t tiles = pieces(x.rows, Large::rows) * pieces(w.rows, Large::columns);
    if (x.rows <= Small::rows || tiles < processors()) {
        launch_tiles<Small>(x, w, out);
    } else {
        launch_tiles<Large>(x, w, out);
    }
}

}  // namespace

void linear_int_tile(const IntRows& x, const IntWeights& w, const Epilogue& epilogue, float* out,
                     int64_t out_stride) {
    const Output output{epilogue, out, out_stride};
    const int64_t parts = x.layout.nibbles ? x.layout.segments_per_piece() : 0;
    if (parts == 0) {
        choose_tile<0>(x, w, output);
    } else if (parts == 1) {
        choose_tile<1>(x, w, output);
    } else if (parts == 2) {
        choose_tile<2>(x, w, output);
    } else {
        choose_tile<4>(x, w, output);
    }
}

}  // namespace mllama::cuda
