// Coded weights to numbers, a panel at a time: decode_row of decode.h over a vector of floats, the
// same to the bit. Like cpu_leaves.h this goes into the unnamed namespace and the target region of a
// table's source. Besides what that needs, it expects
//
//     Ints                      lanes int32
//     to_floats(v)              int32 to float, lane by lane
//     widen_int8(p)             lanes int8 to int32
//     widen_f8(p)               lanes F8_E4M3 to float
//     nibbles<high_first>(p)    lanes neighbouring nibbles from byte p on, as int32
//     look_up(table, v)         of 16 floats
//     gather(table, v)          of any floats
//     int_load, int_store, transpose           of Ints, as for cpu_int.h
//     NibbleTable<To>, F8Times<To>             specialised where there is something faster
//
// What does not fit whole vectors goes the plain way.

/// Writes value(i), of lanes columns from i on, as long as there are so many of n; returns how many
/// columns that were.
template <class To, class Value>
int64_t write_vectors(int64_t n, typename To::Element* to, const Value& value) {
    int64_t i = 0;
    for (; n - i >= lanes; i += lanes) To::store(to + i, value(i));
    return i;
}

/// Sixteen numbers made ready to be chosen from by `step` neighbouring nibbles at a time:
///
///     explicit NibbleTable(const float (&numbers)[16])
///     write<high_first>(from, to)      elements of To
///
/// Where a table's source has nothing faster than look_up: none.
template <class To>
struct NibbleTable {
    static constexpr int64_t step = 0;
};

/// Numbers in F8_E4M3 times a scale, `step` neighbours at a time; or none.
///
///     explicit F8Times(float scale), takes(scale): whether it can
///     write(from, to)                  elements of To
template <class To>
struct F8Times {
    static constexpr int64_t step = 0;
};

/// The numbers that n nibbles from byte `from` on choose, as long as there are whole vectors;
/// returns how many those were.
template <bool high_first, class To>
int64_t write_chosen(const float (&values)[16], const uint8_t* from, int64_t n,
                     typename To::Element* to) {
    using Numbers = NibbleTable<To>;
    int64_t i = 0;
    if constexpr (Numbers::step > 0) {
        if (n >= Numbers::step) {
            const Numbers numbers(values);
            for (; n - i >= Numbers::step; i += Numbers::step) {
                numbers.template write<high_first>(from + i / 2, to + i);
            }
        }
    }
    for (; n - i >= lanes; i += lanes) {
        To::store(to + i, look_up(values, nibbles<high_first>(from + i / 2)));
    }
    return i;
}

/// A row in groups of w.groups.size numbers, which are counted from `origin` numbers before the row.
/// write(col, n, group, to) does as many of n columns from `col` on, all of one group, as it can, and
/// returns how many; the rest goes the plain way.
template <class To, class Write>
void decode_groups(const Matrix& w, int64_t origin, int64_t row, int64_t first, int64_t count,
                   typename To::Element* to, DType to_dtype, const Write& write) {
    const int64_t end = first + count;
    for (int64_t begin = first; begin < end;) {
        const int64_t group = (origin + begin) / w.groups.size;
        const int64_t stop = at_most((group + 1) * w.groups.size - origin, end);
        auto* out = to + (begin - first);
        const int64_t done = write(begin, stop - begin, group, out);
        if (begin + done < stop)
            decode_row(w, row, begin + done, stop - begin - done, to_dtype, out + done);
        begin = stop;
    }
}

/// The zeros and scales of a row, ready for columns that belong to its groups in any order (that of
/// activations, in which they were quantised).
struct RowGroups {
    static constexpr int64_t most = 1024;
    float zero[most], scale[most];

    RowGroups(const Groups& groups, int64_t row, int64_t count) {
        for (int64_t g = 0; g < count; ++g) {
            zero[g] = static_cast<float>(zero_of(groups, row, g));
            scale[g] = scale_of(groups, row, g);
        }
    }
    /// numbers: of columns whose groups begin at of_column.
    [[nodiscard]] Vec scaled(Vec numbers, const int32_t* of_column) const {
        const Ints group = int_load(of_column);
        return (numbers - gather(zero, group)) * gather(scale, group);
    }
};

/// A row whose columns belong to groups in any order. numbers(i): those of lanes columns from
/// first + i on.
template <class To, class Numbers>
void decode_ordered(const Matrix& w, int64_t row, int64_t first, int64_t count,
                    typename To::Element* to, DType to_dtype, const Numbers& numbers) {
    const int64_t groups = pieces(w.cols, w.groups.size);
    int64_t done = 0;
    if (groups <= RowGroups::most && count >= lanes) {
        const RowGroups of_row(w.groups, row, groups);
        done = write_vectors<To>(count, to, [&](int64_t i) {
            return of_row.scaled(numbers(i), w.groups.of_column + first + i);
        });
    }
    if (done < count) decode_row(w, row, first + done, count - done, to_dtype, to + done);
}

