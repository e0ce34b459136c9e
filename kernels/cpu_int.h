// Products of integers of a table: weights in int8 or int4 with rows of x rounded to int8, written
// once over a vector of bytes. Like cpu_tile.h this goes into the unnamed namespace and the target
// region of a table's source. Besides what cpu_leaves.h needs, it expects
//
//     int_tile_rows             rows of x of the register tile
//     int_few_rows              rows of x that dot products go over at once
//     int_dot_width             rows of w that a call of dot products takes
//     int_most_dot_rows         rows of x up to which dot products are faster than tiles
//     Ints                      lanes int32, or 4 * lanes bytes
//     int_broadcast(a), int_add(a, b), int_store(p, v), int_load(p)
//     load_bytes(p), load_bytes_part(p, n)     4 * lanes bytes; the first n only, 0 behind
//     broadcast_bytes(p)        four bytes from p on, in every lane
//     low_nibbles(v), high_nibbles(v)          of every byte
//     to_floats(v)              int32 to float, lane by lane
//     low_pairs(a, b), high_pairs(a, b)        of each quad: a0 b0 a1 b1, and a2 b2 a3 b3
//     low_halves(a, b), high_halves(a, b)      of each quad: a0 a1 b0 b1, and a2 a3 b2 b3
//     transpose                 of Ints too
//     store_rounded(p, v)       lanes floats to the nearest whole numbers, ties to even, as int8
//     Int8Dot, NibbleDot        multiply-adds: offset, prepare(w), multiply_add(x, w, sum): every
//                               lane of sum += its four bytes of x (int8) times those of w (as
//                               prepared: offset has been added to them). most_adds: after so many
//                               (0: any number) a sum from 0 on must be taken: whole(sum) is its
//                               lanes as int32
//     WideWeights               what panels of int8 are made of: Int8Weights below, or another struct
//                               like it, whose numbers may be wider
//
// Order of columns. A unit is what a vector of weights holds: of int8 4 * lanes columns as they
// lie; of int4 8 * lanes columns, of which the even ones (low nibbles) come first in x and in
// panels, then the odd ones. Sums of integers are exact, so their order does not matter; a
// segment's sum becomes a float once it is whole, and those are added in order. Decoding and tiles
// give the same bits.

// ---- how weights and x are cut ----

/// Weights in int8: a unit is one vector.
struct Int8Weights {
    using Dot = Int8Dot;
    using Number = int8_t;             // of x, and of a panel of w
    static constexpr int vectors = 1;  // of x in a unit
    static constexpr int64_t unit = 4 * lanes;
    static constexpr int64_t unit_bytes = 4 * lanes;
    static constexpr int usual_units = 0;  // see add_stretch: too many to unroll
    static void load(const uint8_t* from, int64_t n, Ints (&w)[vectors]) {
        w[0] = Dot::prepare(n >= unit_bytes ? load_bytes(from) : load_bytes_part(from, n));
    }
};

/// Weights in int4: a vector of bytes gives one of even and one of odd columns.
struct NibbleWeights {
    using Dot = NibbleDot;
    using Number = int8_t;
    static constexpr int vectors = 2;
    static constexpr int64_t unit = 8 * lanes;
    static constexpr int64_t unit_bytes = 4 * lanes;
    static constexpr int usual_units = IntLayout::x_block / unit;
    static void load(const uint8_t* from, int64_t n, Ints (&w)[vectors]) {
        const Ints bytes = n >= unit_bytes ? load_bytes(from) : load_bytes_part(from, n);
        w[0] = low_nibbles(bytes);
        w[1] = high_nibbles(bytes);
    }
};

// ---- rows of x ----

