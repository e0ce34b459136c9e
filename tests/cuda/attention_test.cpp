// The GPU's attention against the reference: each of its kernels (few queries, many queries, any)
// with every rule of who sees what.
#include <algorithm>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/order.h"
#include "kernels/cuda/workspace.h"
#include "kernels/reference.h"
#include "tests/attention_problem.h"
#include "tests/cuda/device.h"
#include "tests/single_calls.h"

namespace mllama::cuda {
// Of kernels/cuda/attention.h, which kernels alone can include.
bool warpgroup_takes(const Attention& args, const Workspace& memory);
void attention_warpgroup(const Attention& args, Workspace& memory);
}  // namespace mllama::cuda

using namespace mllama;
using namespace mllama::test;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr Compute computes[] = {Compute::f32, Compute::bf16};
constexpr DType types[] = {DType::f32, DType::bf16, DType::f16, DType::i8};
constexpr DType fast_types[] = {DType::bf16, DType::i8};

/// Behind the last key there is no number.
std::vector<float> guarded(std::vector<float> scales, const KvLayout& layout, int64_t keys) {
    for (int64_t key = keys; key < KvLayout::blocks(keys) * KvLayout::block; ++key) {
        for (int64_t head = 0; head < layout.kv_heads; ++head)
            scales[static_cast<size_t>(layout.scale_index(head, key))] = not_a_number;
    }
    return scales;
}

/// The same behind one unit more.
std::vector<uint32_t> behind_a_unit(std::vector<uint32_t> units) {
    units.insert(units.begin(), 0u);
    return units;
}

/// A problem in memory of the device; misaligned: its keys do not begin at a multiple of 16 bytes.
struct OnDevice {
    const AttentionProblem& problem;
    bool misaligned;
    DeviceArray<float> q, k_scales, v_scales, key_bias;
    DeviceArray<uint32_t> k, v;
    DeviceArray<int64_t> first;
    DeviceArray<KeyRange> ranges;

    explicit OnDevice(const AttentionProblem& from, bool with_misaligned_keys = false)
        : problem(from),
          misaligned(with_misaligned_keys),
          q(from.q),
          k_scales(guarded(from.k_scales, from.args.layout(), from.shape.keys)),
          v_scales(guarded(from.v_scales, from.args.layout(), from.shape.keys)),
          key_bias(from.key_bias),
          k(misaligned ? behind_a_unit(from.k) : from.k),
          v(from.v),
          first(from.first),
          ranges(from.ranges) {}

    /// The queries from `begin` on, `count` of them.
    [[nodiscard]] Attention part(int64_t begin, int64_t count, float* out) const {
        Attention args = problem.part(begin, count, out);
        args.q = q.data() + begin * args.q_stride;
        args.k = k.data() + (misaligned ? 1 : 0);
        args.v = v.data();
        if (args.k_scales != nullptr) args.k_scales = k_scales.data();
        if (args.v_scales != nullptr) args.v_scales = v_scales.data();
        if (args.key_bias != nullptr) args.key_bias = key_bias.data();
        if (args.visible.first != nullptr) args.visible.first = first.data() + begin;
        if (args.visible.ranges != nullptr) args.visible.ranges = ranges.data();
        return args;
    }
};

/// No operation may read what another left in the workspace.
void spoil_workspace() {
    constexpr int64_t n = 1 << 16;
    const DeviceArray<float> no_numbers(std::vector<float>(n, not_a_number));
    cuda::copy_rows(cuda::workspace(), n * 4, no_numbers.data(), n * 4, n * 4, 1);
}

std::vector<float> attend(const OnDevice& device, Compute compute) {
    spoil_workspace();
    const AttentionProblem& problem = device.problem;
    const DeviceArray<float> out(problem.empty_output());
    one_sequence(cuda::attention, device.part(0, problem.shape.queries, out.data()), compute);
    return out.values();
}

void check(const AttentionProblem& problem, Compute compute, float logits = 1.0f) {
    const AttentionShape& s = problem.shape;
    CAPTURE(s.queries);
    CAPTURE(s.keys);
    CAPTURE(s.heads);
    CAPTURE(s.kv_heads);
    CAPTURE(s.head_dim);
    CAPTURE(std::string(dtype_name(problem.args.kv_dtype)));
    CAPTURE(compute == Compute::bf16);
    std::vector<float> expected = problem.empty_output();
    reference::attention(problem.args, compute, expected.data(), problem.args.out_stride);
    const OnDevice device(problem);
    const std::vector<float> found = attend(device, compute);
    CHECK(compare(found, expected, attention_tolerance(s, compute, logits)) == "");
}