/// The same of nibbles, in few groups: sixteen numbers each, which are computed once for the row. Two
/// gathers for a vector cost more than eight plain loads.
template <class To>
struct RowNumbers {
    static constexpr int64_t most = 256;
    typename To::Element of_group[most][16];

    RowNumbers(const Groups& groups, int64_t row, int64_t count) {
        float nibble[16];
        for (int i = 0; i < 16; ++i) nibble[i] = static_cast<float>(i);
        for (int64_t g = 0; g < count; ++g) {
            const Vec zero = broadcast(static_cast<float>(zero_of(groups, row, g)));
            const Vec scale = broadcast(scale_of(groups, row, g));
            for (int i = 0; i < 16; i += lanes)
                To::store(of_group[g] + i, (F32::load(nibble + i) - zero) * scale);
        }
    }
    /// Whole words of n columns; returns how many columns that were.
    int64_t write(const uint8_t* from, const int32_t* of_column, int64_t n,
                  typename To::Element* to) const {
        int64_t i = 0;
        for (; n - i >= 8; i += 8) {
            uint32_t word;
            __builtin_memcpy(&word, from + i / 2, sizeof word);
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) to[i + j] = of_group[of_column[i + j]][word >> 4 * j & 15];
        }
        return i;
    }
};

template <class To>
void decode_ordered_nibbles(const Matrix& w, const uint8_t* bytes, int64_t row, int64_t first,
                            int64_t count, typename To::Element* to, DType to_dtype) {
    const int64_t groups = pieces(w.cols, w.groups.size);
    if (first % 2 != 0) return decode_row(w, row, first, count, to_dtype, to);
    if (groups > RowNumbers<To>::most || 16 * groups > count) {
        return decode_ordered<To>(w, row, first, count, to, to_dtype, [&](int64_t i) {
            return to_floats(nibbles<false>(bytes + i / 2));
        });
    }
    const RowNumbers<To> numbers(w.groups, row, groups);
    const int64_t done = numbers.write(bytes, w.groups.of_column + first, count, to);
    if (done < count) decode_row(w, row, first + done, count - done, to_dtype, to + done);
}

template <class To>
void decode_int8(const Matrix& w, int64_t row, int64_t first, int64_t count,
                 typename To::Element* to, DType to_dtype) {
    const auto* numbers = static_cast<const int8_t*>(w.data) + row * w.cols;
    if (w.groups.of_column != nullptr) {
        return decode_ordered<To>(w, row, first, count, to, to_dtype, [&](int64_t i) {
            return to_floats(widen_int8(numbers + first + i));
        });
    }
    const auto write = [&](int64_t col, int64_t n, int64_t group, typename To::Element* out) {
        const Vec scale = broadcast(scale_of(w.groups, row, group));
        const Vec zero = broadcast(static_cast<float>(zero_of(w.groups, row, group)));
        return write_vectors<To>(n, out, [&](int64_t i) {
            return (to_floats(widen_int8(numbers + col + i)) - zero) * scale;
        });
    };
    decode_groups<To>(w, 0, row, first, count, to, to_dtype, write);
}

template <class To>
void decode_fp8(const Matrix& w, int64_t row, int64_t first, int64_t count,
                typename To::Element* to, DType to_dtype) {
    const auto* numbers = static_cast<const uint8_t*>(w.data) + row * w.cols;
    if (w.groups.of_column != nullptr) {
        return decode_ordered<To>(w, row, first, count, to, to_dtype,
                                  [&](int64_t i) { return widen_f8(numbers + first + i); });
    }
    using Times = F8Times<To>;
    const auto write = [&](int64_t col, int64_t n, int64_t group, typename To::Element* out) {
        const float scale = scale_of(w.groups, row, group);
        const auto zero = static_cast<float>(zero_of(w.groups, row, group));
        int64_t i = 0;
        if constexpr (Times::step > 0) {
            if (zero == 0.0f && n >= Times::step && Times::takes(scale)) {
                const Times times(scale);
                for (; n - i >= Times::step; i += Times::step) {
                    times.write(numbers + col + i, out + i);
                }
            }
        }
        return i + write_vectors<To>(n - i, out + i, [&](int64_t rest) {
                   return (widen_f8(numbers + col + i + rest) - broadcast(zero)) * broadcast(scale);
               });
    };
    decode_groups<To>(w, 0, row, first, count, to, to_dtype, write);
}

/// A row of nibbles, low first: one of sixteen numbers each, (nibble - zero) * scale. bytes: where
/// column `first` stands, if that is even.
template <class To>
void decode_nibbles(const Matrix& w, const uint8_t* bytes, int64_t row, int64_t first,
                    int64_t count, typename To::Element* to, DType to_dtype) {
    if (w.groups.of_column != nullptr)
        return decode_ordered_nibbles<To>(w, bytes, row, first, count, to, to_dtype);
    const auto write = [&](int64_t col, int64_t n, int64_t group,
                           typename To::Element* out) -> int64_t {
        if (col % 2 != 0 || first % 2 != 0) return 0;
        const float scale = scale_of(w.groups, row, group);
        const auto zero = static_cast<float>(zero_of(w.groups, row, group));
        float values[16];
        for (int i = 0; i < 16; ++i) values[i] = (static_cast<float>(i) - zero) * scale;
        return write_chosen<false, To>(values, bytes + (col - first) / 2, n, out);
    };
    decode_groups<To>(w, 0, row, first, count, to, to_dtype, write);
}