/// Rounds n floats to int8 with a common scale. See reference::quantise.
inline float quantise_block(const float* x, int64_t n, int8_t* to) {
    Vec largest_so_far = broadcast(0.0f), poison = broadcast(0.0f);
    for (int64_t i = 0; i < n; i += lanes) {
        const Vec v = load<F32>(x + i, n - i);
        largest_so_far = largest(largest_so_far, largest(v, broadcast(0.0f) - v));
        poison = fma(v, broadcast(0.0f), poison);
    }
    float parts[lanes];
    F32::store(parts, largest_so_far);
    float most = 0.0f;
    for (const float part : parts) most = part > most ? part : most;
    const bool finite = sum_of_lanes(poison) == 0.0;
    const bool any = finite && most >= smallest_quantised;
    const Vec inverse = broadcast(any ? 127.0f / most : 0.0f);
    const auto scaled = [&](int64_t i) {
        return any ? load<F32>(x + i, n - i) * inverse : broadcast(0.0f);
    };
    int64_t i = 0;
    for (; n - i >= lanes; i += lanes) store_rounded(to + i, scaled(i));
    if (i < n) {
        int8_t rest[lanes];
        store_rounded(rest, scaled(i));
        __builtin_memcpy(to + i, rest, static_cast<size_t>(n - i));
    }
    if (!finite) return __builtin_nanf("");
    return any ? most / 127.0f : 0.0f;
}

/// The sum of n numbers; vectors are read whole, zeros standing behind the last number.
inline int32_t sum_of_numbers(const int8_t* numbers, int64_t n) {
    constexpr int64_t vector = 4 * lanes;
    constexpr int64_t strip = 8 * vector;
    static_assert(NibbleDot::most_adds == 0 || NibbleDot::most_adds >= 8);
    const int8_t ones_of_lane[4] = {1, 1, 1, 1};
    const Ints ones = broadcast_bytes(ones_of_lane);
    Ints sums_so_far = int_broadcast(0);
    for (int64_t begin = 0; begin < n; begin += strip) {
        Ints part = int_broadcast(0);
        for (int64_t i = begin; i < at_most(begin + strip, n); i += vector) {
            part = NibbleDot::multiply_add(load_bytes(numbers + i), ones, part);
        }
        sums_so_far = int_add(sums_so_far, NibbleDot::whole(part));
    }
    int32_t of_lanes[lanes], total = 0;
    int_store(of_lanes, sums_so_far);
    for (const int32_t of_lane : of_lanes) total += of_lane;
    return total;
}

/// The sums of the segments of k numbers, zeros standing behind the last in its vector.
inline void sum_segments(const int8_t* numbers, int64_t k, int64_t segment, int32_t* sums_of) {
    for (int64_t begin = 0; begin < k; begin += segment) {
        const int64_t n = at_most(segment, k - begin);
        int32_t& sum = sums_of[begin / segment];
        if (segment % (4 * lanes) == 0) {
            sum = sum_of_numbers(numbers + begin, n);
            continue;
        }
        sum = 0;
        for (int64_t i = begin; i < begin + n; ++i) sum += numbers[i];
    }
}

/// A row that meets weights in int8: its columns in order, zeros behind them.
template <class Number>
void quantise_whole_row(const float* x, const IntLayout& layout, Number* packed, float* scale,
                        int32_t* sums_of) {
    const int64_t k = layout.cols, width = round_up(k, Int8Weights::unit);
    // Numbers that are to be wider are made in the second half of their place, and widened from its
    // begin on: what is written stays behind what is still to be read.
    auto* numbers =
        reinterpret_cast<int8_t*>(packed) + width * (static_cast<int64_t>(sizeof(Number)) - 1);
    const float common = quantise_block(x, k, numbers);
    for (int64_t i = k; i < width; ++i) numbers[i] = 0;
    for (int64_t s = 0; s < layout.segments; ++s) scale[s] = common;
    sum_segments(numbers, k, layout.segment, sums_of);
    if constexpr (sizeof(Number) > 1) {
        for (int64_t i = 0; i < width; i += WideWeights::unit) {
            Ints wide[WideWeights::vectors];
            WideWeights::load(reinterpret_cast<const uint8_t*>(numbers) + i, WideWeights::unit,
                              wide);
            int_store(reinterpret_cast<int32_t*>(packed + i), wide[0]);
        }
    }
}