/// As check with bfloat16, by each kernel for many queries that the device has.
void check_by_warpgroups_and_tiles(const AttentionProblem& problem) {
    for (const bool allowed : {true, false}) {
        CAPTURE(allowed);
        cuda::allow_warpgroups(allowed);
        check(problem, Compute::bf16);
    }
    cuda::allow_warpgroups(true);
}

/// Calls of several sequences.
struct Sequences {
    std::vector<std::unique_ptr<AttentionProblem>> problems;
    int64_t room = 0;  ///< keys: if not 0, the number of those that there are stands on the device

    AttentionProblem& add(const AttentionShape& shape, DType type, size_t seed) {
        problems.push_back(std::make_unique<AttentionProblem>(shape, type, 1.0f,
                                                              static_cast<uint32_t>(10 * seed)));
        return *problems.back();
    }

    /// All in one call, against one call each and against the reference.
    void check(Compute compute) const {
        std::vector<std::unique_ptr<OnDevice>> devices;
        std::vector<std::unique_ptr<DeviceArray<float>>> outs;
        std::vector<std::unique_ptr<DeviceArray<int64_t>>> pasts;
        std::vector<Attention> calls;
        for (const auto& problem : problems) {
            devices.push_back(std::make_unique<OnDevice>(*problem, devices.size() % 8 == 6));
            outs.push_back(std::make_unique<DeviceArray<float>>(problem->empty_output()));
            calls.push_back(devices.back()->part(0, problem->shape.queries, outs.back()->data()));
            if (room == 0) continue;
            pasts.push_back(std::make_unique<DeviceArray<int64_t>>(
                std::vector<int64_t>{problem->shape.keys - problem->shape.queries}));
            calls.back().visible = {};
            calls.back().past = pasts.back()->data();
            calls.back().keys = room;
        }
        spoil_workspace();
        cuda::attention(calls, compute);
        for (size_t i = 0; i < problems.size(); ++i) {
            const AttentionProblem& problem = *problems[i];
            CAPTURE(std::string(dtype_name(problem.args.kv_dtype)));
            CAPTURE(compute == Compute::bf16);
            CAPTURE(i);
            CAPTURE(problem.shape.keys);
            CHECK(compare_bits(outs[i]->values(), attend(*devices[i], compute)) == "");
            std::vector<float> expected = problem.empty_output();
            reference::attention(problem.args, compute, expected.data(), problem.args.out_stride);
            const Tolerance tolerance = attention_tolerance(problem.shape, compute, 1.0f);
            CHECK(compare(outs[i]->values(), expected, tolerance) == "");
        }
    }
};

/// Of any number of keys and every rule of who sees them, with some among them that are not decoded
/// with the others.
Sequences sequences(size_t count, DType type) {
    constexpr int64_t keys[] = {65, 1, 1000, 63, 64, 200, 0, 128, 129, 2};
    Sequences all;
    for (size_t i = 0; i < count; ++i) {
        const int64_t queries = i == 11 ? 6 : i == 13 ? 2 : 1;
        const int64_t head_dim = i == 5 ? 20 : 24;
        AttentionProblem& problem =
            all.add({queries, keys[(count + i) % std::size(keys)], 4, 2, head_dim}, type, i);
        if (i % 3 == 1) problem.causal_rule();
        if (i % 3 == 2) problem.random_mask();
        if (i % 4 == 2) problem.args.key_bias = problem.key_bias.data();
    }
    return all;
}

}  // namespace

TEST_CASE("cuda_attention_any_number_of_keys_and_queries_matches_reference") {
    if (!has_device()) return;
    for (const DType type : fast_types) {
        for (const int64_t keys : {0, 1, 2, 63, 64, 65, 127, 128, 129, 200}) {
            for (const int64_t queries : {1, 3, 17}) {
                check(AttentionProblem({queries, keys, 2, 1, 16}, type), Compute::bf16);
            }
        }
        for (const int64_t queries : {2, 4, 5, 16, 70, 150})
            check(AttentionProblem({queries, 75, 2, 2, 8}, type), Compute::bf16);
    }
    for (const int64_t keys : {0, 1, 63, 64, 65, 200}) {
        check(AttentionProblem({1, keys, 2, 1, 10}, DType::f32), Compute::f32);
        check(AttentionProblem({6, keys, 2, 1, 10}, DType::f32), Compute::f32);
    }
}

