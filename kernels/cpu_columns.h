// Products with matrices that lie in units (kv_layout.h): attention's keys and values. Like
// cpu_tile.h, behind which it stands, this file goes into the unnamed namespace and the target
// region of a table's source, once for each multiply-add. Its templates take
//
//     Dot    a multiply-add, see cpu_tile.h
//     Units  how it takes units of an element type: depth, rows of the matrix that are loaded at a
//            time; load(p, stride, k, groups): from lanes columns of units from p on, unit rows
//            `stride` bytes apart, the depth / Dot::group groups of those rows; only the first k of
//            them exist, and unit rows of which none exists are not read. The last group is 0
//            behind k, those behind it are undefined.

/// See Product::pack_columns.
template <class Dot, class Units>
void pack_columns(const UnitMatrix& w, int64_t k, int64_t n, void* panel) {
    constexpr int groups = Units::depth / Dot::group;
    const auto* from = static_cast<const std::byte*>(w.units);
    auto* to = static_cast<typename Dot::Element*>(panel);
    const int64_t row_bytes = w.stride * KvLayout::unit_bytes;
    const int64_t group_size = round_up(n, lanes) * Dot::group;  // elements
    for (int64_t i = 0; i < k; i += Units::depth) {
        const std::byte* row = from + i / Units::depth * Units::unit_rows * row_bytes;
        for (int64_t column = 0; column < n; column += lanes) {
            typename Dot::Panel loaded[groups];
            Units::load(row + column * KvLayout::unit_bytes, row_bytes, k - i, loaded);
            for (int g = 0; g < groups && i + g * Dot::group < k; ++g) {
                Dot::store_panel(to + g * group_size + column * Dot::group, loaded[g]);
            }
        }
        to += groups * group_size;
    }
}

/// pack_columns and register_tile in one: each group is multiplied as it is loaded.
template <class Dot, class Units, int rows, int vectors>
void few_columns_tile(int64_t k, const typename Dot::Element* x, int64_t x_stride,
                      const std::byte* units, int64_t row_bytes, float* c, int64_t c_stride,
                      bool go_on) {
    constexpr int groups = Units::depth / Dot::group;
    Vec sum[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
            sum[r][v] = go_on ? F32::load(c + r * c_stride + v * lanes) : broadcast(0.0f);
        }
    }
    int64_t i = 0;
    for (; k - i >= Units::depth; i += Units::depth) {
        prefetch(units + prefetch_blocks * lanes * KvLayout::unit_bytes);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
            typename Dot::Panel w[groups];
            Units::load(units + v * lanes * KvLayout::unit_bytes, row_bytes, Units::depth, w);
#pragma GCC unroll 16
            for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 16
                for (int r = 0; r < rows; ++r) {
                    const auto a = Dot::broadcast_x(x + r * x_stride + i + g * Dot::group);
                    sum[r][v] = Dot::multiply_add(a, w[g], sum[r][v]);
                }
            }
        }
        units += Units::unit_rows * row_bytes;
    }
#pragma GCC unroll 16
    for (int v = 0; v < vectors && i < k; ++v) {
        typename Dot::Panel w[groups];
        Units::load(units + v * lanes * KvLayout::unit_bytes, row_bytes, k - i, w);
#pragma GCC unroll 16
        for (int g = 0; g < groups; ++g) {
            if (i + g * Dot::group >= k) break;
#pragma GCC unroll 16
            for (int r = 0; r < rows; ++r) {
                const auto a = Dot::broadcast_x(x + r * x_stride + i + g * Dot::group);
                sum[r][v] = Dot::multiply_add(a, w[g], sum[r][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) F32::store(c + r * c_stride + v * lanes, sum[r][v]);
    }
}

/// Finds the tile of this many rows and columns.
template <class Dot, class Units, int rows, int vectors>
void choose_few_columns(int64_t row_count, int64_t k, int64_t n, const typename Dot::Element* x,
                        int64_t x_stride, const std::byte* units, int64_t row_bytes, float* c,
                        int64_t c_stride, bool go_on) {
    if (rows > 1 && row_count < rows) {
        choose_few_columns<Dot, Units, (rows > 1 ? rows - 1 : 1), vectors>(
            row_count, k, n, x, x_stride, units, row_bytes, c, c_stride, go_on);
    } else if (vectors > 1 && n <= (vectors - 1) * lanes) {
        choose_few_columns<Dot, Units, rows, (vectors > 1 ? vectors - 1 : 1)>(
            row_count, k, n, x, x_stride, units, row_bytes, c, c_stride, go_on);
    } else {
        few_columns_tile<Dot, Units, rows, vectors>(k, x, x_stride, units, row_bytes, c, c_stride,
                                                    go_on);
    }
}

/// Strips of `vectors` vectors of columns, for at most `rows` rows.
template <class Dot, class Units, int rows, int vectors>
void few_columns_strips(int64_t row_count, int64_t k, int64_t n, const void* x, int64_t x_stride,
                        const UnitMatrix& w, float* c, int64_t c_stride, bool go_on) {
    const auto* factors = static_cast<const typename Dot::Element*>(x);
    const auto* units = static_cast<const std::byte*>(w.units);
    for (int64_t column = 0; column < n; column += vectors * lanes) {
        choose_few_columns<Dot, Units, rows, vectors>(
            row_count, k, at_most(n - column, vectors * lanes), factors, x_stride,
            units + column * KvLayout::unit_bytes, w.stride * KvLayout::unit_bytes, c + column,
            c_stride, go_on);
    }
}

/// See Product::few_columns. The fewer the rows, the more columns there are registers for.
template <class Dot, class Units>
void few_columns(int64_t rows, int64_t k, int64_t n, const void* x, int64_t x_stride,
                 const UnitMatrix& w, float* c, int64_t c_stride, bool go_on) {
    if (rows <= few_rows_max / 2) {
        few_columns_strips<Dot, Units, few_rows_max / 2, few_columns_vectors>(
            rows, k, n, x, x_stride, w, c, c_stride, go_on);
    } else {
        few_columns_strips<Dot, Units, few_rows_max, few_columns_vectors / 2>(
            rows, k, n, x, x_stride, w, c, c_stride, go_on);
    }
}