/// A row that meets weights in int4: in every unit the even columns, then the odd ones.
inline void quantise_blocks(const float* x, const IntLayout& layout, int8_t* packed, float* scale,
                            int32_t* sums_of) {
    const int64_t k = layout.cols;
    constexpr int64_t block = IntLayout::x_block;
    static_assert(block % NibbleWeights::unit == 0);
    const int64_t per_block = block / layout.segment;
    for (int64_t begin = 0; begin < k; begin += block) {
        int8_t numbers[block] = {};
        const int64_t n = at_most(k - begin, block);
        const float common = quantise_block(x + begin, n, numbers);
        const int64_t first = begin / layout.segment;
        for (int64_t s = 0; s < at_most(per_block, layout.segments - first); ++s) {
            scale[first + s] = common;
        }
        sum_segments(numbers, n, layout.segment, sums_of + first);
        for (int64_t unit = 0; unit < block; unit += NibbleWeights::unit) {
            int8_t* even = packed + begin + unit;
            int8_t* odd = even + NibbleWeights::unit / 2;
            for (int64_t i = 0; i < NibbleWeights::unit / 2; ++i) {
                even[i] = numbers[unit + 2 * i];
                odd[i] = numbers[unit + 2 * i + 1];
            }
        }
    }
}

/// See IntProduct::quantise_row.
inline void quantise_row(const float* x, const IntLayout& layout, bool for_tile, void* packed,
                         float* scale, int32_t* sums_of) {
    if (layout.nibbles) {
        quantise_blocks(x, layout, static_cast<int8_t*>(packed), scale, sums_of);
    } else if (for_tile) {
        using Number = WideWeights::Number;
        quantise_whole_row(x, layout, static_cast<Number*>(packed), scale, sums_of);
    } else {
        quantise_whole_row(x, layout, static_cast<int8_t*>(packed), scale, sums_of);
    }
}

// ---- scales ----

/// See IntProduct::pack_scales: a panel of floats has just this order.
inline void pack_scales(const void* scale, DType dtype, int64_t stride, int64_t n, int64_t groups,
                        float* to) {
    pack_rows_of<FloatFactors<false>>(scale, dtype, stride, n, groups, to, false);
}

/// What one segment adds to a vector of sums: (whole - zero * x_sum) * w_scale * x_scale.
inline Vec add_segment(Vec c, Ints whole, const float* w_zero, float x_sum, const float* w_scale,
                       float x_scale) {
    Vec value = to_floats(whole);
    if (w_zero != nullptr) {
        value = fma(broadcast(0.0f) - F32::load(w_zero), broadcast(x_sum), value);
    }
    return fma(value, F32::load(w_scale) * broadcast(x_scale), c);
}

// ---- many rows: panels and tiles ----

/// See IntProduct::pack_panel.
template <class Weights>
void pack_int_panel(const uint8_t* w, int64_t row_bytes, int64_t n, int64_t bytes, int8_t* panel) {
    const int64_t group_bytes = 4 * round_up(n, lanes);  // of one group of all columns
    const int64_t units = pieces(bytes, Weights::unit_bytes);
    for (int64_t column = 0; column < n; column += lanes) {
        for (int64_t u = 0; u < units; ++u) {
            Ints groups[Weights::vectors][lanes];
            const int64_t left = bytes - u * Weights::unit_bytes;
            for (int64_t j = 0; j < lanes; ++j) {
                const int64_t row = at_most(column + j, n - 1);
                Ints one[Weights::vectors];
                Weights::load(w + row * row_bytes + u * Weights::unit_bytes, left, one);
                for (int v = 0; v < Weights::vectors; ++v) groups[v][j] = one[v];
            }
            for (int v = 0; v < Weights::vectors; ++v) {
                transpose(groups[v]);
                int8_t* to = panel + (u * Weights::vectors + v) * lanes * group_bytes + 4 * column;
#pragma GCC unroll 16
                for (int64_t j = 0; j < lanes; ++j) {
                    int_store(reinterpret_cast<int32_t*>(to + j * group_bytes), groups[v][j]);
                }
            }
        }
    }
}

/// Columns of a group: those of a lane, four bytes of x and of w.
template <class Weights>
constexpr int64_t group_columns = 4 / static_cast<int64_t>(sizeof(typename Weights::Number));

/// The groups of columns of one segment: `runs` runs of `count` groups, `distance` apart.
struct SegmentRuns {
    int64_t runs, count, distance;
};