TEST_CASE("cuda_attention_any_head_dim_and_type_matches_reference") {
    if (!has_device()) return;
    for (const int64_t head_dim : {1, 8, 16, 20, 24, 40, 64, 72, 80, 88, 104, 128, 136}) {
        for (const DType type : types) {
            check(AttentionProblem({1, 43, 2, 2, head_dim}, type), Compute::bf16);
            check(AttentionProblem({6, 67, 1, 1, head_dim}, type), Compute::bf16);
            if (head_dim % 20 != 0) continue;
            check(AttentionProblem({1, 43, 2, 2, head_dim}, type), Compute::f32);
            check(AttentionProblem({6, 67, 1, 1, head_dim}, type), Compute::f32);
        }
    }
    for (const DType type : fast_types) {  // more than a tile of rows
        for (const int64_t head_dim : {80, 128})
            check(AttentionProblem({70, 200, 2, 1, head_dim}, type), Compute::bf16);
    }
    check(AttentionProblem({6, 67, 1, 1, 300}, DType::bf16), Compute::bf16);
}

TEST_CASE("cuda_attention_grouped_heads_and_causal_rules_match_reference") {
    if (!has_device()) return;
    for (const DType type : types) {
        for (const int64_t kv_heads : {1, 3}) {
            for (const int64_t queries : {1, 3, 6}) {
                AttentionProblem problem({queries, 140, 6, kv_heads, 8}, type);
                problem.causal_rule();
                check(problem, Compute::bf16);
                if (queries < 6) check(problem, Compute::f32);
            }
        }
    }
    for (const DType type : fast_types) {
        for (const int64_t kv_heads : {1, 2, 6}) {
            AttentionProblem problem({40, 170, 6, kv_heads, 24}, type);
            problem.causal();
            check(problem, Compute::bf16);
            problem.causal_rule();
            check(problem, Compute::bf16);
        }
    }
    for (const int64_t heads : {15, 16, 17, 33}) {  // around a tile of decode
        AttentionProblem problem({2, 70, heads, 1, 8}, DType::bf16);
        problem.causal_rule();
        check(problem, Compute::bf16);
    }
}

TEST_CASE("cuda_attention_random_ranges_and_key_bias_match_reference") {
    if (!has_device()) return;
    for (const DType type : fast_types) {
        for (const bool biased : {false, true}) {
            for (const int64_t queries : {1, 4, 60}) {
                AttentionProblem problem({queries, 400, 4, 2, 24}, type);
                if (biased) problem.args.key_bias = problem.key_bias.data();
                problem.random_mask();
                check(problem, Compute::bf16);
                if (queries < 60) check(problem, Compute::f32);
            }
        }
    }
    AttentionProblem problem({9, 300, 2, 1, 5}, DType::f32);
    problem.args.key_bias = problem.key_bias.data();
    problem.random_mask();
    check(problem, Compute::f32);
}

TEST_CASE("cuda_attention_of_many_rows_matches_reference") {
    if (!has_device()) return;
    for (const int64_t keys :
         {1, 2, 63, 64, 65, 128, 449})  // more steps than there are buffers for
        check_by_warpgroups_and_tiles(AttentionProblem({128, keys, 1, 1, 80}, DType::bf16));
    for (const int64_t queries : {128, 129, 191, 192, 193, 257})
        check_by_warpgroups_and_tiles(AttentionProblem({queries, 70, 1, 1, 80}, DType::bf16));
    for (const DType type : fast_types) {
        for (const int64_t head_dim : {64, 80, 128}) {
            check_by_warpgroups_and_tiles(AttentionProblem({90, 203, 3, 1, head_dim}, type));
            for (const bool biased : {false, true}) {
                AttentionProblem problem({45, 330, 6, 2, head_dim}, type);
                if (biased) problem.args.key_bias = problem.key_bias.data();
                problem.random_mask();
                check_by_warpgroups_and_tiles(problem);
                problem.causal_rule();
                check_by_warpgroups_and_tiles(problem);
            }
        }
    }
}

