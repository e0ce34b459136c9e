// A Product made of the templates of cpu_tile.h and cpu_softmax.h, with the element type as an
// argument of its leaves. This file stands behind those two, in the same namespace and target
// region, once for each multiply-add. Its templates take
//
//     Factors  how a multiply-add takes its factors: Dot; Row<Type>, the Load of cpu_tile.h, and
//              Units<Type>, the Units of cpu_columns.h, of an element type (F32, Bf16, F16);
//              Probabilities, the Packed of cpu_softmax.h

/// The leaves of a product that read elements of any type: each has one `run` for a type.
template <class Factors>
struct OfType {
    using Dot = typename Factors::Dot;

    template <class Type>
    struct PackRows {
        static void run(const void* w, int64_t stride, int64_t n, int64_t k, void* panel,
                        bool by_sum) {
            pack_rows<Dot, typename Factors::template Row<Type>>(w, stride, n, k, panel, by_sum);
        }
    };
    template <class Type>
    struct PackColumns {
        static void run(const UnitMatrix& w, int64_t k, int64_t n, void* panel) {
            pack_columns<Dot, typename Factors::template Units<Type>>(w, k, n, panel);
        }
    };
    template <class Type>
    struct DotRows {
        static void run(int64_t rows, int64_t k, int64_t k_block, const void* x, int64_t x_stride,
                        const void* w, int64_t w_stride, float* c, int64_t c_stride) {
            dot_rows<Dot, typename Factors::template Row<Type>>(rows, k, k_block, x, x_stride, w,
                                                                w_stride, c, c_stride);
        }
    };
    template <class Type>
    struct FewColumns {
        static void run(int64_t rows, int64_t k, int64_t n, const void* x, int64_t x_stride,
                        const UnitMatrix& w, float* c, int64_t c_stride, bool go_on) {
            few_columns<Dot, typename Factors::template Units<Type>>(rows, k, n, x, x_stride, w, c,
                                                                     c_stride, go_on);
        }
    };
};

// The same with the type as an argument.

template <class Factors>
void pack_rows_of(const void* w, DType dtype, int64_t stride, int64_t n, int64_t k, void* panel,
                  bool by_sum) {
    with_type<OfType<Factors>::template PackRows>(dtype, w, stride, n, k, panel, by_sum);
}

template <class Factors>
void pack_columns_of(const UnitMatrix& w, int64_t k, int64_t n, void* panel) {
    with_unit_type<OfType<Factors>::template PackColumns>(w.dtype, w, k, n, panel);
}

template <class Factors>
void dot_rows_of(int64_t rows, int64_t k, int64_t k_block, const void* x, int64_t x_stride,
                 const void* w, DType dtype, int64_t w_stride, float* c, int64_t c_stride) {
    with_type<OfType<Factors>::template DotRows>(dtype, rows, k, k_block, x, x_stride, w, w_stride,
                                                 c, c_stride);
}

template <class Factors>
void few_columns_of(int64_t rows, int64_t k, int64_t n, const void* x, int64_t x_stride,
                    const UnitMatrix& w, float* c, int64_t c_stride, bool go_on) {
    with_unit_type<OfType<Factors>::template FewColumns>(w.dtype, rows, k, n, x, x_stride, w, c,
                                                         c_stride, go_on);
}

/// The pieces of a matrix product over one multiply-add.
template <class Factors>
Product make_product() {
    using Dot = typename Factors::Dot;
    Product product{};
    product.tile_rows = tile_rows;
    product.panel_width = panel_vectors * lanes;
    product.lanes = lanes;
    product.k_group = Dot::group;
    product.element_size = sizeof(typename Dot::Element);
    product.pack_row = pack_row<Dot, typename Factors::template Row<F32>>;
    product.pack_rows = pack_rows_of<Factors>;
    product.pack_columns = pack_columns_of<Factors>;
    product.tile = tile<Dot>;
    product.few_rows_max = few_rows_max;
    product.dot_rows = dot_rows_of<Factors>;
    product.few_columns = few_columns_of<Factors>;
    product.softmax = softmax<typename Factors::Probabilities>;
    return product;
}