template <class Weights>
SegmentRuns runs_of(int64_t segment) {
    const int64_t groups = segment / group_columns<Weights>;
    if (Weights::vectors == 1 || segment % Weights::unit == 0) return {1, groups, 0};
    return {Weights::vectors, groups / Weights::vectors, lanes};
}

/// Where the first group of a segment stands.
template <class Weights>
int64_t first_group(int64_t segment, int64_t s) {
    const int64_t column = s * segment;
    return (column / Weights::unit * Weights::unit + column % Weights::unit / Weights::vectors) /
           group_columns<Weights>;
}

/// sum += the products of `groups` groups of `rows` rows of x and of a panel of `vectors` vectors.
template <class Dot, int rows, int vectors>
inline __attribute__((always_inline)) void add_groups(int64_t groups, const int8_t* x,
                                                      int64_t x_stride, const int8_t* panel,
                                                      Ints (&sum)[rows][vectors]) {
    for (int64_t j = 0; j < groups; ++j) {
        Ints w[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) w[v] = load_bytes(panel + v * 4 * lanes);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const Ints numbers = broadcast_bytes(x + r * x_stride + 4 * j);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) {
                sum[r][v] = Dot::multiply_add(numbers, w[v], sum[r][v]);
            }
        }
        panel += 4 * vectors * lanes;
    }
}

/// The same with sums that hold only so many multiply-adds.
template <class Dot, int rows, int vectors>
inline __attribute__((always_inline)) void add_in_strips(int64_t groups, const int8_t* x,
                                                         int64_t x_stride, const int8_t* panel,
                                                         Ints (&sum)[rows][vectors]) {
    for (int64_t begin = 0; begin < groups; begin += Dot::most_adds) {
        Ints part[rows][vectors];
#pragma GCC unroll 16
        for (int i = 0; i < rows * vectors; ++i) part[i / vectors][i % vectors] = int_broadcast(0);
        add_groups<Dot>(at_most(groups - begin, Dot::most_adds), x + 4 * begin, x_stride,
                        panel + begin * 4 * vectors * lanes, part);
#pragma GCC unroll 16
        for (int i = 0; i < rows * vectors; ++i) {
            Ints& to = sum[i / vectors][i % vectors];
            to = int_add(to, Dot::whole(part[i / vectors][i % vectors]));
        }
    }
}

/// rows x vectors sums of integers over the segments of a panel, each added to c as it is whole.
template <class Weights, int rows, int vectors>
void int_register_tile(const IntTile& t, int64_t width) {
    using Dot = typename Weights::Dot;
    const SegmentRuns runs = runs_of<Weights>(t.layout->segment);
    const int64_t groups_in_all = round_up(t.cols, Weights::unit) / group_columns<Weights>;
    int64_t group = t.first_segment / t.layout->segments_per_group;
    int64_t left_of_group = (group + 1) * t.layout->segments_per_group - t.first_segment;
    for (int64_t s = 0; s < pieces(t.cols, t.layout->segment); ++s) {
        Ints sum[rows][vectors];
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const Ints start =
                int_broadcast(-t.offset * t.x_sum[r * t.layout->segments + t.first_segment + s]);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) sum[r][v] = start;
        }
        const int64_t first = first_group<Weights>(t.layout->segment, s);
        for (int64_t run = 0; run < runs.runs; ++run) {
            const int64_t begin = first + run * runs.distance;
            const int64_t end = at_most(begin + runs.count, groups_in_all);
            const int8_t* x = t.x + 4 * begin;
            const int8_t* panel = t.panel + begin * 4 * width;
            if constexpr (Dot::most_adds == 0) {
                add_groups<Dot>(end - begin, x, t.x_stride, panel, sum);
            } else {
                add_in_strips<Dot>(end - begin, x, t.x_stride, panel, sum);
            }
        }
        const int64_t at = t.first_segment + s;
        const bool add = t.accumulate || s > 0;
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const int64_t place = r * t.layout->segments + at;
            const auto x_sum = static_cast<float>(t.x_sum[place]);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) {
                float* c = t.c + r * t.c_stride + v * lanes;
                const float* zero =
                    t.w_zero != nullptr ? t.w_zero + group * width + v * lanes : nullptr;
                const Vec before = add ? F32::load(c) : broadcast(0.0f);
                F32::store(c, add_segment(before, sum[r][v], zero, x_sum,
                                          t.w_scale + group * width + v * lanes, t.x_scale[place]));
            }
        }
        if (--left_of_group == 0) {
            ++group;
            left_of_group = t.layout->segments_per_group;
        }
    }
}

