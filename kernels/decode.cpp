#include "kernels/decode.h"

#include <algorithm>
#include <array>

namespace mllama::cpu {
namespace {

int32_t nibble(uint32_t word, int64_t i) {
    return static_cast<int32_t>(word >> (4 * i) & 15u);
}

}  // namespace

float scale_of(const Groups& groups, int64_t row, int64_t group) {
    return float_element(groups.scale, groups.scale_dtype,
                         row * groups.scale_row + group * groups.scale_group);
}

int32_t zero_of(const Groups& groups, int64_t row, int64_t group) {
    if (groups.zero == nullptr) return groups.zero_add;
    const int32_t word = groups.zero[row / 8 * groups.zero_row + group * groups.zero_group];
    const uint32_t add = static_cast<uint32_t>(groups.zero_add) * 0x11111111u;
    return nibble(static_cast<uint32_t>(word) + add, row % 8);
}

float block_scale(const Groups& groups, int64_t block) {
    if (groups.scale_dtype != DType::u8)
        return float_element(groups.scale, groups.scale_dtype, block);
    const uint8_t code = static_cast<const uint8_t*>(groups.scale)[block];
    return groups.nested_code[code] * groups.nested_scale[block / groups.nested_size] +
           groups.nested_offset;
}

namespace {

/// Every F8_E4M3 as a float.
const std::array<float, 256>& f8_values() {
    static const std::array<float, 256> values = [] {
        std::array<float, 256> made{};
        for (size_t i = 0; i < 256; ++i) made[i] = f8_e4m3_to_f32(static_cast<uint8_t>(i));
        return made;
    }();
    return values;
}

// Numbers as they are stored: number(col), for columns of one row.

struct PlainNumbers {
    const Matrix& w;
    int64_t row;
    float number(int64_t col) const { return float_element(w.data, w.dtype, row * w.stride + col); }
};

struct Int8Numbers {
    const int8_t* row;
    float number(int64_t col) const { return row[col]; }
};

struct Int4Numbers {
    const uint8_t* row;  ///< two columns a byte, the low nibble first
    float number(int64_t col) const {
        return static_cast<float>(row[col / 2] >> (col % 2 * 4) & 15);
    }
};

struct Int4ColumnNumbers {
    const int32_t* column;  ///< the word of columns 0 to 7 of this row
    int64_t rows;
    float number(int64_t col) const {
        return static_cast<float>(nibble(static_cast<uint32_t>(column[col / 8 * rows]), col % 8));
    }
};

struct Fp8Numbers {
    const uint8_t* row;
    const float* values;
    float number(int64_t col) const { return values[row[col]]; }
};

/// Writes value(col) for the columns [first, first + count), rounded.
template <class Value>
void write(int64_t first, int64_t count, DType to_dtype, void* to, const Value& value) {
    if (to_dtype == DType::bf16) {
        auto* out = static_cast<uint16_t*>(to);
        for (int64_t i = 0; i < count; ++i) out[i] = f32_to_bf16(value(first + i));
    } else {
        auto* out = static_cast<float*>(to);
        for (int64_t i = 0; i < count; ++i) out[i] = value(first + i);
    }
}

/// (number - zero) * scale, group by group.
template <class Numbers>
void write_groups(const Groups& groups, const Numbers& numbers, int64_t row, int64_t first,
                  int64_t count, DType to_dtype, void* to) {
    const int64_t end = first + count;
    for (int64_t begin = first; begin < end;) {
        int64_t group, stop;
        if (groups.of_column != nullptr) {
            group = groups.of_column[begin];
            stop = begin + 1;
            while (stop < end && groups.of_column[stop] == group) ++stop;
        } else {
            group = begin / groups.size;
            stop = std::min(end, (group + 1) * groups.size);
        }
        const float scale = scale_of(groups, row, group);
        const auto zero = static_cast<float>(zero_of(groups, row, group));
        auto* place = static_cast<std::byte*>(to) + (begin - first) * dtype_size(to_dtype);
        write(begin, stop - begin, to_dtype, place,
              [&](int64_t col) { return (numbers.number(col) - zero) * scale; });
        begin = stop;
    }
}

void write_nf4(const Matrix& w, int64_t row, int64_t first, int64_t count, DType to_dtype,
               void* to) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    const int64_t from = row * w.cols + first, end = from + count;  // of the flattened matrix
    for (int64_t begin = from; begin < end;) {
        const int64_t block = begin / w.groups.size;
        const int64_t stop = std::min(end, (block + 1) * w.groups.size);
        const float scale = block_scale(w.groups, block);
        std::array<float, 16> values;
        for (size_t i = 0; i < 16; ++i) values[i] = w.groups.code[i] * scale;
        auto* place = static_cast<std::byte*>(to) + (begin - from) * dtype_size(to_dtype);
        write(begin, stop - begin, to_dtype, place, [&](int64_t i) {
            return values[static_cast<size_t>(bytes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15)];
        });
        begin = stop;
    }
}

}  // namespace

void decode_row(const Matrix& w, int64_t row, int64_t first, int64_t count, DType to_dtype,
                void* to) {
    const auto* bytes = static_cast<const uint8_t*>(w.data);
    const auto groups = [&](const auto& numbers) {
        write_groups(w.groups, numbers, row, first, count, to_dtype, to);
    };
    switch (w.coding) {
        case Coding::plain: {
            const PlainNumbers numbers{w, row};
            return write(first, count, to_dtype, to,
                         [&](int64_t col) { return numbers.number(col); });
        }
        case Coding::int8:
            return groups(Int8Numbers{reinterpret_cast<const int8_t*>(bytes) + row * w.cols});
        case Coding::int4:
            return groups(Int4Numbers{bytes + row * int4_words(w.cols) * 4});
        case Coding::int4_by_column:
            return groups(Int4ColumnNumbers{static_cast<const int32_t*>(w.data) + row, w.rows});
        case Coding::fp8:
            return groups(Fp8Numbers{bytes + row * w.cols, f8_values().data()});
        case Coding::nf4:
            return write_nf4(w, row, first, count, to_dtype, to);
    }
}

}  // namespace mllama::cpu
