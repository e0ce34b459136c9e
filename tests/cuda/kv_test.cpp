// The GPU's storing of keys and values against the reference, to the bit.
#include <array>
#include <limits>
#include <string>

#include "kernels/reference.h"
#include "tests/cuda/device.h"
#include "tests/kv_memory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

constexpr DType types[] = {DType::f32, DType::bf16, DType::f16, DType::i8};

/// Keys or values of one layer on the device.
struct DeviceKv {
    DeviceArray<uint32_t> units;
    DeviceArray<float> scales;
    [[nodiscard]] float* scales_of(const KvLayout& layout) const {
        return layout.scaled() ? scales.data() : nullptr;
    }
};

/// Rows in several pieces, each behind the last; where `past` is used, half of what went before
/// stands in memory of the device.
void check_pieces(const KvLayout& layout, std::span<const int64_t> pieces, bool use_past) {
    CAPTURE(std::string(dtype_name(layout.dtype)));
    CAPTURE(layout.head_dim);
    int64_t total = 0;
    for (const int64_t piece : pieces) total += piece;
    const int64_t x_stride = layout.kv_heads * layout.head_dim + 3;
    const std::vector<float> x = Numbers(1).floats(total * x_stride);
    auto k = memory_of(layout, layout.key_units(), total);
    auto v = memory_of(layout, layout.value_units(), total);
    auto scales = scales_for(layout, total);
    const DeviceArray<float> rows(x);
    const DeviceKv keys{DeviceArray<uint32_t>(k), DeviceArray<float>(scales)};
    const DeviceKv values{DeviceArray<uint32_t>(v), DeviceArray<float>(scales)};
    reference::store_keys(x.data(), total, x_stride, layout, 0, k.data(), scales.data());
    reference::store_values(x.data(), total, x_stride, layout, 0, v.data(), scales.data());
    int64_t begin = 0;
    for (const int64_t piece : pieces) {
        const int64_t past_keys = use_past ? begin / 2 : 0;
        const DeviceArray<int64_t> past(std::vector<int64_t>{past_keys});
        const int64_t* where = use_past ? past.data() : nullptr;
        const float* from = rows.data() + begin * x_stride;
        cuda::store_keys(from, piece, x_stride, layout, begin - past_keys, where, keys.units.data(),
                         keys.scales_of(layout));
        cuda::store_values(from, piece, x_stride, layout, begin - past_keys, where,
                           values.units.data(), values.scales_of(layout));
        cuda::synchronise();
        begin += piece;
    }
    CHECK(keys.units.values() == k);  // and nothing else is written
    CHECK(values.units.values() == v);
    CHECK(compare_bits(keys.scales.values(), scales) == "");
    CHECK(compare_bits(values.scales.values(), scales) == "");
}

}  // namespace

TEST_CASE("cuda_kv_stored_piece_by_piece_matches_reference") {
    if (!has_device()) return;
    for (const DType type : types) {
        for (const int64_t head_dim : {1, 2, 7, 16, 20, 63, 80, 128, 130}) {
            const std::array<int64_t, 9> pieces{1, 1, 3, 0, 2, 63, 17, 33, 5};
            check_pieces({3, head_dim, type}, pieces, head_dim % 2 == 0);
        }
    }
}

TEST_CASE("cuda_kv_int8_of_zeros_tiny_numbers_and_no_numbers") {
    if (!has_device()) return;
    const float infinity = std::numeric_limits<float>::infinity();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const KvLayout layout{1, 2, DType::i8};
    const std::vector<float> x = {0.0f, -0.0f, 1e-45f, -1e-45f, infinity, 1.0f,
                                  1.0f, nan,   3e38f,  -3e38f,  2.5f,     -0.5f};
    auto k = memory_of(layout, layout.key_units(), 6);
    auto scales = scales_for(layout, 6);
    const DeviceArray<float> rows(x);
    const DeviceArray<uint32_t> found(k);
    const DeviceArray<float> found_scales(scales);
    cuda::store_keys(rows.data(), 6, 2, layout, 0, nullptr, found.data(), found_scales.data());
    reference::store_keys(x.data(), 6, 2, layout, 0, k.data(), scales.data());
    CHECK(found.values() == k);
    CHECK(compare_bits(found_scales.values(), scales) == "");
}

TEST_CASE("cuda_kv_does_not_depend_on_the_order_of_threads") {
    if (!has_device()) return;
    for (const DType type : types) {
        const KvLayout layout{2, 20, type};
        const DeviceArray<float> x(Numbers(5).floats(40 * 40));
        in_both_orders([&] {
            const DeviceArray<uint32_t> keys(memory_of(layout, layout.key_units(), 45));
            const DeviceArray<uint32_t> values(memory_of(layout, layout.value_units(), 45));
            const DeviceArray<float> scales(scales_for(layout, 45));
            cuda::store_keys(x.data(), 40, 40, layout, 5, nullptr, keys.data(), scales.data());
            cuda::store_values(x.data(), 40, 40, layout, 5, nullptr, values.data(), scales.data());
            std::vector<float> all = scales.values();
            for (const float k : keys_in(keys.values(), layout, 45)) all.push_back(k);
            for (const float v : values_in(values.values(), layout, 45)) all.push_back(v);
            return all;
        });
    }
}