/// Finds the register tile of this many rows and vectors.
template <class Weights, int rows = int_tile_rows, int vectors = panel_vectors>
void choose_int_tile(int64_t vector_count, const IntTile& t) {
    if (rows > 1 && t.rows < rows) {
        choose_int_tile<Weights, (rows > 1 ? rows - 1 : 1), vectors>(vector_count, t);
    } else if (vectors > 1 && vector_count < vectors) {
        choose_int_tile<Weights, rows, (vectors > 1 ? vectors - 1 : 1)>(vector_count, t);
    } else {
        int_register_tile<Weights, rows, vectors>(t, vectors * lanes);
    }
}

inline void int_tile(const IntTile& t) {
    const int64_t vectors = pieces(t.columns, lanes);
    if (t.layout->nibbles) {
        choose_int_tile<NibbleWeights>(vectors, t);
    } else {
        choose_int_tile<WideWeights>(vectors, t);
    }
}

// ---- few rows: weights as they lie ----

/// How far ahead rows are asked for.
constexpr int64_t int_prefetch_bytes = 512;

/// Rows of w are read as so many streams, like those of cpu_tile.h (dot_streams).
constexpr int int_streams = 4;
constexpr int64_t int_stream_rows = int_dot_width / int_streams;
static_assert(int_stream_rows % lanes == 0);

/// The sum of each of four vectors of sums, quad by quad: quad q of the result holds the sums of
/// quad q of w0, w1, w2, w3.
inline Ints sums_by_quad(const Ints (&w)[4]) {
    const Ints first = int_add(low_pairs(w[0], w[1]), high_pairs(w[0], w[1]));
    const Ints second = int_add(low_pairs(w[2], w[3]), high_pairs(w[2], w[3]));
    return int_add(low_halves(first, second), high_halves(first, second));
}

/// Adds the products of one unit of four rows of w: `left` bytes of them exist.
template <class Weights, int rows>
inline __attribute__((always_inline)) void add_unit(const uint8_t* const (&w)[int_streams],
                                                    int64_t at, int64_t left, const int8_t* x,
                                                    int64_t x_stride,
                                                    Ints (&sum)[rows][int_streams]) {
    Ints weights[int_streams][Weights::vectors];
#pragma GCC unroll 16
    for (int j = 0; j < int_streams; ++j) Weights::load(w[j] + at, left, weights[j]);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < Weights::vectors; ++v) {
            const Ints numbers = load_bytes(x + r * x_stride + v * 4 * lanes);
#pragma GCC unroll 16
            for (int j = 0; j < int_streams; ++j) {
                sum[r][j] = Weights::Dot::multiply_add(numbers, weights[j][v], sum[r][j]);
            }
        }
    }
}

/// Adds the products of the bytes [begin, end) of four rows of w.
template <class Weights, int rows>
inline __attribute__((always_inline)) void add_stretch(const uint8_t* const (&w)[int_streams],
                                                       int64_t begin, int64_t end, const int8_t* x,
                                                       int64_t x_stride,
                                                       Ints (&sum)[rows][int_streams]) {
    const auto ask_ahead = [&](int64_t at) {
#pragma GCC unroll 16
        for (int j = 0; j < int_streams; ++j) prefetch(w[j] + at + int_prefetch_bytes);
    };
    constexpr int64_t unit_bytes = Weights::unit_bytes;
    int64_t at = begin;
    if (end - begin == Weights::usual_units * unit_bytes) {  // unrolled: they are few
        ask_ahead(at);
#pragma GCC unroll 16
        for (int u = 0; u < Weights::usual_units; ++u) {
            add_unit<Weights, rows>(w, at, unit_bytes, x, x_stride, sum);
            at += unit_bytes;
            x += Weights::unit;
        }
        return;
    }
    for (; end - at >= unit_bytes; at += unit_bytes) {
        ask_ahead(at);
        add_unit<Weights, rows>(w, at, unit_bytes, x, x_stride, sum);
        x += Weights::unit;
    }
    if (at < end) add_unit<Weights, rows>(w, at, end - at, x, x_stride, sum);
}

