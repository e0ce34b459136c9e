// The whole program on a GPU against transformers 4.56.2: the same goldens as on the CPU, through
// the emulated device where there is none.
#include <doctest/doctest.h>

#include <cstdlib>

#include "tensor/gpu.h"
#include "tests/cuda/device.h"
#include "tests/golden_checks.h"

using namespace mllama;
using namespace mllama::test;

namespace {

Engine on_gpu() {
    return {MLLAMA_CUDA_PROGRAM, {"--device", "cuda"}};
}

/// The last of the text layers on the GPU, the others on the CPU.
Engine on_both() {
    return {MLLAMA_CUDA_PROGRAM, {"--device", "cuda", "--gpu-layers", "2"}};
}

/// Two checkpoints take a minute each on the emulated device: there only if MLLAMA_SLOW_TESTS is
/// set. A real one runs all.
bool has_time() {
    if (!has_device()) return false;
    if (gpu_info().name != "emulated" || std::getenv("MLLAMA_SLOW_TESTS")) return true;
    MESSAGE("case skipped: slow on the emulated device; MLLAMA_SLOW_TESTS=1 runs it");
    return false;
}

}  // namespace

TEST_CASE("cuda_program_equals_transformers_with_equal_padding_tiles_and_grouped_heads") {
    if (has_time()) check_checkpoint(on_gpu(), "a_published");
}

TEST_CASE("cuda_program_equals_transformers_with_any_tile_embeddings_and_all_heads") {
    if (has_time()) check_checkpoint(on_gpu(), "b_general");
}

TEST_CASE("cuda_program_equals_transformers_with_three_tiles_one_kv_head_and_other_names") {
    if (has_device()) check_checkpoint(on_gpu(), "c_three_tiles");
}

TEST_CASE("cuda_program_equals_transformers_in_float32_from_bf16_weights") {
    if (has_device()) check_checkpoint(on_gpu(), "d_bf16");
}

TEST_CASE("cuda_program_equals_transformers_with_layers_on_both_devices") {
    if (has_device()) check_checkpoint(on_both(), "c_three_tiles");
}
