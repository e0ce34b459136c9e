#include "nn/kv_cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/reference.h"
#include "tests/compare.h"

using namespace mllama;
using namespace mllama::test;

namespace {

Tensor rows_of(Numbers& numbers, int64_t rows, int64_t width) {
    return Tensor::from(numbers.floats(rows * width), {rows, width});
}

/// What a cache holds, as rows again: (keys, kv_heads * head_dim).
std::vector<float> rows_in(const KvCache& cache, const Tensor& x, int64_t head_dim, bool keys) {
    const KvLayout layout{cache.width() / head_dim, head_dim, x.dtype()};
    std::vector<float> rows;
    for (int64_t key = 0; key < cache.length(); ++key) {
        for (int64_t i = 0; i < cache.width(); ++i) {
            const int64_t head = i / head_dim, d = i % head_dim;
            const int64_t at =
                keys ? layout.key_index(head, key, d) : layout.value_index(head, key, d);
            rows.push_back(static_cast<float>(reference::element(x.data(), x.dtype(), at)));
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
        for (const int64_t rows : {1, 3, 1, 8, 2, 200, 85}) {
            const Tensor k = rows_of(numbers, rows, 6);
            const Tensor v = rows_of(numbers, rows, 6);
            cache.append(k, v);
            const auto rounded_k = values_of(ops::to_dtype(k, dtype));
            const auto rounded_v = values_of(ops::to_dtype(v, dtype));
            keys.insert(keys.end(), rounded_k.begin(), rounded_k.end());
            values.insert(values.end(), rounded_v.begin(), rounded_v.end());
        }
        CHECK(cache.length() == 300);
        CHECK(compare_bits(rows_in(cache, cache.keys_values().k, 2, true), keys) == "");
        CHECK(compare_bits(rows_in(cache, cache.keys_values().v, 2, false), values) == "");
        CHECK(cache.bytes() == 2 * 300 * 6 * dtype_size(dtype));
    }
}

TEST_CASE("kv_cache_reserved_room_is_not_moved") {
    Numbers numbers(2);
    KvCache cache(2, 2, DType::f32);
    cache.reserve(10);
    cache.append(rows_of(numbers, 2, 4), rows_of(numbers, 2, 4));
    const void* place = cache.keys_values().k.storage()->data();
    cache.append(rows_of(numbers, 62, 4), rows_of(numbers, 62, 4));
    CHECK(cache.keys_values().k.storage()->data() == place);
    CHECK(cache.capacity() == 64);  // a block
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
    const std::vector<float> found = rows_in(cache, cache.keys_values().k, 2, true);
    CHECK(std::vector<float>(found.begin() + 4, found.end()) == values_of(k));
    const std::vector<float> found_values = rows_in(cache, cache.keys_values().v, 2, false);
    CHECK(std::vector<float>(found_values.begin() + 4, found_values.end()) == values_of(k));
}

TEST_CASE(
    "kv_cache_of_int8_has_a_byte_an_element_and_a_scale_a_head_and_keeps_them_when_it_grows") {
    Numbers numbers(5);
    KvCache cache(3, 10, DType::i8);
    std::vector<float> keys;
    for (const int64_t rows : {1, 70, 200}) {
        const Tensor k = rows_of(numbers, rows, 30);
        cache.append(k, k);
        keys.insert(keys.end(), k.data<float>(), k.data<float>() + k.numel());
    }
    CHECK(cache.bytes() == 2 * 271 * 3 * (10 + 4));
    const KeysValues kv = cache.keys_values();
    CHECK(kv.k.dtype() == DType::i8);
    const KvLayout layout{3, 10, DType::i8};
    const auto largest_error = [&](const Tensor& x, const Tensor& scales, bool of_keys) {
        float largest = 0.0f;
        for (int64_t i = 0; i < 271 * 30; ++i) {
            const int64_t key = i / 30, head = i % 30 / 10, d = i % 10;
            const int64_t at =
                of_keys ? layout.key_index(head, key, d) : layout.value_index(head, key, d);
            const float found =
                scales.data<float>()[layout.scale_index(head, key)] * x.data<int8_t>()[at];
            largest = std::max(largest, std::abs(found - keys[static_cast<size_t>(i)]));
        }
        return largest;
    };
    CHECK(largest_error(kv.k, kv.k_scales, true) <= 0.51f / 127.0f);
    CHECK(largest_error(kv.v, kv.v_scales, false) <= 0.51f / 127.0f);
}