/// Stretches of units whose sums stand for themselves, and how many quads make a segment.
template <class Weights>
struct Stretches {
    int64_t units_together, count, quads_per_segment;

    explicit Stretches(const IntLayout& layout) {
        units_together = layout.segment >= Weights::unit ? layout.segment / Weights::unit : 1;
        count = pieces(pieces(layout.cols, Weights::unit), units_together);
        const int64_t columns = units_together * Weights::unit;
        quads_per_segment = layout.segment >= columns ? quads : layout.segment * quads / columns;
    }
};

/// Four rows of w, one of each stream, times `rows` rows of x, unit after unit; after each stretch
/// the sums are stored: store_to (rows, stretches, quads, streams), rows `apart` numbers apart.
template <class Weights, int rows>
void dot_four(const IntDots& d, int64_t row, const uint8_t* const (&w)[int_streams],
              int64_t units_together, int32_t* store_to, int64_t apart) {
    using Dot = typename Weights::Dot;
    // A lane adds so many times in a segment, after which its sum is taken.
    static_assert(Dot::most_adds == 0 || IntLayout::x_block / (4 * lanes) <= Dot::most_adds);
    const uint8_t* const from[int_streams] = {w[0], w[1], w[2], w[3]};  // stay in registers
    const int64_t stretch = units_together * Weights::unit_bytes;
    const int8_t* x = d.x + row * d.x_stride;
    for (int64_t begin = 0; begin < d.row_bytes; begin += stretch) {
        Ints sum[rows][int_streams];
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
            for (int j = 0; j < int_streams; ++j) sum[r][j] = int_broadcast(0);
        }
        add_stretch<Weights, rows>(from, begin, at_most(begin + stretch, d.row_bytes), x,
                                   d.x_stride, sum);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
            for (int j = 0; j < int_streams; ++j) sum[r][j] = Dot::whole(sum[r][j]);
            int_store(store_to + r * apart, sums_by_quad(sum[r]));
        }
        store_to += lanes;
        x += units_together * Weights::unit;
    }
}

/// Finds the dot products of this many rows of x.
template <class Weights, int rows = int_few_rows>
void choose_dot_four(int64_t row_count, const IntDots& d, int64_t row,
                     const uint8_t* const (&w)[int_streams], int64_t units_together,
                     int32_t* store_to, int64_t apart) {
    if (rows > 1 && row_count < rows) {
        choose_dot_four<Weights, (rows > 1 ? rows - 1 : 1)>(row_count, d, row, w, units_together,
                                                            store_to, apart);
    } else {
        dot_four<Weights, rows>(d, row, w, units_together, store_to, apart);
    }
}

