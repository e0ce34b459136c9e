// The path of a token allocates nothing: scratch memory grows to the sizes of the first call and is
// kept.
#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "kernels/cpu_ops.h"
#include "tests/allocation_counter.h"
#include "tests/compare.h"
#include "tests/single_calls.h"

namespace mllama::test {

TEST_CASE("second_call_of_the_same_sizes_allocates_nothing") {
    const int before = cpu::threads();
    for_each_table([] {
        for (const int64_t rows : {1, 9, 40}) {
            // More threads than items at times: one meets its first in the second call, or never.
            cpu::set_threads(rows == 9 ? 1 : 3);
            const int64_t k = 96, n = 200, keys = 1300;
            std::vector<float> x = Numbers(1).floats(rows * k), out(static_cast<size_t>(rows * n));
            const std::vector<float> kv = Numbers(2).floats(KvLayout::blocks(keys) * 64 * k);
            const Typed w(Numbers(3).floats(n * k), DType::bf16);
            Attention args;
            args.q = x.data();
            args.k = kv.data();
            args.v = kv.data();
            args.out = out.data();
            args.queries = rows;
            args.keys = keys;
            args.heads = args.kv_heads = 3;
            args.head_dim = 32;
            args.q_stride = args.out_stride = k;
            const auto step = [&] {
                cpu::rms_norm(x.data(), rows, k, kv.data(), DType::f32, 1e-5f, x.data());
                one_layer(cpu::linear, x.data(), rows, k, {w.data(), DType::bf16, n, k, k}, {},
                          Compute::bf16, out.data(), n);
                one_layer(cpu::linear, x.data(), rows, k, {w.data(), DType::bf16, n, k, k}, {},
                          Compute::f32, out.data(), n);
                one_sequence(cpu::attention, args, Compute::bf16);
                cpu::activate(out.data(), rows * n, Activation::gelu);
            };
            step();
            const int64_t counted_before = allocations;
            step();
            CHECK(allocations - counted_before == 0);
        }
    });
    CHECK(allocations > 0);  // the counter counts
    cpu::set_threads(before);
}

}  // namespace mllama::test