/// A row in blocks of the flattened matrix: code[nibble] * scale.
template <class To>
void decode_blocks(const Matrix& w, int64_t row, int64_t first, int64_t count,
                   typename To::Element* to, DType to_dtype) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    const int64_t origin = row * w.cols;
    const auto write = [&](int64_t col, int64_t n, int64_t block,
                           typename To::Element* out) -> int64_t {
        if ((origin + col) % 2 != 0) return 0;
        const float scale = block_scale(w.groups, block);
        float values[16];
        for (int i = 0; i < 16; ++i) values[i] = w.groups.code[i] * scale;
        return write_chosen<true, To>(values, bytes + (origin + col) / 2, n, out);
    };
    decode_groups<To>(w, origin, row, first, count, to, to_dtype, write);
}

/// `vectors` * lanes rows of a matrix whose words hold eight columns of one row and stand side by
/// side for neighbouring rows: turned to rows of words, a block of columns at a time.
template <class To, int vectors>
void decode_words(const Matrix& w, int64_t row, int64_t first, int64_t count,
                  typename To::Element* to, DType to_dtype) {
    constexpr int64_t block_words = 128;  // whole groups, as a rule
    constexpr int64_t words_ahead = 32;   // each of them is a line of its own, far from the last
    static_assert(block_words % lanes == 0);
    const auto* words = static_cast<const int32_t*>(w.data) + row;
    const int64_t last = w.cols / 8 - 1;
    for (int64_t begin = first; begin < first + count;) {
        const int64_t first_word = begin / 8;
        const int64_t stop = at_most((first_word + block_words) * 8, first + count);
        int32_t turned[vectors * lanes][block_words];
        for (int64_t i = 0; i < pieces(stop - first_word * 8, 8); i += lanes) {
            Ints block[vectors][lanes];
            for (int64_t j = 0; j < lanes; ++j) {
                const int64_t word = first_word + i + j;
                prefetch(words + at_most(word + words_ahead, last) * w.rows);
                for (int v = 0; v < vectors; ++v) {
                    block[v][j] = int_load(words + at_most(word, last) * w.rows + v * lanes);
                }
            }
            for (int v = 0; v < vectors; ++v) {
                transpose(block[v]);
                for (int64_t j = 0; j < lanes; ++j) {
                    int_store(turned[v * lanes + j] + i, block[v][j]);
                }
            }
        }
        for (int64_t j = 0; j < vectors * lanes; ++j) {
            const auto* bytes = reinterpret_cast<const uint8_t*>(turned[j]);
            decode_nibbles<To>(w, bytes + begin % 8 / 2, row + j, begin, stop - begin,
                               to + j * count + (begin - first), to_dtype);
        }
        begin = stop;
    }
}

template <class To>
void decode_one(const Matrix& w, int64_t row, int64_t first, int64_t count, DType to_dtype,
                typename To::Element* to) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    if (w.coding == Coding::nf4) {
        decode_blocks<To>(w, row, first, count, to, to_dtype);
    } else if (w.coding == Coding::int8) {
        decode_int8<To>(w, row, first, count, to, to_dtype);
    } else if (w.coding == Coding::int4) {
        const uint8_t* from = bytes + row * int4_words(w.cols) * 4 + first / 2;
        decode_nibbles<To>(w, from, row, first, count, to, to_dtype);
    } else if (w.coding == Coding::fp8) {
        decode_fp8<To>(w, row, first, count, to, to_dtype);
    } else {
        decode_row(w, row, first, count, to_dtype, to);
    }
}

template <class To>
void decode_panel(const Matrix& w, int64_t row, int64_t n, int64_t first, int64_t count,
                  DType to_dtype, void* to) {
    auto* out = static_cast<typename To::Element*>(to);
    int64_t r = 0;
    if (w.coding == Coding::int4_by_column) {
        constexpr int line = 16 / lanes;  // vectors of a cache line: whole ones are read once
        for (; n - r >= line * lanes; r += line * lanes) {
            decode_words<To, line>(w, row + r, first, count, out + r * count, to_dtype);
        }
        for (; n - r >= lanes; r += lanes) {
            decode_words<To, 1>(w, row + r, first, count, out + r * count, to_dtype);
        }
    }
    for (; r < n; ++r) decode_one<To>(w, row + r, first, count, to_dtype, out + r * count);
}

/// See Table::decode.
inline void decode(const Matrix& w, int64_t row, int64_t n, int64_t first, int64_t count,
                   DType to_dtype, void* to) {
    if (to_dtype == DType::bf16) {
        decode_panel<Bf16>(w, row, n, first, count, to_dtype, to);
    } else {
        decode_panel<F32>(w, row, n, first, count, to_dtype, to);
    }
}