/// From the stored sums of a row of x with lanes rows of each stream, stored (lanes, stretches,
/// quads, streams), to c: what stands side by side becomes vectors of the same quad and stream. A
/// segment is one quad or several. column: the first stream's first row of w.
template <class Weights>
void finish_dots(const IntDots& d, const Stretches<Weights>& stretches, int64_t row, int64_t column,
                 const int32_t* stored) {
    const int64_t segments = d.layout->segments;
    int64_t column_of[int_streams];  // where a stream has no rows, those of the last ones
    for (int64_t j = 0; j < int_streams; ++j) {
        column_of[j] = at_most(column + j * int_stream_rows, round_up(d.columns, lanes) - lanes);
    }
    Vec total[int_streams];
    Ints whole[int_streams];
#pragma GCC unroll 16
    for (int j = 0; j < int_streams; ++j) {
        total[j] = broadcast(0.0f);
        whole[j] = int_broadcast(0);
    }
    int64_t segment = 0, group = 0, quad = 0;
    int64_t left_of_group = d.layout->segments_per_group;
    const auto finish_segment = [&] {
        const int64_t place = row * segments + segment;
        const Ints correction = int_broadcast(-d.offset * d.x_sum[place]);
        const auto x_sum = static_cast<float>(d.x_sum[place]);
#pragma GCC unroll 16
        for (int j = 0; j < int_streams; ++j) {
            const int64_t at = group * d.width + column_of[j];
            total[j] = add_segment(total[j], int_add(whole[j], correction),
                                   d.w_zero != nullptr ? d.w_zero + at : nullptr, x_sum,
                                   d.w_scale + at, d.x_scale[place]);
            whole[j] = int_broadcast(0);
        }
        quad = 0;
        ++segment;
        if (--left_of_group > 0) return;
        ++group;
        left_of_group = d.layout->segments_per_group;
    };
    for (int64_t stretch = 0; stretch < stretches.count; ++stretch) {
        Ints part[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
            part[i] = int_load(stored + (i * stretches.count + stretch) * lanes);
        }
        transpose(part);
#pragma GCC unroll 16
        for (int q = 0; q < quads; ++q) {
            if (segment == segments) break;  // quads behind the last column
#pragma GCC unroll 16
            for (int j = 0; j < int_streams; ++j) {
                whole[j] = int_add(whole[j], part[q * int_streams + j]);
            }
            if (++quad == stretches.quads_per_segment) finish_segment();
        }
    }
    float* c = d.c + row * d.c_stride;
    for (int64_t j = 0; j < int_streams; ++j) {
        const int64_t at = column + j * int_stream_rows;
        if (at < d.columns) F32::store(c + at, total[j]);
    }
}

/// See IntProduct::dots.
template <class Weights>
void int_dot_rows(const IntDots& d) {
    const Stretches<Weights> stretches(*d.layout);
    const int64_t sums_of_four = stretches.count * lanes;
    const int64_t sums_of_row = sums_of_four * lanes;
    for (int64_t column = 0; column < at_most(int_stream_rows, d.columns); column += lanes) {
        for (int64_t i = 0; i < lanes; ++i) {
            const uint8_t* w[int_streams];
            for (int64_t j = 0; j < int_streams; ++j) {
                // Where rows are missing, the last one stands in; its sums are not used.
                const int64_t row = at_most(column + i + j * int_stream_rows, d.columns - 1);
                w[j] = d.w + row * d.row_bytes;
            }
            for (int64_t r = 0; r < d.rows; r += int_few_rows) {
                choose_dot_four<Weights>(d.rows - r, d, r, w, stretches.units_together,
                                         d.sums + r * sums_of_row + i * sums_of_four, sums_of_row);
            }
        }
        for (int64_t r = 0; r < d.rows; ++r) {
            finish_dots(d, stretches, r, column, d.sums + r * sums_of_row);
        }
    }
}

inline void int_dots(const IntDots& d) {
    if (d.layout->nibbles) {
        int_dot_rows<NibbleWeights>(d);
    } else {
        int_dot_rows<Int8Weights>(d);
    }
}

inline void pack_panel(bool nibbles, const void* w, int64_t row_bytes, int64_t n, int64_t bytes,
                       int8_t* panel) {
    const auto* from = static_cast<const uint8_t*>(w);
    if (nibbles) {
        pack_int_panel<NibbleWeights>(from, row_bytes, n, bytes, panel);
    } else {
        pack_int_panel<WideWeights>(from, row_bytes, n, bytes, panel);
    }
}

/// The products of integers of this file.
inline IntProduct make_int_product() {
    IntProduct product{};
    product.tile_rows = int_tile_rows;
    product.panel_width = panel_vectors * lanes;
    product.lanes = lanes;
    product.dot_width = int_dot_width;
    product.most_dot_rows = int_most_dot_rows;
    product.int8_offset = Int8Dot::offset;
    product.int8_tile_bytes = sizeof(WideWeights::Number);
    product.quantise_row = quantise_row;
    product.pack_scales = pack_scales;
    product.pack_panel = pack_panel;
    product.tile = int_tile;
    product.dots = int_dots;
    return product;
}
