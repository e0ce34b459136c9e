// Matrix products of a table, written once over a multiply-add. Like cpu_leaves.h, which includes
// it, this file goes into the unnamed namespace and the target region of a table's source; and once
// more, where that has a second multiply-add of another target (a template is compiled for the
// target of the region that it is written in).
//
// Besides what cpu_leaves.h needs, its templates take
//
//     Dot    a multiply-add: Element, Panel (lanes groups), group, zero(), load_panel(p),
//            store_panel(p, v), broadcast_x(p): one group in all lanes, broadcast_quad(p): a quad
//            of groups in every quad, by_sum(v): quads_by_place of groups, multiply_add(x, w, sum)
//     Load   Element, load(p, n): lanes groups of an element type as a Panel; only the first n
//            elements exist, 0 follows

/// The register tile: rows x vectors accumulators. In each pass they go over k elements from 0 and
/// are then added to c (or set c, if it is the first pass and nothing is to be kept). See
/// Product::tile.
template <class Dot, int rows, int vectors>
void register_tile(int64_t passes, int64_t k, const typename Dot::Element* x, int64_t x_stride,
                   const typename Dot::Element* panel, float* c, int64_t c_stride,
                   bool accumulate) {
    for (int64_t pass = 0; pass < passes; ++pass) {
        Vec sum[rows][vectors];
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) sum[r][v] = broadcast(0.0f);
        }
        for (int64_t i = 0; i < k; i += Dot::group) {
            typename Dot::Panel w[vectors];
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) {
                w[v] = Dot::load_panel(panel + v * lanes * Dot::group);
            }
#pragma GCC unroll 16
            for (int r = 0; r < rows; ++r) {
                const typename Dot::Panel a = Dot::broadcast_x(x + r * x_stride + i);
#pragma GCC unroll 16
                for (int v = 0; v < vectors; ++v) sum[r][v] = Dot::multiply_add(a, w[v], sum[r][v]);
            }
            panel += vectors * lanes * Dot::group;
        }
        x += k;
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) {
                float* to = c + r * c_stride + v * lanes;
                F32::store(to, accumulate ? F32::load(to) + sum[r][v] : sum[r][v]);
            }
        }
        accumulate = true;
    }
}

/// Finds the register tile of this many rows and vectors.
template <class Dot, int rows = tile_rows, int vectors = panel_vectors>
void choose_tile(int64_t row_count, int64_t vector_count, int64_t passes, int64_t k,
                 const typename Dot::Element* x, int64_t x_stride,
                 const typename Dot::Element* panel, float* c, int64_t c_stride, bool accumulate) {
    if (rows > 1 && row_count < rows) {
        choose_tile<Dot, (rows > 1 ? rows - 1 : 1), vectors>(
            row_count, vector_count, passes, k, x, x_stride, panel, c, c_stride, accumulate);
    } else if (vectors > 1 && vector_count < vectors) {
        choose_tile<Dot, rows, (vectors > 1 ? vectors - 1 : 1)>(
            row_count, vector_count, passes, k, x, x_stride, panel, c, c_stride, accumulate);
    } else {
        register_tile<Dot, rows, vectors>(passes, k, x, x_stride, panel, c, c_stride, accumulate);
    }
}

template <class Dot>
void tile(int64_t rows, int64_t n, int64_t passes, int64_t k, const void* x, int64_t x_stride,
          const void* panel, float* c, int64_t c_stride, bool accumulate) {
    using Element = typename Dot::Element;
    choose_tile<Dot>(rows, (n + lanes - 1) / lanes, passes, k, static_cast<const Element*>(x),
                     x_stride, static_cast<const Element*>(panel), c, c_stride, accumulate);
}

/// Lanes rows of w, one vector of each, on their way through the registers: transposed, so that
/// groups[j] holds the j-th group of all rows. Only the first n elements of `row_count` rows exist;
/// 0 follows.
template <class Dot, class Load>
inline void transposed_block(const typename Load::Element* w, int64_t stride, int64_t row_count,
                             int64_t n, typename Dot::Panel (&groups)[lanes]) {
    if (row_count >= lanes && n >= lanes * Dot::group) {
#pragma GCC unroll 16
        for (int64_t j = 0; j < lanes; ++j) {
            groups[j] = Load::load(w + j * stride, lanes * Dot::group);
        }
    } else {
        for (int64_t j = 0; j < lanes; ++j) {
            groups[j] = j < row_count ? Load::load(w + j * stride, n) : Dot::zero();
        }
    }
    transpose(groups);
}

