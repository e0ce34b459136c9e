// Matrix products of a table, written once over a multiply-add. Like cpu_leaves.h, which includes
// it, this file goes into the unnamed namespace and the target region of a table's source; and once
// more, where that has a second multiply-add of another target (a template is compiled for the
// target of the region that it is written in).
//
// Besides what cpu_leaves.h needs, its templates take
//
//     Dot    a multiply-add: Element, Panel (lanes groups), group, zero(), load_panel(p),
//            store_panel(p, v), broadcast_x(p): one group in all lanes, multiply_add(x, w, sum)
//     Load   Element, load(p, n): lanes groups of an element type as a Panel; only the first n
//            elements exist, 0 follows

/// The register tile: rows x vectors accumulators, one pass over k. See Product::tile.
template <class Dot, int rows, int vectors>
void register_tile(int64_t k, const typename Dot::Element* x, int64_t x_stride,
                   const typename Dot::Element* panel, float* c, int64_t c_stride,
                   bool accumulate) {
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
                 int64_t x_stride, const typename Dot::Element* panel, float* c, int64_t c_stride,
                 bool accumulate) {
    if (rows > 1 && row_count < rows) {
        choose_tile<Dot, (rows > 1 ? rows - 1 : 1), vectors>(
            row_count, vector_count, k, x, x_stride, panel, c, c_stride, accumulate);
    } else if (vectors > 1 && vector_count < vectors) {
        choose_tile<Dot, rows, (vectors > 1 ? vectors - 1 : 1)>(
            row_count, vector_count, k, x, x_stride, panel, c, c_stride, accumulate);
    } else {
        register_tile<Dot, rows, vectors>(k, x, x_stride, panel, c, c_stride, accumulate);
    }
}

template <class Dot>
void tile(int64_t rows, int64_t n, int64_t k, const void* x, int64_t x_stride, const void* panel,
          float* c, int64_t c_stride, bool accumulate) {
    using Element = typename Dot::Element;
    choose_tile<Dot>(rows, (n + lanes - 1) / lanes, k, static_cast<const Element*>(x), x_stride,
                     static_cast<const Element*>(panel), c, c_stride, accumulate);
}

/// A strip of w on its way into registers: lanes rows, several blocks of lanes groups of each,
/// block by block. Rows of w often lie a multiple of 4096 bytes apart, where the lines of all rows
/// compete for the same few places of the first-level cache; so each row is read in one go for
/// several blocks, before its neighbours displace it.
template <class Dot>
struct Strip {
    static constexpr int64_t blocks = 4;
    static constexpr int64_t step = lanes * Dot::group;  // elements of a row in one block
    typename Dot::Panel rows[blocks][lanes];

    /// Takes the first n elements of `row_count` rows, or as many as the blocks hold; 0 elsewhere
    /// in the blocks that hold any.
    template <class Load>
    void read(const typename Load::Element* w, int64_t stride, int64_t row_count, int64_t n) {
        n = at_most(n, blocks * step);
        for (int64_t j = 0; j < lanes; ++j) {
            if (j < row_count && n == blocks * step) {
#pragma GCC unroll 4
                for (int64_t b = 0; b < blocks; ++b) rows[b][j] = Load::load(w + b * step, step);
#pragma GCC unroll 4
                for (int64_t b = 0; b < blocks; ++b) prefetch(w + (prefetch_blocks + b) * step);
            } else {
                for (int64_t b = 0; b < blocks && b * step < n; ++b) {
                    rows[b][j] =
                        j < row_count ? Load::load(w + b * step, n - b * step) : Dot::zero();
                }
            }
            w += stride;
        }
    }

    /// Block b, transposed: group by group, lanes rows of w each.
    void transposed(int64_t b, typename Dot::Panel (&groups)[lanes]) const {
#pragma GCC unroll 16
        for (int64_t j = 0; j < lanes; ++j) groups[j] = rows[b][j];
        transpose(groups);
    }
};

