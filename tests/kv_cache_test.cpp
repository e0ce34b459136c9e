#include "nn/kv_cache.h"

#include <doctest/doctest.h>

#include <utility>

#include "tests/compare.h"

using namespace mllama;
using namespace mllama::test;

namespace {

Tensor rows_of(Numbers& numbers, int64_t rows, int64_t width) {
    return Tensor::from(numbers.floats(rows * width), {rows, width});
}

/// What a cache holds, as rows again: (keys, kv_heads * head_dim).
Tensor rows_in(const Tensor& by_head, int64_t keys) {
    const int64_t heads = by_head.dim(0), capacity = by_head.dim(1), head_dim = by_head.dim(2);
    const Tensor f = ops::to_dtype(by_head, DType::f32);
    Tensor rows = Tensor::empty({keys, heads * head_dim}, DType::f32);
    for (int64_t key = 0; key < keys; ++key) {
        for (int64_t i = 0; i < heads * head_dim; ++i) {
            const int64_t at = (i / head_dim * capacity + key) * head_dim + i % head_dim;
            rows.data<float>()[key * heads * head_dim + i] = f.data<float>()[at];
        }
    }
    return rows;
}

std::vector<float> values_of(const Tensor& x) {
    const Tensor f = ops::to_dtype(x.clone(), DType::f32);
    return {f.data<float>(), f.data<float>() + f.numel()};
}

}  // namespace

TEST_CASE("kv_cache_appended_rows_come_back_rounded_to_its_type") {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        Numbers numbers(1);
        KvCache cache(3, 2, dtype);
        std::vector<float> keys;
        std::vector<float> values;
        for (const int64_t rows : {1, 3, 1, 8, 2}) {
            const Tensor k = rows_of(numbers, rows, 6);
            const Tensor v = rows_of(numbers, rows, 6);
            cache.append(k, v);
            const auto rounded_k = values_of(ops::to_dtype(k, dtype));
            const auto rounded_v = values_of(ops::to_dtype(v, dtype));
            keys.insert(keys.end(), rounded_k.begin(), rounded_k.end());
            values.insert(values.end(), rounded_v.begin(), rounded_v.end());
        }
        CHECK(cache.length() == 15);
        CHECK(compare_bits(values_of(rows_in(cache.keys_values().k, 15)), keys) == "");
        CHECK(compare_bits(values_of(rows_in(cache.keys_values().v, 15)), values) == "");
        CHECK(cache.bytes() == 2 * 15 * 6 * dtype_size(dtype));
    }
}

TEST_CASE("kv_cache_reserved_room_is_not_moved") {
    Numbers numbers(2);
    KvCache cache(2, 2, DType::f32);
    cache.reserve(10);
    cache.append(rows_of(numbers, 2, 4), rows_of(numbers, 2, 4));
    const void* place = cache.keys_values().k.storage()->data();
    cache.append(rows_of(numbers, 8, 4), rows_of(numbers, 8, 4));
    CHECK(cache.keys_values().k.storage()->data() == place);
    CHECK(cache.capacity() == 10);
}

TEST_CASE("kv_cache_truncated_rows_are_overwritten") {
    Numbers numbers(3);
    KvCache cache(1, 2, DType::f32);
    cache.append(rows_of(numbers, 5, 2), rows_of(numbers, 5, 2));
    cache.truncate(2);
    CHECK(cache.length() == 2);
    const Tensor k = rows_of(numbers, 1, 2);
    cache.append(k, k);
    CHECK(cache.length() == 3);
    CHECK(values_of(rows_in(cache.keys_values().k, 3).rows(2, 3)) == values_of(k));
}