/// See Product::pack_rows.
template <class Dot, class Load>
void pack_rows(const void* w, int64_t stride, int64_t n, int64_t k, void* panel, bool by_sum) {
    const auto* from = static_cast<const typename Load::Element*>(w);
    auto* to = static_cast<typename Dot::Element*>(panel);
    const int64_t group_size =
        round_up(n, lanes) * Dot::group;  // elements of one group of all rows
    constexpr int64_t step = lanes * Dot::group;
    const int64_t blocks = (k + step - 1) / step;
    for (int64_t column = 0; column < n; column += lanes) {
        for (int64_t b = 0; b < blocks; ++b) {
            typename Dot::Panel groups[lanes];
            const int64_t rest = k - b * step;
            transposed_block<Dot, Load>(from + column * stride + b * step, stride, n - column, rest,
                                        groups);
            auto* at = to + column * Dot::group;
            if (by_sum) {
#pragma GCC unroll 16
                for (int64_t j = 0; j < lanes; ++j) {
                    const int64_t place = (j % sums * blocks + b) * quads + j / sums;
                    Dot::store_panel(at + place * group_size, groups[j]);
                }
                continue;
            }
            const int64_t count = at_most((rest + Dot::group - 1) / Dot::group, lanes);
            for (int64_t j = 0; j < count; ++j) {
                Dot::store_panel(at + (b * lanes + j) * group_size, groups[j]);
            }
        }
    }
}

/// See Product::pack_row.
template <class Dot, class Load>
void pack_row(const float* x, int64_t k, void* packed, bool by_sum) {
    auto* to = static_cast<typename Dot::Element*>(packed);
    constexpr int64_t step = lanes * Dot::group;
    constexpr int64_t piece = quads * Dot::group;  // elements of one sum in a vector
    const int64_t blocks = (k + step - 1) / step;
    for (int64_t b = 0; b < blocks; ++b) {
        const typename Dot::Panel v = Load::load(x + b * step, at_most(k - b * step, step));
        if (!by_sum) {
            Dot::store_panel(to + b * step, v);
            continue;
        }
        typename Dot::Element pieces[step];
        Dot::store_panel(pieces, Dot::by_sum(v));
#pragma GCC unroll 16
        for (int64_t sum = 0; sum < sums; ++sum) {
            __builtin_memcpy(to + (sum * blocks + b) * piece, pieces + sum * piece,
                             piece * sizeof(typename Dot::Element));
        }
    }
}

/// One step of dot_block: n elements (of at most a vector) of each row. The rows of a strip are
/// taken apart into quads and put together again as vectors of the same quad of all of them; the
/// quad of x is the same for all. w: the first row; from one to the next are `apart` elements.
template <class Dot, class Load, int rows, int strips>
inline __attribute__((always_inline)) void add_dots(const typename Dot::Element* x,
                                                    int64_t x_stride,
                                                    const typename Load::Element* w, int64_t apart,
                                                    int64_t n, Vec (&sum)[rows][strips]) {
    typename Dot::Panel weights[strips][quads];
#pragma GCC unroll 16
    for (int s = 0; s < strips; ++s) {
#pragma GCC unroll 16
        for (int q = 0; q < quads; ++q) weights[s][q] = Load::load(w + (s * quads + q) * apart, n);
        transpose_quads(weights[s]);
    }
#pragma GCC unroll 16
    for (int q = 0; q < quads; ++q) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const auto a = Dot::broadcast_quad(x + r * x_stride + q * sums * Dot::group);
#pragma GCC unroll 16
            for (int s = 0; s < strips; ++s) {
                sum[r][s] = Dot::multiply_add(a, weights[s][q], sum[r][s]);
            }
        }
    }
}