/// See Product::pack_rows.
template <class Dot, class Load>
void pack_rows(const void* w, int64_t stride, int64_t n, int64_t k, void* panel) {
    const auto* from = static_cast<const typename Load::Element*>(w);
    auto* to = static_cast<typename Dot::Element*>(panel);
    const int64_t width = round_up(n, lanes);
    const int64_t step = Strip<Dot>::step;
    Strip<Dot> strip;
    for (int64_t column = 0; column < n; column += lanes) {
        for (int64_t i = 0; i < k; i += step) {
            const int64_t b = i / step % Strip<Dot>::blocks;
            if (b == 0)
                strip.template read<Load>(from + column * stride + i, stride, n - column, k - i);
            typename Dot::Panel groups[lanes];
            strip.transposed(b, groups);
            const int64_t count = at_most((k - i + Dot::group - 1) / Dot::group, lanes);
            for (int64_t j = 0; j < count; ++j) {
                Dot::store_panel(to + (i + j * Dot::group) * width + column * Dot::group,
                                 groups[j]);
            }
        }
    }
}

/// pack_rows and register_tile in one: each transposed block is multiplied from the registers. One
/// vector of columns.
template <class Dot, class Load, int rows>
void few_rows_tile(int64_t k, const typename Dot::Element* x, int64_t x_stride,
                   const typename Load::Element* w, int64_t w_stride, float* c, int64_t c_stride) {
    const int64_t step = Strip<Dot>::step;
    Strip<Dot> strip;
    Vec sum[rows];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) sum[r] = broadcast(0.0f);
    int64_t i = 0;
    for (; k - i >= step; i += step) {
        const int64_t b = i / step % Strip<Dot>::blocks;
        if (b == 0) strip.template read<Load>(w + i, w_stride, lanes, k - i);
        typename Dot::Panel groups[lanes];
        strip.transposed(b, groups);
#pragma GCC unroll 16
        for (int64_t j = 0; j < lanes; ++j) {
#pragma GCC unroll 16
            for (int r = 0; r < rows; ++r) {
                const auto a = Dot::broadcast_x(x + r * x_stride + i + j * Dot::group);
                sum[r] = Dot::multiply_add(a, groups[j], sum[r]);
            }
        }
    }
    if (i < k) {
        const int64_t b = i / step % Strip<Dot>::blocks;
        if (b == 0) strip.template read<Load>(w + i, w_stride, lanes, k - i);
        typename Dot::Panel
            groups[lanes];  // indexed by a variable, so in memory; those above stay in registers
        strip.transposed(b, groups);
        for (int64_t j = 0; j * Dot::group < k - i; ++j) {
            for (int r = 0; r < rows; ++r) {
                const auto a = Dot::broadcast_x(x + r * x_stride + i + j * Dot::group);
                sum[r] = Dot::multiply_add(a, groups[j], sum[r]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) F32::store(c + r * c_stride, sum[r]);
}

/// Finds the tile of this many rows.
template <class Dot, class Load, int rows = few_rows_max>
void choose_few_rows(int64_t row_count, int64_t k, const typename Dot::Element* x, int64_t x_stride,
                     const typename Load::Element* w, int64_t w_stride, float* c,
                     int64_t c_stride) {
    if (rows > 1 && row_count < rows) {
        choose_few_rows<Dot, Load, (rows > 1 ? rows - 1 : 1)>(row_count, k, x, x_stride, w,
                                                              w_stride, c, c_stride);
    } else {
        few_rows_tile<Dot, Load, rows>(k, x, x_stride, w, w_stride, c, c_stride);
    }
}

/// See Product::few_rows.
template <class Dot, class Load>
void few_rows(int64_t rows, int64_t k, const void* x, int64_t x_stride, const void* w,
              int64_t w_stride, float* c, int64_t c_stride) {
    const auto* from = static_cast<const typename Load::Element*>(w);
    for (int64_t column = 0; column < panel_vectors * lanes; column += lanes) {
        choose_few_rows<Dot, Load>(rows, k, static_cast<const typename Dot::Element*>(x), x_stride,
                                   from + column * w_stride, w_stride, c + column, c_stride);
    }
}