TEST_CASE("cuda_attention_by_three_warpgroups_matches_reference") {
    if (!has_device()) return;
    // As many heads as processors: three warpgroups go once over 130 rows, two would twice.
    const int64_t heads = cuda::processors();
    check(AttentionProblem({130, 70, heads, heads, 64}, DType::bf16), Compute::bf16);
    AttentionProblem coded({130, 70, heads, heads, 80}, DType::i8);
    coded.random_mask();
    check(coded, Compute::bf16);
    AttentionProblem problem({130, 265, heads, heads, 80}, DType::bf16);
    problem.causal_rule();
    check(problem, Compute::bf16);
    const OnDevice device(problem);
    in_both_orders([&] { return attend(device, Compute::bf16); });
}

TEST_CASE("cuda_attention_packs_some_heads_at_a_time_where_there_is_not_room_for_all") {
    if (!has_device()) return;
    constexpr int64_t keys = 300;
    for (const DType type : fast_types) {
        AttentionProblem problem({64, keys, 6, 3, 64}, type);
        problem.random_mask();
        const OnDevice device(problem);
        spoil_workspace();
        const DeviceArray<float> out(problem.empty_output());
        const Attention args = device.part(0, 64, out.data());
        cuda::Workspace memory;
        const int64_t of_head = 2 * KvLayout::blocks(keys) * KvLayout::block * 64 * 2;
        constexpr int64_t gaps = 1024;
        memory.take<std::byte>(memory.left() - 2 * of_head - gaps);  // two of three
        if (!cuda::warpgroup_takes(args, memory)) continue;          // another device
        cuda::attention_warpgroup(args, memory);
        CHECK(compare_bits(out.values(), attend(device, Compute::bf16)) == "");
        cuda::Workspace full;
        full.take<std::byte>(full.left() - of_head / 2);
        CHECK(!cuda::warpgroup_takes(args, full));
    }
}

TEST_CASE("cuda_attention_of_many_rows_keeps_their_rules_apart") {
    if (!has_device()) return;
    for (const DType type : fast_types) {
        AttentionProblem hidden({150, 300, 1, 1, 80}, type);  // all but one key, and all
        for (size_t j = 0; j < 300; ++j) hidden.key_bias[j] = j == 260 ? 0.25f : -infinity;
        hidden.args.key_bias = hidden.key_bias.data();
        check_by_warpgroups_and_tiles(hidden);
        hidden.key_bias[260] = -infinity;
        check_by_warpgroups_and_tiles(hidden);

        AttentionProblem blind({150, 300, 1, 1, 80}, type);  // only the first query sees a key
        blind.first.assign(151, 1);
        blind.first[0] = 0;
        blind.ranges = {{280, 281}};
        blind.args.visible = {blind.first.data(), blind.ranges.data()};
        check_by_warpgroups_and_tiles(blind);
    }
    AttentionProblem large({130, 260, 1, 1, 64}, DType::bf16, 100.0f);
    for (const bool allowed : {true, false}) {
        cuda::allow_warpgroups(allowed);
        check(large, Compute::bf16, 100.0f);
    }
    AttentionProblem no_number({150, 200, 1, 1, 80}, DType::bf16);
    no_number.q[static_cast<size_t>(2 * no_number.args.q_stride + 1)] = not_a_number;
    no_number.causal_rule();
    check_by_warpgroups_and_tiles(no_number);
}

TEST_CASE("cuda_attention_by_warpgroups_does_not_depend_on_the_order_of_threads") {
    if (!has_device()) return;
    AttentionProblem problem({50, 400, 8, 2, 80}, DType::i8);
    problem.random_mask();
    const OnDevice device(problem);
    in_both_orders([&] { return attend(device, Compute::bf16); });
}

TEST_CASE("cuda_attention_ranges_that_are_empty_or_behind_the_last_key_show_nothing") {
    if (!has_device()) return;
    for (const DType type : fast_types) {
        for (const int64_t queries : {1, 6}) {
            AttentionProblem problem({queries, 128, 2, 1, 16}, type);
            problem.ranges = {
                {0, 0}, {70, 70}, {100, 110}, {126, 1000}, {1000, int64_t{1} << 40}, {128, 129}};
            problem.first = {0, 5};
            while (problem.first.size() <= static_cast<size_t>(queries)) problem.first.push_back(6);
            problem.args.visible = {problem.first.data(), problem.ranges.data()};
            for (const Compute compute : computes) check(problem, compute);
        }
    }
}

