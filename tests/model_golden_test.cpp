// The whole program against transformers 4.56.2 on every golden case.
#include <doctest/doctest.h>

#include "tests/golden_checks.h"

using namespace mllama;
using namespace mllama::test;

namespace {

/// Logits with int8 keys and values, each within 1/254 of the largest of its head. Measured: 0.95 to
/// 1.62 % of the largest logit.
constexpr double int8_kv_share = 3.3e-2;

Engine on_cpu() {
    return {MLLAMA_PROGRAM, {"--device", "cpu"}};
}

}  // namespace

TEST_CASE("goldens_hold_checkpoints_of_several_shapes") {
    CHECK(golden_checkpoints().size() >= 4);
}

TEST_CASE("program_equals_transformers_with_equal_padding_tiles_and_grouped_heads") {
    check_checkpoint(on_cpu(), "a_published");
}

TEST_CASE("program_equals_transformers_with_any_tile_embeddings_and_all_heads") {
    check_checkpoint(on_cpu(), "b_general");
}

TEST_CASE("program_equals_transformers_with_three_tiles_one_kv_head_and_other_names") {
    check_checkpoint(on_cpu(), "c_three_tiles");
}

TEST_CASE("logits_with_int8_keys_and_values_are_near_those_of_float32_and_not_the_same") {
    for (const GoldenCase& golden : golden_cases("a_published")) {
        CAPTURE(golden.name);
        const TemporaryDirectory folder;
        const SafetensorsFile exact = on_cpu().forward(golden, folder, {"--dtype", "f32"});
        const SafetensorsFile int8 =
            on_cpu().forward(golden, folder, {"--dtype", "f32", "--kv-dtype", "int8"});
        for (const TensorInfo& info : exact.tensors()) {
            if (info.name.rfind("logits", 0) != 0) continue;
            const Tensor expected = exact.get(info.name), found = int8.get(info.name);
            CHECK(compare_to_largest(found, expected, int8_kv_share) == "");
            CHECK(compare_to_largest(found, expected, state_share) != "");
        }
    }
}

TEST_CASE("program_equals_transformers_in_float32_from_bf16_weights") {
    check_checkpoint(on_cpu(), "d_bf16");
}
