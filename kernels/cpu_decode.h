// Coded weights to numbers, a panel at a time: decode_row of decode.h over a vector of floats, the
// same to the bit. Like cpu_leaves.h this goes into the unnamed namespace and the target region of a
// table's source. Besides what that needs, it expects
//
//     Ints                      lanes int32
//     to_floats(v)              int32 to float, lane by lane
//     widen_int8(p)             lanes int8 to int32
//     widen_f8(p)               lanes F8_E4M3 to float
//     nibbles<high_first>(p)    lanes neighbouring nibbles from byte p on, as int32
//     words_nibble(p, i)        nibble i, low first, of lanes neighbouring words
//     look_up(table, v)         of 16 floats
//
// What does not fit whole vectors, and columns in the order of activations, go the plain way.

/// Writes value(i), of lanes columns from i on, as long as there are so many of n; returns how many
/// columns that were.
template <class To, class Value>
int64_t write_vectors(int64_t n, typename To::Element* to, const Value& value) {
    int64_t i = 0;
    for (; n - i >= lanes; i += lanes) To::store(to + i, value(i));
    return i;
}

struct Int8Source {
    const int8_t* row;
    static constexpr int64_t granule = 1;  // columns at which a vector may begin
    [[nodiscard]] Vec load(int64_t col) const { return to_floats(widen_int8(row + col)); }
};

struct Int4Source {
    const uint8_t* row;
    static constexpr int64_t granule = 2;
    [[nodiscard]] Vec load(int64_t col) const { return to_floats(nibbles<false>(row + col / 2)); }
};

struct F8Source {
    const uint8_t* row;
    static constexpr int64_t granule = 1;
    [[nodiscard]] Vec load(int64_t col) const { return widen_f8(row + col); }
};

/// A row in groups of neighbouring columns: (number - zero) * scale.
template <class To, class Source>
void decode_groups(const Matrix& w, const Source& source, int64_t row, int64_t first, int64_t count,
                   typename To::Element* to, DType to_dtype) {
    const int64_t end = first + count;
    for (int64_t begin = first; begin < end;) {
        const int64_t group = begin / w.groups.size;
        const int64_t stop = at_most((group + 1) * w.groups.size, end);
        int64_t done = 0;
        if (begin % Source::granule == 0) {
            const Vec scale = broadcast(scale_of(w.groups, row, group));
            const Vec zero = broadcast(static_cast<float>(zero_of(w.groups, row, group)));
            done = write_vectors<To>(stop - begin, to + (begin - first), [&](int64_t i) {
                return (source.load(begin + i) - zero) * scale;
            });
        }
        if (begin + done < stop) {
            decode_row(w, row, begin + done, stop - begin - done, to_dtype,
                       to + (begin - first) + done);
        }
        begin = stop;
    }
}

/// A row in blocks of the flattened matrix: code[nibble] * scale.
template <class To>
void decode_blocks(const Matrix& w, int64_t row, int64_t first, int64_t count,
                   typename To::Element* to, DType to_dtype) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    const int64_t from = row * w.cols + first, end = from + count;
    for (int64_t begin = from; begin < end;) {
        const int64_t block = begin / w.groups.size;
        const int64_t stop = at_most((block + 1) * w.groups.size, end);
        int64_t done = 0;
        if (begin % 2 == 0) {
            const float scale = block_scale(w.groups, block);
            float values[16];
            for (int i = 0; i < 16; ++i) values[i] = w.groups.code[i] * scale;
            done = write_vectors<To>(stop - begin, to + (begin - from), [&](int64_t i) {
                return look_up(values, nibbles<true>(bytes + (begin + i) / 2));
            });
        }
        if (begin + done < stop) {
            decode_row(w, row, begin + done - row * w.cols, stop - begin - done, to_dtype,
                       to + (begin - from) + done);
        }
        begin = stop;
    }
}

/// lanes rows of a matrix whose words hold eight columns of one row and stand side by side for
/// neighbouring rows: turned from lanes columns at a time.
template <class To>
void decode_words(const Matrix& w, int64_t row, int64_t first, int64_t count,
                  typename To::Element* to) {
    const auto* words = static_cast<const int32_t*>(w.data) + row;
    int64_t group = -1;
    float scale[lanes], zero[lanes];  // of the group, row by row
    for (int64_t begin = first; begin < first + count; begin += lanes) {
        Vec columns[lanes];
        for (int64_t i = 0; i < lanes; ++i) {
            const int64_t col = at_most(begin + i, first + count - 1);
            if (group != col / w.groups.size) {
                group = col / w.groups.size;
                for (int64_t j = 0; j < lanes; ++j) {
                    scale[j] = scale_of(w.groups, row + j, group);
                    zero[j] = static_cast<float>(zero_of(w.groups, row + j, group));
                }
            }
            const Vec number = to_floats(words_nibble(words + col / 8 * w.rows, col % 8));
            columns[i] = (number - F32::load(zero)) * F32::load(scale);
        }
        transpose(columns);
        const int64_t n = first + count - begin;
        for (int64_t j = 0; j < lanes; ++j) {
            store<To>(to + j * count + (begin - first), columns[j], n);
        }
    }
}

template <class To>
void decode_one(const Matrix& w, int64_t row, int64_t first, int64_t count, DType to_dtype,
                typename To::Element* to) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    const bool in_order = w.groups.of_column == nullptr;
    if (w.coding == Coding::nf4) {
        decode_blocks<To>(w, row, first, count, to, to_dtype);
    } else if (w.coding == Coding::int8 && in_order) {
        const Int8Source source{reinterpret_cast<const int8_t*>(bytes) + row * w.cols};
        decode_groups<To>(w, source, row, first, count, to, to_dtype);
    } else if (w.coding == Coding::int4 && in_order) {
        const Int4Source source{bytes + row * int4_words(w.cols) * 4};
        decode_groups<To>(w, source, row, first, count, to, to_dtype);
    } else if (w.coding == Coding::fp8 && in_order) {
        decode_groups<To>(w, F8Source{bytes + row * w.cols}, row, first, count, to, to_dtype);
    } else {
        decode_row(w, row, first, count, to_dtype, to);
    }
}

template <class To>
void decode_panel(const Matrix& w, int64_t row, int64_t n, int64_t first, int64_t count,
                  DType to_dtype, void* to) {
    auto* out = static_cast<typename To::Element*>(to);
    int64_t r = 0;
    if (w.coding == Coding::int4_by_column && w.groups.of_column == nullptr) {
        for (; n - r >= lanes; r += lanes) {
            decode_words<To>(w, row + r, first, count, out + r * count);
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