TEST_CASE("cuda_attention_large_logits_match_reference") {
    if (!has_device()) return;
    for (const int64_t queries : {1, 10}) {
        check(AttentionProblem({queries, 260, 2, 1, 16}, DType::f32, 100.0f), Compute::f32, 100.0f);
        check(AttentionProblem({queries, 260, 2, 1, 16}, DType::bf16, 100.0f), Compute::bf16,
              100.0f);
    }
}

TEST_CASE("cuda_attention_query_that_sees_nothing_is_zero") {
    if (!has_device()) return;
    for (const DType type : fast_types) {
        for (const int64_t queries : {2, 20}) {
            AttentionProblem problem({queries, 300, 2, 1, 8}, type);
            problem.first.assign(static_cast<size_t>(queries + 1), 1);
            problem.first[0] = problem.first[1] = 0;
            problem.ranges = {{280, 281}};
            problem.args.visible = {problem.first.data(), problem.ranges.data()};
            for (const Compute compute : computes) {
                const std::vector<float> out = attend(OnDevice(problem), compute);
                for (size_t i = 0; i < 16; ++i) CHECK(out[i] == 0.0f);
                CHECK(out[16] == 7.0f);  // the gap between rows
                check(problem, compute);
            }
        }
    }
}

TEST_CASE("cuda_attention_key_bias_of_minus_infinity_hides_a_key") {
    if (!has_device()) return;
    for (const int64_t queries : {3, 20}) {
        for (const DType type : fast_types) {
            for (const int64_t first_hidden : {0, 1, 100}) {  // all, all but one, some
                AttentionProblem problem({queries, 270, 2, 1, 8}, type);
                for (size_t j = 0; j < 270; ++j) {
                    problem.key_bias[j] =
                        static_cast<int64_t>(j) >= first_hidden ? -infinity : 0.25f;
                }
                std::reverse(problem.key_bias.begin(), problem.key_bias.end());
                problem.args.key_bias = problem.key_bias.data();
                for (const Compute compute : computes) check(problem, compute);
            }
        }
    }
}

TEST_CASE("cuda_attention_nan_reaches_the_rows_that_see_it") {
    if (!has_device()) return;
    for (const Compute compute : computes) {
        for (const int64_t queries : {3, 20}) {
            AttentionProblem problem({queries, 200, 2, 1, 16}, DType::bf16);
            problem.q[static_cast<size_t>(2 * problem.args.q_stride + 1)] = not_a_number;
            problem.causal_rule();
            check(problem, compute);
        }
        for (const int64_t queries : {1, 20}) {  // a key: only the last query sees it
            AttentionProblem problem({queries, 200, 2, 1, 16}, DType::bf16);
            const KvLayout layout = problem.args.layout();
            reinterpret_cast<uint16_t*>(
                problem.k.data())[static_cast<size_t>(layout.key_index(0, 199, 3))] = 0x7FC0;
            problem.causal_rule();
            check(problem, compute);
        }
    }
}

TEST_CASE("cuda_attention_of_misaligned_blocks_matches_reference") {
    if (!has_device()) return;
    for (const int64_t queries : {1, 9}) {
        const AttentionProblem problem({queries, 70, 2, 1, 16}, DType::bf16);
        const OnDevice device(problem, true);
        std::vector<float> expected = problem.empty_output();
        reference::attention(problem.args, Compute::bf16, expected.data(), problem.args.out_stride);
        CHECK(compare(attend(device, Compute::bf16), expected,
                      attention_tolerance(problem.shape, Compute::bf16, 1.0f)) == "");
    }
}

TEST_CASE("cuda_attention_with_past_on_the_device_equals_plain_numbers_bit_for_bit") {
    if (!has_device()) return;
    for (const DType type : types) {
        for (const Compute compute : computes) {
            for (const int64_t queries : {1, 2, 5}) {
                for (const int64_t keys : {20, 140}) {
                    AttentionProblem problem({queries, keys, 2, 1, 8}, type);
                    problem.causal_rule();
                    const OnDevice device(problem);
                    const DeviceArray<float> out(problem.empty_output());
                    const DeviceArray<int64_t> past(std::vector<int64_t>{keys - queries});
                    Attention args = device.part(0, queries, out.data());
                    args.visible = {};
                    args.past = past.data();
                    args.keys = keys + 300;  // room that grids are made for, and never read
                    one_sequence(cuda::attention, args, compute);
                    CHECK(compare_bits(out.values(), attend(device, compute)) == "");
                }
            }
        }
    }
}

