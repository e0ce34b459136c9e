// Matrix products of a table, written once over a multiply-add. Like cpu_leaves.h, which includes it, this file goes into the unnamed
// namespace and the target region of a table's source; and once more, where that has a second multiply-add of another target
// (a template is compiled for the target of the region that it is written in).
//
// Besides what cpu_leaves.h needs, its templates take
//
//     Dot    a multiply-add: Element, Panel (lanes groups), group, zero(), load_panel(p), store_panel(p, v), broadcast_x(p): one group
//            in all lanes, multiply_add(x, w, sum)
//     Load   Element, load(p, n): lanes groups of an element type as a Panel; only the first n elements exist, 0 follows

/// The register tile: rows x vectors accumulators, one pass over k. See Product::tile.
template <class Dot, int rows, int vectors>
void register_tile(int64_t k, const typename Dot::Element* x, int64_t x_stride, const typename Dot::Element* panel,
                   float* c, int64_t c_stride, bool accumulate) {
    Vec sum[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
            sum[r][v] = accumulate ? F32::load(c + r * c_stride + v * lanes) : broadcast(0.0f);
        }
    }
    for (int64_t i = 0; i < k; i += Dot::group) {
        typename Dot::Panel w[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) w[v] = Dot::load_panel(panel + v * lanes * Dot::group);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const typename Dot::Panel a = Dot::broadcast_x(x + r * x_stride + i);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) sum[r][v] = Dot::multiply_add(a, w[v], sum[r][v]);
        }
        panel += vectors * lanes * Dot::group;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) F32::store(c + r * c_stride + v * lanes, sum[r][v]);
    }
}

/// Finds the register tile of this many rows and vectors.
template <class Dot, int rows = tile_rows, int vectors = panel_vectors>
void choose_tile(int64_t row_count, int64_t vector_count, int64_t k, const typename Dot::Element* x,
                 int64_t x_stride, const typename Dot::Element* panel, float* c, int64_t c_stride, bool accumulate) {
    if (rows > 1 && row_count < rows) {
        choose_tile<Dot, (rows > 1 ? rows - 1 : 1), vectors>(row_count, vector_count, k, x, x_stride, panel, c,
                                                             c_stride, accumulate);
    } else if (vectors > 1 && vector_count < vectors) {
        choose_tile<Dot, rows, (vectors > 1 ? vectors - 1 : 1)>(row_count, vector_count, k, x, x_stride, panel, c,
                                                                c_stride, accumulate);
    } else {
        register_tile<Dot, rows, vectors>(k, x, x_stride, panel, c, c_stride, accumulate);
    }
}

template <class Dot>
void tile(int64_t rows, int64_t n, int64_t k, const void* x, int64_t x_stride, const void* panel, float* c,
          int64_t c_stride, bool accumulate) {
    using Element = typename Dot::Element;
    choose_tile<Dot>(rows, (n + lanes - 1) / lanes, k, static_cast<const Element*>(x), x_stride,
                     static_cast<const Element*>(panel), c, c_stride, accumulate);
}

/// Packs rows of w: blocks of lanes rows x lanes groups of k are transposed in registers. See Product::pack_rows.
template <class Dot, class Load>
void pack_rows(const void* w, int64_t stride, int64_t n, int64_t k, void* panel) {
    const auto* from = static_cast<const typename Load::Element*>(w);
    auto* to = static_cast<typename Dot::Element*>(panel);
    const int64_t width = round_up(n, lanes);
    const int64_t step = lanes * Dot::group;
    for (int64_t column = 0; column < n; column += lanes) {
        const int64_t columns = at_most(n - column, lanes);
        for (int64_t i = 0; i < k; i += step) {
            typename Dot::Panel block[lanes];
            for (int64_t j = 0; j < lanes; ++j) {
                if (j < columns) {
                    block[j] = Load::load(from + (column + j) * stride + i, k - i);
                } else {
                    block[j] = Dot::zero();
                }
            }
            transpose(block);
            const int64_t groups = at_most((k - i + Dot::group - 1) / Dot::group, lanes);
            for (int64_t j = 0; j < groups; ++j) {
                Dot::store_panel(to + (i + j * Dot::group) * width + column * Dot::group, block[j]);
            }
        }
    }
}

/// Takes lanes rows of w, lanes groups from `w` on of which the first n elements exist, transposed.
template <class Dot, class Load>
void load_transposed(const typename Load::Element* w, int64_t w_stride, int64_t n,
                     typename Dot::Panel (&block)[lanes]) {
#pragma GCC unroll 16
    for (int64_t j = 0; j < lanes; ++j) {
        block[j] = Load::load(w, n);
        w += w_stride;
    }
    transpose(block);
}

/// pack_rows and register_tile in one: each transposed block is multiplied from the registers. One vector of columns.
template <class Dot, class Load, int rows>
void few_rows_tile(int64_t k, const typename Dot::Element* x, int64_t x_stride, const typename Load::Element* w,
                   int64_t w_stride, float* c, int64_t c_stride) {
    const int64_t step = lanes * Dot::group;
    Vec sum[rows];
    typename Dot::Panel block[lanes];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) sum[r] = broadcast(0.0f);
    for (; k >= step; k -= step) {
        const typename Load::Element* ahead = w + prefetch_steps * step;
#pragma GCC unroll 16
        for (int64_t j = 0; j < lanes; ++j) {
            prefetch(ahead);
            ahead += w_stride;
        }
        load_transposed<Dot, Load>(w, w_stride, step, block);
#pragma GCC unroll 16
        for (int64_t j = 0; j < lanes; ++j) {
#pragma GCC unroll 16
            for (int r = 0; r < rows; ++r) {
                const auto a = Dot::broadcast_x(x + r * x_stride + j * Dot::group);
                sum[r] = Dot::multiply_add(a, block[j], sum[r]);
            }
        }
        w += step;
        x += step;
    }
    if (k > 0) {
        typename Dot::Panel rest[lanes];  // not `block`, which must stay in registers: this one is indexed
        load_transposed<Dot, Load>(w, w_stride, k, rest);
        for (int64_t j = 0; j * Dot::group < k; ++j) {
            for (int r = 0; r < rows; ++r) {
                const auto a = Dot::broadcast_x(x + r * x_stride + j * Dot::group);
                sum[r] = Dot::multiply_add(a, rest[j], sum[r]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) F32::store(c + r * c_stride, sum[r]);
}

/// Finds the tile of this many rows.
template <class Dot, class Load, int rows = few_rows_max>
void choose_few_rows(int64_t row_count, int64_t k, const typename Dot::Element* x, int64_t x_stride,
                     const typename Load::Element* w, int64_t w_stride, float* c, int64_t c_stride) {
    if (rows > 1 && row_count < rows) {
        choose_few_rows<Dot, Load, (rows > 1 ? rows - 1 : 1)>(row_count, k, x, x_stride, w, w_stride, c, c_stride);
    } else {
        few_rows_tile<Dot, Load, rows>(k, x, x_stride, w, w_stride, c, c_stride);
    }
}

/// See Product::few_rows.
template <class Dot, class Load>
void few_rows(int64_t rows, int64_t k, const void* x, int64_t x_stride, const void* w, int64_t w_stride, float* c,
              int64_t c_stride) {
    const auto* from = static_cast<const typename Load::Element*>(w);
    for (int64_t column = 0; column < panel_vectors * lanes; column += lanes) {
        choose_few_rows<Dot, Load>(rows, k, static_cast<const typename Dot::Element*>(x), x_stride,
                                   from + column * w_stride, w_stride, c + column, c_stride);
    }
}
