// Memory that tests store keys and values in, and what is found there.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kv_layout.h"
#include "kernels/reference.h"

namespace mllama::test {

/// Memory for `keys` keys or values, filled with a pattern that is no number of any float type.
inline std::vector<uint32_t> memory_of(const KvLayout& layout, int64_t units_of_a_head,
                                       int64_t keys) {
    const int64_t heads = KvLayout::blocks(keys) * layout.kv_heads;
    return std::vector<uint32_t>(static_cast<size_t>(heads * units_of_a_head), 0xFFFFFFFFu);
}

inline std::vector<float> scales_for(const KvLayout& layout, int64_t keys) {
    const int64_t heads = KvLayout::blocks(keys) * layout.kv_heads;
    return std::vector<float>(static_cast<size_t>(heads * KvLayout::block), 7.0f);
}

/// The elements (keys, kv_heads, head_dim) that `index` finds.
template <class Index>
std::vector<float> elements_of(const std::vector<uint32_t>& memory, const KvLayout& layout,
                               int64_t keys, const Index& index) {
    std::vector<float> all;
    for (int64_t key = 0; key < keys; ++key) {
        for (int64_t head = 0; head < layout.kv_heads; ++head) {
            for (int64_t d = 0; d < layout.head_dim; ++d) {
                const int64_t at = index(head, key, d);
                all.push_back(
                    layout.dtype == DType::i8
                        ? static_cast<float>(reinterpret_cast<const int8_t*>(memory.data())[at])
                        : static_cast<float>(reference::element(memory.data(), layout.dtype, at)));
            }
        }
    }
    return all;
}

inline std::vector<float> keys_in(const std::vector<uint32_t>& memory, const KvLayout& layout,
                                  int64_t keys) {
    return elements_of(memory, layout, keys, [&](int64_t head, int64_t key, int64_t d) {
        return layout.key_index(head, key, d);
    });
}

inline std::vector<float> values_in(const std::vector<uint32_t>& memory, const KvLayout& layout,
                                    int64_t keys) {
    return elements_of(memory, layout, keys, [&](int64_t head, int64_t key, int64_t d) {
        return layout.value_index(head, key, d);
    });
}

}  // namespace mllama::test
