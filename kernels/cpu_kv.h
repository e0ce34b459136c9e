// Leaves that store keys and values in units (kv_layout.h). Like cpu_leaves.h, which includes it,
// this file goes into the unnamed namespace and the target region of a table's source. It takes the
// element types' unit, elements of a unit, and
//
//     pack(elements, p)     stores lanes units: elements[e] holds the e-th element of each
//     unpack(p, elements)   loads them

/// Stores the first n of lanes units.
template <class Type>
void pack_part(const Vec (&elements)[Type::unit], std::byte* to, int64_t n) {
    if (n >= lanes) {
        Type::pack(elements, to);
        return;
    }
    alignas(64) std::byte units[lanes * KvLayout::unit_bytes];
    Type::pack(elements, units);
    __builtin_memcpy(to, units, static_cast<size_t>(n * KvLayout::unit_bytes));
}

/// See Table::store_keys. Square after square is turned round.
template <class Type>
struct StoredKeys {
    static void run(const float* x, int64_t x_stride, int64_t keys, int64_t head_dim, void* units) {
        static_assert(lanes % Type::unit == 0);
        auto* to = static_cast<std::byte*>(units);
        for (int64_t key = 0; key < keys; key += lanes) {
            for (int64_t d = 0; d < head_dim; d += lanes) {
                Vec columns[lanes];
                for (int64_t j = 0; j < lanes; ++j) {
                    const float* row = x + (key + j) * x_stride + d;
                    columns[j] = key + j < keys ? load<F32>(row, head_dim - d) : broadcast(0.0f);
                }
                transpose(columns);
                for (int64_t e = 0; e < lanes && d + e < head_dim; e += Type::unit) {
                    Vec elements[Type::unit];
                    for (int i = 0; i < Type::unit; ++i) elements[i] = columns[e + i];
                    const int64_t unit = (d + e) / Type::unit * KvLayout::block + key;
                    pack_part<Type>(elements, to + unit * KvLayout::unit_bytes, keys - key);
                }
            }
        }
    }
};

/// See Table::store_values.
template <class Type>
struct StoredValues {
    static void run(const float* x, int64_t x_stride, int64_t first, int64_t keys,
                    const KvLayout& layout, void* units) {
        const int64_t width = layout.part_width();
        for (int64_t d = 0; d < layout.head_dim; d += lanes) {
            auto* to = static_cast<std::byte*>(units) +
                       (d / width * layout.part_units() + d % width) * KvLayout::unit_bytes;
            for (int64_t row = 0; row < first + keys; row += Type::unit) {
                std::byte* place = to + row / Type::unit * width * KvLayout::unit_bytes;
                Vec elements[Type::unit];
                if (row < first) Type::unpack(place, elements);
                for (int64_t e = 0; e < Type::unit; ++e) {
                    const int64_t key = row + e - first;
                    if (key >= keys) {
                        elements[e] = broadcast(0.0f);
                    } else if (key >= 0) {
                        elements[e] = load<F32>(x + key * x_stride + d, layout.head_dim - d);
                    }
                }
                Type::pack(elements, place);
            }
        }
    }
};

void store_keys(const float* x, int64_t x_stride, int64_t keys, const KvLayout& layout,
                void* units) {
    with_unit_type<StoredKeys>(layout.dtype, x, x_stride, keys, layout.head_dim, units);
}

void store_values(const float* x, int64_t x_stride, int64_t first, int64_t keys,
                  const KvLayout& layout, void* units) {
    with_unit_type<StoredValues>(layout.dtype, x, x_stride, first, keys, layout, units);
}
