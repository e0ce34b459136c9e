// The GPU's storing of keys and values against the reference, to the bit.
#include <array>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <vector>

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
        const NewKeysValues sequence{from,
                                     from,
                                     piece,
                                     x_stride,
                                     x_stride,
                                     layout,
                                     begin - past_keys,
                                     where,
                                     keys.units.data(),
                                     values.units.data(),
                                     keys.scales_of(layout),
                                     values.scales_of(layout)};
        cuda::store_keys_values({&sequence, 1});
        cuda::synchronise();
        begin += piece;
    }
    CHECK(keys.units.values() == k);  // and nothing else is written
    CHECK(values.units.values() == v);
    CHECK(compare_bits(keys.scales.values(), scales) == "");
    CHECK(compare_bits(values.scales.values(), scales) == "");
}

/// Rows of one sequence behind `begin` others, half of which stand in `past`; what the reference makes
/// of them, and room for the same on the device.
class SequenceRows {
  public:
    SequenceRows(const KvLayout& layout, int64_t begin, int64_t rows, uint32_t seed)
        : layout_(layout),
          begin_(begin),
          rows_(rows),
          k_(Numbers(seed).floats(rows * k_stride())),
          v_(Numbers(seed + 1).floats(rows * v_stride())),
          expected_k_(memory_of(layout, layout.key_units(), begin + rows)),
          expected_v_(memory_of(layout, layout.value_units(), begin + rows)),
          k_scales_(scales_for(layout, begin + rows)),
          v_scales_(k_scales_),
          keys_{DeviceArray<uint32_t>(expected_k_), DeviceArray<float>(k_scales_)},
          values_{DeviceArray<uint32_t>(expected_v_), DeviceArray<float>(v_scales_)},
          device_k_(k_),
          device_v_(v_),
          past_(std::vector<int64_t>{begin / 2}) {
        reference::store_keys(k_.data(), rows, k_stride(), layout, begin, expected_k_.data(),
                              k_scales_.data());
        reference::store_values(v_.data(), rows, v_stride(), layout, begin, expected_v_.data(),
                                v_scales_.data());
    }

    [[nodiscard]] NewKeysValues args() const {
        return {device_k_.data(),
                device_v_.data(),
                rows_,
                k_stride(),
                v_stride(),
                layout_,
                begin_ - begin_ / 2,
                past_.data(),
                keys_.units.data(),
                values_.units.data(),
                keys_.scales_of(layout_),
                values_.scales_of(layout_)};
    }

    void check() const {
        CAPTURE(std::string(dtype_name(layout_.dtype)));
        CAPTURE(begin_);
        CAPTURE(rows_);
        CHECK(keys_.units.values() == expected_k_);
        CHECK(values_.units.values() == expected_v_);
        CHECK(compare_bits(keys_.scales.values(), k_scales_) == "");
        CHECK(compare_bits(values_.scales.values(), v_scales_) == "");
    }

  private:
    [[nodiscard]] int64_t k_stride() const { return layout_.kv_heads * layout_.head_dim + 1; }
    [[nodiscard]] int64_t v_stride() const { return layout_.kv_heads * layout_.head_dim + 2; }

    KvLayout layout_;
    int64_t begin_, rows_;
    std::vector<float> k_, v_;
    std::vector<uint32_t> expected_k_, expected_v_;
    std::vector<float> k_scales_, v_scales_;
    DeviceKv keys_, values_;
    DeviceArray<float> device_k_, device_v_;
    DeviceArray<int64_t> past_;
};

}  // namespace

TEST_CASE("cuda_kv_of_several_sequences_stored_together_matches_reference_for_each") {
    if (!has_device()) return;
    constexpr int64_t rows[] = {1, 63, 0, 64, 65, 1, 200, 5, 1, 31, 33};
    for (const uint32_t count : {1u, 2u, 7u, 8u, 9u, 17u, 40u}) {
        std::vector<std::unique_ptr<SequenceRows>> all;
        std::vector<NewKeysValues> args;
        Numbers numbers(count);
        for (uint32_t i = 0; i < count; ++i) {
            // Runs of a type, of 11 sequences at most; all else differs from one to the next.
            const DType type = types[(count + i) / 11 % 4];
            const KvLayout layout{1 + numbers.below(3), 1 + numbers.below(40), type};
            all.push_back(std::make_unique<SequenceRows>(layout, numbers.below(130),
                                                         rows[(count + i) % std::size(rows)], i));
            args.push_back(all.back()->args());
        }
        CAPTURE(count);
        cuda::store_keys_values(args);
        for (const auto& sequence : all) sequence->check();
    }
}

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
    auto v = memory_of(layout, layout.value_units(), 6);
    auto scales = scales_for(layout, 6);
    const DeviceArray<float> rows(x);
    const DeviceArray<uint32_t> found_k(k), found_v(v);
    const DeviceArray<float> k_scales(scales), v_scales(scales);
    const NewKeysValues sequence{rows.data(),
                                 rows.data(),
                                 6,
                                 2,
                                 2,
                                 layout,
                                 0,
                                 nullptr,
                                 found_k.data(),
                                 found_v.data(),
                                 k_scales.data(),
                                 v_scales.data()};
    cuda::store_keys_values({&sequence, 1});
    reference::store_keys(x.data(), 6, 2, layout, 0, k.data(), scales.data());
    CHECK(found_k.values() == k);
    CHECK(compare_bits(k_scales.values(), scales) == "");
    reference::store_values(x.data(), 6, 2, layout, 0, v.data(), scales.data());
    CHECK(found_v.values() == v);
    CHECK(compare_bits(v_scales.values(), scales) == "");
}

TEST_CASE("cuda_kv_does_not_depend_on_the_order_of_threads") {
    if (!has_device()) return;
    for (const DType type : types) {
        const KvLayout layout{2, 20, type};
        const DeviceArray<float> x(Numbers(5).floats(40 * 40));
        in_both_orders([&] {
            const DeviceArray<uint32_t> keys(memory_of(layout, layout.key_units(), 45));
            const DeviceArray<uint32_t> values(memory_of(layout, layout.value_units(), 45));
            const DeviceArray<float> k_scales(scales_for(layout, 45)), v_scales(k_scales.values());
            const NewKeysValues sequence{x.data(),
                                         x.data(),
                                         40,
                                         40,
                                         40,
                                         layout,
                                         5,
                                         nullptr,
                                         keys.data(),
                                         values.data(),
                                         k_scales.data(),
                                         v_scales.data()};
            cuda::store_keys_values({&sequence, 1});
            std::vector<float> all = k_scales.values();
            for (const float scale : v_scales.values()) all.push_back(scale);
            for (const float k : keys_in(keys.values(), layout, 45)) all.push_back(k);
            for (const float v : values_in(values.values(), layout, 45)) all.push_back(v);
            return all;
        });
    }
}