TEST_CASE("cuda_attention_in_a_graph_reads_past_anew") {
    if (!has_device()) return;
    AttentionProblem problem({1, 300, 4, 2, 16}, DType::bf16);
    const OnDevice device(problem);
    const DeviceArray<float> out(problem.empty_output());
    const DeviceArray<int64_t> past(std::vector<int64_t>{0});
    Attention args = device.part(0, 1, out.data());
    args.past = past.data();
    one_sequence(cuda::attention, args,
                 Compute::bf16);  // the workspace is taken before anything is recorded
    cuda::Graph graph;
    graph.begin();
    one_sequence(cuda::attention, args, Compute::bf16);
    graph.end();
    for (const int64_t keys : {1, 64, 129, 300}) {
        const DeviceArray<int64_t> now(std::vector<int64_t>{keys - 1});
        cuda::copy_rows(past.data(), 8, now.data(), 8, 8, 1);
        graph.launch();
        problem.args.keys = keys;
        CHECK(compare_bits(out.values(), attend(device, Compute::bf16)) == "");
    }
}

TEST_CASE("cuda_attention_of_few_queries_does_not_depend_on_how_many_bit_for_bit") {
    if (!has_device()) return;
    for (const DType type : types) {
        for (const Compute compute : computes) {
            AttentionProblem problem({4, 300, 2, 1, 24}, type);
            problem.causal_rule();
            const OnDevice device(problem);
            const DeviceArray<float> out(problem.empty_output());
            for (int64_t i = 0; i < 4; ++i) {  // as a decoder would: only the keys that exist yet
                Attention step = device.part(i, 1, out.data());
                step.keys = 296 + i + 1;
                step.visible = {};
                one_sequence(cuda::attention, step, compute);
            }
            CHECK(compare_bits(out.values(), attend(device, compute)) == "");
        }
    }
}

TEST_CASE("cuda_attention_of_several_sequences_gives_each_what_it_gets_alone_bit_for_bit") {
    if (!has_device()) return;
    for (const DType type : types) {
        for (const size_t count : {1, 2, 8, 9, 17}) sequences(count, type).check(Compute::bf16);
        sequences(9, type).check(Compute::f32);
    }
}

TEST_CASE("cuda_attention_of_several_sequences_for_whose_parts_there_is_no_room_at_once") {
    if (!has_device()) return;
    // The partial results of room for so many keys take two fifths of the workspace: two calls fit.
    constexpr int64_t head_dim = 128, heads = 32;
    const int64_t pieces_of_room = cuda::workspace_bytes * 2 / 5 / ((head_dim + 2) * 4 * heads);
    Sequences all;
    for (const size_t keys : {200, 130, 70, 20, 1})
        all.add({1, static_cast<int64_t>(keys), heads, 2, head_dim}, DType::bf16, keys)
            .causal_rule();
    all.room = 128 * pieces_of_room;
    all.check(Compute::bf16);
}

TEST_CASE("cuda_attention_does_not_depend_on_the_order_of_threads") {
    if (!has_device()) return;
    for (const DType type : fast_types) {
        for (const int64_t queries : {2, 50}) {
            for (const int64_t head_dim : {20, 80, 128}) {
                AttentionProblem problem({queries, 270, 2, 1, head_dim}, type);
                problem.random_mask();
                const OnDevice device(problem);
                in_both_orders([&] { return attend(device, Compute::bf16); });
            }
        }
    }
}

TEST_CASE("cuda_attention_weights_match_reference") {
    if (!has_device()) return;
    for (const DType type : types) {
        for (const bool masked : {false, true}) {
            AttentionProblem problem({7, 150, 6, 2, 9}, type);
            problem.args.key_bias = problem.key_bias.data();
            if (masked) problem.random_mask();
            const OnDevice device(problem);
            std::vector<float> expected(7 * 150 * 6);
            for (int64_t head = 0; head < 6; ++head) {
                reference::attention_weights(problem.args, Compute::f32, head,
                                             expected.data() + head * 7 * 150);
            }
            in_both_orders([&] {
                DeviceArray<float> found(expected);
                cuda::attention_weights(device.part(0, 7, nullptr), found.data());
                CHECK(compare(found.values(), expected,
                              attention_tolerance(problem.shape, Compute::f32, 1.0f)) == "");
                return found.values();
            });
        }
    }
}
