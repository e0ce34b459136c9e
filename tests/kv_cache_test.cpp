#include "nn/kv_cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>

#include "kernels/reference.h"
#include "kernels/rounding.h"
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
        // A key is padded to whole units, a value to a vector.
        CHECK(cache.bytes() ==
              300 * 3 * (round_up(2 * dtype_size(dtype), 4) + 16 * dtype_size(dtype)));
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
    CHECK(cache.bytes() == 271 * 3 * (12 + 16 + 2 * 4));  // padded, and scales
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

TEST_CASE("kv_layout_counts_the_bytes_that_a_cache_takes") {
    for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
        for (const int64_t head_dim : {2, 16, 30, 64, 80, 128, 200}) {
            const KvLayout layout{3, head_dim, dtype};
            int64_t bytes = (KeysValues::key_shape(layout, 130).numel() +
                             KeysValues::value_shape(layout, 130).numel()) *
                            dtype_size(dtype);
            if (layout.scaled()) bytes += 2 * KeysValues::scale_shape(layout, 130).numel() * 4;
            CHECK(bytes == 192 * layout.bytes_of_key());
        }
    }
}

TEST_CASE("kv_cache_in_a_pool_holds_what_it_holds_alone_whoever_moves") {
    for (const DType dtype : {DType::bf16, DType::i8}) {
        Numbers numbers(6);
        std::mt19937 random(7);
        const auto pool = KvPool::take({2, 16, dtype}, 1280, Device::cpu);
        std::vector<KvCache> shared, alone;
        const auto begin = [&](size_t i) {
            shared[i] = KvCache(2, 16, dtype, Device::cpu, pool);
            alone[i] = KvCache(2, 16, dtype);
        };
        shared.resize(4);
        alone.resize(4);
        for (size_t i = 0; i < 4; ++i) begin(i);
        for (int step = 0; step < 300; ++step) {
            const size_t i = random() % 4;
            const auto rows = static_cast<int64_t>(random() % 150 + 1);
            int64_t used = KvLayout::blocks(shared[i].length() + rows);
            for (size_t j = 0; j < 4; ++j)
                used += j == i ? 0 : KvLayout::blocks(shared[j].length());
            if (used > pool->blocks()) {
                begin(i);
                continue;
            }
            const Tensor k = rows_of(numbers, rows, 32), v = rows_of(numbers, rows, 32);
            shared[i].append(k, v);
            alone[i].append(k, v);
            for (size_t j = 0; j < 4; ++j) {
                const KeysValues found = shared[j].keys_values(), kept = alone[j].keys_values();
                if (kept.keys == 0) continue;
                REQUIRE(found.k.storage() == pool->keys({0, 0}).storage());  // not outside
                REQUIRE(shared[j].capacity() == round_up(shared[j].length(), 64));
                const auto same = [](const Tensor& a, const Tensor& b, int64_t blocks) {
                    if (!b.defined()) return true;
                    const auto bytes = static_cast<size_t>(b.rows(0, blocks).bytes());
                    return std::memcmp(a.data(), b.data(), bytes) == 0;
                };
                // Whole blocks alone: what lies behind the last key is anything.
                const int64_t whole = kept.keys / 64;
                REQUIRE(same(found.k, kept.k, whole));
                REQUIRE(same(found.v, kept.v, whole));
                REQUIRE(same(found.k_scales, kept.k_scales, whole));
                REQUIRE(same(found.v_scales, kept.v_scales, whole));
            }
        }
    }
}

TEST_CASE("kv_cache_that_outgrows_its_pool_goes_on_and_leaves_its_room_to_others") {
    Numbers numbers(8);
    const auto pool = KvPool::take({1, 4, DType::f32}, 128, Device::cpu);
    KvCache cache(1, 4, DType::f32, Device::cpu, pool), other(1, 4, DType::f32, Device::cpu, pool);
    const Tensor first = rows_of(numbers, 100, 4), then = rows_of(numbers, 60, 4);
    cache.append(first, first);
    cache.append(then, then);
    CHECK(cache.length() == 160);
    std::vector<float> expected = values_of(first);
    const std::vector<float> more = values_of(then);
    expected.insert(expected.end(), more.begin(), more.end());
    CHECK(rows_in(cache, cache.keys_values().k, 4, true) == expected);
    CHECK(rows_in(cache, cache.keys_values().v, 4, false) == expected);
    other.append(first, first);
    CHECK(other.keys_values().k.storage() == pool->keys({0, 0}).storage());
}