/// The sums of `rows` rows of x with strips * quads rows of w, over k columns: quad q of sum[r][s]
/// are those of row s * quads + q of w.
template <class Dot, class Load, int rows, int strips>
inline __attribute__((always_inline)) void dot_block(int64_t k, const typename Dot::Element* x,
                                                     int64_t x_stride,
                                                     const typename Load::Element* w, int64_t apart,
                                                     Vec (&sum)[rows][strips]) {
    constexpr int64_t step = lanes * Dot::group;
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
        for (int s = 0; s < strips; ++s) sum[r][s] = broadcast(0.0f);
    }
    int64_t i = 0;
    for (; k - i >= step; i += step) {
#pragma GCC unroll 16
        for (int j = 0; j < strips * quads; ++j) {
            prefetch(w + j * apart + i + prefetch_blocks * step);
        }
        add_dots<Dot, Load, rows, strips>(x + i, x_stride, w + i, apart, step, sum);
    }
    if (i < k) add_dots<Dot, Load, rows, strips>(x + i, x_stride, w + i, apart, k - i, sum);
}

/// Strips side by side for so many rows of x: two hide each other's waiting, if there are registers
/// for them; more would be more streams from memory than the processor follows.
constexpr int dot_strips(int rows) {
    return 2 * (rows + quads) + 1 <= registers ? 2 : 1;
}

/// A panel's rows of w are read as so many streams of neighbouring rows, one row of each at a time:
/// what fetches memory ahead follows a stream that is long and without gaps, and would begin anew
/// with every row if neighbours were read side by side.
constexpr int dot_streams = quads * dot_strips(few_rows_max);
constexpr int64_t dot_stream_rows = panel_vectors * lanes / dot_streams;
static_assert(dot_stream_rows * dot_streams == panel_vectors * lanes);

/// c (rows, dot_streams) = x w^T for a row of each stream; columns of c are dot_stream_rows apart.
template <class Dot, class Load, int rows>
void dot_streams_row(int64_t k, int64_t k_block, const typename Dot::Element* x, int64_t x_stride,
                     const typename Load::Element* w, int64_t w_stride, float* c,
                     int64_t c_stride) {
    constexpr int strips = dot_streams / quads;
    for (int64_t start = 0; start == 0 || start < k; start += k_block) {
        Vec sum[rows][strips];
        dot_block<Dot, Load, rows, strips>(at_most(k - start, k_block), x + start, x_stride,
                                           w + start, dot_stream_rows * w_stride, sum);
        for (int r = 0; r < rows; ++r) {
            float parts[dot_streams][sums];
            for (int s = 0; s < strips; ++s) F32::store(parts[s * quads], sum[r][s]);
            for (int j = 0; j < dot_streams; ++j) {
                float& to = c[r * c_stride + j * dot_stream_rows];
                float total = start > 0 ? to + parts[j][0] : parts[j][0];
                for (int64_t part = 1; part < sums; ++part) total += parts[j][part];
                to = total;
            }
        }
    }
}

/// Finds the products of this many rows of x.
template <class Dot, class Load, int rows = few_rows_max>
void choose_dot_streams_row(int64_t row_count, int64_t k, int64_t k_block,
                            const typename Dot::Element* x, int64_t x_stride,
                            const typename Load::Element* w, int64_t w_stride, float* c,
                            int64_t c_stride) {
    if (rows > 1 && row_count < rows) {
        choose_dot_streams_row<Dot, Load, (rows > 1 ? rows - 1 : 1)>(
            row_count, k, k_block, x, x_stride, w, w_stride, c, c_stride);
    } else {
        dot_streams_row<Dot, Load, rows>(k, k_block, x, x_stride, w, w_stride, c, c_stride);
    }
}

/// See Product::dot_rows.
template <class Dot, class Load>
void dot_rows(int64_t rows, int64_t k, int64_t k_block, const void* x, int64_t x_stride,
              const void* w, int64_t w_stride, float* c, int64_t c_stride) {
    const auto* from = static_cast<const typename Load::Element*>(w);
    for (int64_t i = 0; i < dot_stream_rows; ++i) {
        for (int64_t r = 0; r < rows; r += few_rows_max) {
            choose_dot_streams_row<Dot, Load>(
                rows - r, k, k_block, static_cast<const typename Dot::Element*>(x) + r * x_stride,
                x_stride, from + i * w_stride, w_stride, c + r * c_stride + i, c_stride);
        }
    }
}
