// The emulated device itself: whether tests that pass on it say anything. Kernels are written here,
// so these tests cannot run on a GPU; device_test.cpp has those that do.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <csignal>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "kernels/cuda/barrier.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/order.h"
#include "kernels/cuda/warp.h"
#include "kernels/cuda/warpgroup.h"
#include "kernels/error.h"
#include "tests/cuda/device.h"

namespace mllama::test {
namespace {

using cuda::after_previous;
using cuda::dynamic_shared;
using cuda::launch;

constexpr unsigned threads = 64;
constexpr unsigned warp = cuda::warp_size;

/// out[t] = x[the next thread], by way of shared memory.
__global__ void give_to_neighbour(const float* x, float* out, bool with_barrier) {
    after_previous();
    __shared__ float values[threads];
    values[threadIdx.x] = x[threadIdx.x];
    if (with_barrier) __syncthreads();
    out[threadIdx.x] = values[(threadIdx.x + 1) % threads];
    __syncthreads();
    values[threadIdx.x] = 0;
}

/// The same within a warp.
__global__ void give_in_warp(const float* x, float* out, bool with_barrier) {
    after_previous();
    __shared__ float values[warp];
    values[threadIdx.x] = x[threadIdx.x];
    if (with_barrier) __syncwarp();
    out[threadIdx.x] = values[(threadIdx.x + 1) % warp];
    __syncwarp();
    values[threadIdx.x] = 0;
}

/// out[t] = the first of the other warp; a warp that is ahead writes it again after a shuffle.
__global__ void give_to_other_warp(const float* x, float* out, bool with_barrier) {
    after_previous();
    __shared__ float of_warp[threads / warp];
    if (threadIdx.x % warp == 0) of_warp[threadIdx.x / warp] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = of_warp[1 - threadIdx.x / warp];
    __syncwarp();
    if (with_barrier) __syncthreads();
    if (threadIdx.x % warp == 0) of_warp[threadIdx.x / warp] = 0;
    __syncthreads();
}

/// What a kernel of (x, out, with_barrier) gives with the threads in either order.
template <class Kernel>
std::vector<float> run_in_order(Kernel kernel, unsigned n, bool with_barrier, bool reversed) {
    const std::vector<float> x = Numbers(1).floats(n);
    const DeviceArray<float> in(x), out(x);
    cuda::set_reversed(reversed);
    launch("test", kernel, 1, n, 0, in.data(), out.data(), with_barrier);
    cuda::set_reversed(false);
    return out.values();
}

}  // namespace

TEST_CASE("emulation_without_a_barrier_the_two_orders_differ") {
    CHECK(run_in_order(give_to_neighbour, threads, false, false) !=
          run_in_order(give_to_neighbour, threads, false, true));
    CHECK(run_in_order(give_in_warp, warp, false, false) !=
          run_in_order(give_in_warp, warp, false, true));
    CHECK(run_in_order(give_to_other_warp, threads, false, false) !=
          run_in_order(give_to_other_warp, threads, false, true));
}

TEST_CASE("emulation_with_a_barrier_both_orders_give_what_is_meant") {
    for (const bool reversed : {false, true}) {
        std::vector<float> expected = Numbers(1).floats(threads);
        std::rotate(expected.begin(), expected.begin() + 1, expected.end());
        CHECK(run_in_order(give_to_neighbour, threads, true, reversed) == expected);
        expected = Numbers(1).floats(warp);
        std::rotate(expected.begin(), expected.begin() + 1, expected.end());
        CHECK(run_in_order(give_in_warp, warp, true, reversed) == expected);
        const std::vector<float> x = Numbers(1).floats(threads);
        expected.assign(warp, x[warp]);
        expected.resize(threads, x[0]);
        CHECK(run_in_order(give_to_other_warp, threads, true, reversed) == expected);
    }
}

namespace {

constexpr int pieces_of_work = 5;

/// The last warp brings pieces of 16 bytes through one place in shared memory; the first adds
/// them up.
__global__ void bring_and_add(const uint32_t* x, float* out) {
    after_previous();
    alignas(16) __shared__ uint32_t piece[4];
    __shared__ cuda::Barrier full, empty;
    if (threadIdx.x == 0) {
        full.make(warp);
        empty.make(warp);
        cuda::made_barriers();
    }
    __syncthreads();
    uint32_t sum = 0;
    for (unsigned i = 0; i < pieces_of_work; ++i) {
        if (threadIdx.x >= warp) {
            if (i > 0) empty.wait(i - 1);
            if (threadIdx.x == warp) {
                full.arrive_expecting(16);
                full.copy(piece, x + 4 * i, 16);
            } else {
                full.arrive();
            }
        } else {
            full.wait(i);
            sum += piece[threadIdx.x % 4];
            empty.arrive();
        }
    }
    out[threadIdx.x] = static_cast<float>(sum);
}

/// Pairs of warps meet; each thread then reads what the other warp of its pair has written.
__global__ void meet_in_pairs(float* out, bool meet) {
    after_previous();
    __shared__ float values[4 * warp];
    const unsigned pair = threadIdx.x / (2 * warp);
    values[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (meet) cuda::group_barrier(1 + pair, 2 * warp);
    out[threadIdx.x] = values[threadIdx.x ^ warp];
    if (meet) cuda::group_barrier(1 + pair, 2 * warp);
    values[threadIdx.x] = 0;
}

/// Arrivals that never come.
__global__ void wait_for_more_than_arrive() {
    after_previous();
    __shared__ cuda::Barrier barrier;
    if (threadIdx.x == 0) barrier.make(warp + 1);
    __syncthreads();
    barrier.arrive();
    barrier.wait(0);
}

/// A group that is one warp short.
__global__ void meet_without_the_others() {
    after_previous();
    if (threadIdx.x < warp) cuda::group_barrier(1, 2 * warp);
}

/// c (64, n) = a b twice, the second time added. a (64, 16), b (n, pieces) of which `piece` and the
/// next are multiplied.
template <int n, int pieces>
__global__ void multiply_by_a_warpgroup(const uint16_t* a, const uint4* b, int piece, float* c) {
    after_previous();
    const unsigned w = threadIdx.x / warp, group = threadIdx.x % warp / 4, quad = threadIdx.x % 4;
    uint32_t mine[4];
    for (unsigned i = 0; i < 4; ++i)
        std::memcpy(&mine[i], a + (16 * w + group + i % 2 * 8) * 16 + i / 2 * 8 + 2 * quad, 4);
    float sums[n / 8][4];
    cuda::products_begin();
    for (const bool add : {false, true})
        cuda::multiply(sums, mine, cuda::SharedFactor<pieces>(b), piece, add);
    cuda::products_commit();
    cuda::products_wait<0>(sums);
    for (unsigned j = 0; j < n / 8; ++j) {
        for (unsigned i = 0; i < 4; ++i)
            c[(16 * w + group + i / 2 * 8) * n + 8 * j + 2 * quad + i % 2] = sums[j][i];
    }
}

/// bfloat16 of small whole numbers: sums are exact.
std::vector<uint16_t> small_numbers(uint32_t seed, size_t n) {
    Numbers numbers(seed);
    std::vector<uint16_t> values;
    for (size_t i = 0; i < n; ++i)
        values.push_back(f32_to_bf16(static_cast<float>(numbers.below(17) - 8)));
    return values;
}

template <int n, int pieces>
void check_warpgroup(int piece) {
    const std::vector<uint16_t> a = small_numbers(3, 64 * 16);
    const std::vector<uint16_t> b = small_numbers(4, size_t{n} * pieces * 8);  // (n, 8 pieces)
    std::vector<uint16_t> placed(b.size());
    for (int column = 0; column < n; ++column) {
        for (int i = 0; i < pieces; ++i) {
            std::copy_n(b.begin() + (column * pieces + i) * 8, 8,
                        placed.begin() + cuda::place_of(pieces, column, i) * 8);
        }
    }
    std::vector<float> expected(size_t{64} * n);
    for (size_t row = 0; row < 64; ++row) {
        for (size_t column = 0; column < n; ++column) {
            for (size_t k = 0; k < 16; ++k) {
                const size_t at = column * pieces * 8 + static_cast<size_t>(piece) * 8 + k;
                expected[row * n + column] +=
                    2.0f * bf16_to_f32(a[row * 16 + k]) * bf16_to_f32(b[at]);
            }
        }
    }
    const DeviceArray<uint16_t> on_a(a);
    const DeviceArray<uint16_t> on_b(placed);
    const DeviceArray<float> on_c(std::vector<float>(expected.size(), 7.0f));
    launch("test", multiply_by_a_warpgroup<n, pieces>, 1, 128, 0, on_a.data(),
           reinterpret_cast<const uint4*>(on_b.data()), piece, on_c.data());
    CHECK(on_c.values() == expected);
}

/// Half of a warp waits for the block, the other half for the warp.
__global__ void two_barriers_for_one_warp() {
    after_previous();
    if (threadIdx.x < warp / 2) {
        __syncthreads();
    } else {
        __syncwarp();
    }
}

__global__ void shuffle_without_the_last_lane(float* out) {
    after_previous();
    if (threadIdx.x == warp - 1) return;
    out[threadIdx.x] = __shfl_sync(cuda::whole_warp, out[threadIdx.x], 0);
}

/// On a GPU too, threads that have ended are not waited for.
__global__ void barrier_after_some_have_ended(float* out) {
    after_previous();
    if (threadIdx.x >= warp) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

/// Thread 5 throws while those before it wait.
__global__ void throwing_kernel(float* out) {
    after_previous();
    float values[16] = {};  // with marked ends, in a frame that is never returned from
    values[threadIdx.x % 16] = 1;
    if (threadIdx.x == 5) throw Error("from a kernel");
    __syncwarp();
    out[threadIdx.x] = values[threadIdx.x % 16];
}

__global__ void nothing() {
    after_previous();
}

__global__ void not_after_previous() {
    if (threadIdx.x != 3) after_previous();
}

}  // namespace

TEST_CASE("emulation_reports_a_barrier_that_not_all_threads_reach") {
    const DeviceArray<float> out(std::vector<float>(threads, 0.0f));
    CHECK_THROWS_AS(launch("test", two_barriers_for_one_warp, 1, threads, 0), Error);
    CHECK_THROWS_AS(launch("test", shuffle_without_the_last_lane, 1, warp, 0, out.data()), Error);
    CHECK_THROWS_AS(launch("test", throwing_kernel, 1, threads, 0, out.data()), Error);
    // and goes on with the next kernel as if nothing had been
    launch("test", barrier_after_some_have_ended, 1, threads, 0, out.data());
    CHECK(out.values()[0] == 1.0f);
    CHECK(out.values()[warp] == 0.0f);
}

TEST_CASE("emulation_refuses_blocks_that_a_gpu_would") {
    CHECK_THROWS_AS(launch("test", nothing, 1, 33, 0), Error);
    CHECK_THROWS_AS(launch("test", nothing, 1, 1056, 0), Error);
    CHECK_THROWS_AS(launch("test", nothing, 1, 32, int64_t{228} * 1024), Error);
    launch("test", nothing, dim3(0, 3), 32, 0);
}

TEST_CASE("emulation_reports_a_thread_that_does_not_wait_for_the_kernel_in_front") {
    CHECK_THROWS_AS(launch("test", not_after_previous, 1, 32, 0), Error);
}

namespace {

__global__ void align_of_frame(float* out) {
    after_previous();
    out[threadIdx.x] =
        static_cast<float>(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) % 16);
}

}  // namespace

TEST_CASE("emulation_stacks_are_aligned_as_compilers_expect") {
    const DeviceArray<float> out(std::vector<float>(threads, 7.0f));
    launch("test", align_of_frame, 1, threads, 0, out.data());
    CHECK(out.values() == std::vector<float>(threads, 0.0f));
}

namespace {

__global__ void count_threads(float* out) {
    after_previous();
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[block * blockDim.x + threadIdx.x] += static_cast<float>(threadIdx.x + 1);
}

/// 1 if all of the block's dynamic memory is NaN, as float and as bfloat16; then writes it.
__global__ void look_at_shared(float* out, unsigned floats) {
    after_previous();
    auto* const values = reinterpret_cast<float*>(dynamic_shared());
    if (threadIdx.x == 0) {
        bool all = true;
        for (unsigned i = 0; i < floats; ++i) {
            const auto bits = std::bit_cast<uint32_t>(values[i]);
            all = all && std::isnan(values[i]) &&
                  std::isnan(bf16_to_f32(static_cast<uint16_t>(bits)));
        }
        out[blockIdx.x] = all ? 1.0f : 0.0f;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < floats; i += blockDim.x) values[i] = 0;
}

}  // namespace

TEST_CASE("emulation_runs_each_thread_of_each_block_once") {
    const DeviceArray<float> out(std::vector<float>(size_t{2} * 3 * 5 * threads, 0.0f));
    launch("test", count_threads, dim3(2, 3, 5), threads, 0, out.data());
    std::vector<float> expected;
    for (unsigned block = 0; block < 2 * 3 * 5; ++block) {
        for (unsigned t = 1; t <= threads; ++t) expected.push_back(static_cast<float>(t));
    }
    CHECK(out.values() == expected);
}

TEST_CASE("emulation_dynamic_shared_memory_is_nan_at_the_start_of_each_block") {
    constexpr unsigned floats = 12 * 1024 + 1;
    const DeviceArray<float> out(std::vector<float>(3, 0.0f));
    launch("test", look_at_shared, 3, threads, int64_t{4} * floats, out.data(), floats);
    CHECK(out.values() == std::vector<float>(3, 1.0f));
}

namespace {

/// (3, threads): what each lane gets from lane 5, from the lane with bit 2 changed, and from the one
/// 7 further on.
__global__ void shuffle(const float* x, float* out) {
    after_previous();
    const float mine = x[threadIdx.x];
    out[threadIdx.x] = __shfl_sync(cuda::whole_warp, mine, 5);
    out[threads + threadIdx.x] = __shfl_xor_sync(cuda::whole_warp, mine, 4);
    out[2 * threads + threadIdx.x] = __shfl_down_sync(cuda::whole_warp, mine, 7);
}

/// (3, threads): sum and largest of the warp, and the second of two sums of the block.
__global__ void reduce(const float* x, float* out) {
    after_previous();
    const float mine = x[threadIdx.x];
    out[threadIdx.x] = cuda::warp_sum(mine);
    out[threads + threadIdx.x] = cuda::warp_max(mine);
    cuda::block_sum(1.0f);
    out[2 * threads + threadIdx.x] = cuda::block_sum(mine);
}

std::vector<float> whole_numbers(unsigned n) {
    Numbers numbers(1);
    std::vector<float> values;
    for (unsigned i = 0; i < n; ++i) values.push_back(static_cast<float>(numbers.below(200) - 100));
    return values;
}

}  // namespace

TEST_CASE("emulation_barriers_in_shared_memory_bring_pieces_in_turn") {
    std::vector<uint32_t> x(4 * pieces_of_work);
    std::iota(x.begin(), x.end(), 1u);
    std::vector<float> expected(warp);
    for (size_t i = 0; i < expected.size(); ++i) {
        for (size_t piece = 0; piece < pieces_of_work; ++piece)
            expected[i] += static_cast<float>(x[4 * piece + i % 4]);
    }
    const DeviceArray<uint32_t> in(x);
    in_both_orders([&] {
        const DeviceArray<float> out(std::vector<float>(threads, 0.0f));
        launch("test", bring_and_add, 1, threads, 0, in.data(), out.data());
        std::vector<float> found = out.values();
        found.resize(warp);
        CHECK(found == expected);
        return found;
    });
}

TEST_CASE("emulation_groups_of_warps_meet") {
    std::vector<float> expected(4 * warp);
    for (unsigned t = 0; t < expected.size(); ++t) expected[t] = static_cast<float>(t ^ warp);
    for (const bool reversed : {false, true}) {
        for (const bool meet : {true, false}) {
            const DeviceArray<float> out(std::vector<float>(expected.size(), 0.0f));
            cuda::set_reversed(reversed);
            launch("test", meet_in_pairs, 1, 4 * warp, 0, out.data(), meet);
            cuda::set_reversed(false);
            CHECK((out.values() == expected) == meet);
        }
    }
    CHECK_THROWS_AS(launch("test", meet_without_the_others, 1, threads, 0), Error);
    CHECK_THROWS_AS(launch("test", wait_for_more_than_arrive, 1, warp, 0), Error);
}

namespace {

/// What of a product is done wrong: nothing; its factor is changed, or its sum read, before it is waited
/// for; it is not waited for.
enum class Haste { none, overwrites, reads, leaves };

/// c (64, 64) = a b for a, b of ones, if nobody is hasty.
__global__ void multiply_hastily(uint4* b, float* c, Haste haste) {
    after_previous();
    const uint32_t ones = 0x3F803F80u;
    const uint32_t a[4] = {ones, ones, ones, ones};
    if (threadIdx.x < 64) {
        for (unsigned i = 0; i < 8; ++i) b[8 * threadIdx.x + i] = {ones, ones, ones, ones};
    }
    __syncthreads();
    float sums[8][4] = {};
    cuda::products_begin();
    cuda::multiply(sums, a, cuda::SharedFactor<8>(b), 0, false);
    cuda::products_commit();
    if (haste == Haste::overwrites && threadIdx.x < 8) b[threadIdx.x] = {};
    if (haste == Haste::reads) c[threadIdx.x] = sums[0][0];
    if (haste != Haste::leaves) cuda::products_wait<0>(sums);
    if (haste != Haste::reads) c[threadIdx.x] = sums[0][0];
}

/// A copy that is read before its barrier says that it is there.
__global__ void read_before_it_is_there(const uint32_t* x, float* out, bool wait) {
    after_previous();
    alignas(16) __shared__ uint32_t piece[4];
    __shared__ cuda::Barrier full;
    if (threadIdx.x == 0) full.make(1);
    __syncthreads();
    if (threadIdx.x == 0) {
        full.arrive_expecting(16);
        full.copy(piece, x, 16);
    }
    __syncthreads();
    if (wait) full.wait(0);
    out[threadIdx.x] = static_cast<float>(piece[threadIdx.x % 4]);
    full.wait(0);
}

}  // namespace

TEST_CASE("emulation_shows_who_does_not_wait_for_products_and_copies") {
    const std::vector<float> expected(128, 16.0f);
    const auto products = [&](Haste haste) {
        const DeviceArray<uint32_t> b(std::vector<uint32_t>(64 * 8 * 4));
        const DeviceArray<float> c(std::vector<float>(128));
        launch("test", multiply_hastily, 1, 128, 0, reinterpret_cast<uint4*>(b.data()), c.data(),
               haste);
        return c.values();
    };
    CHECK(products(Haste::none) == expected);
    CHECK(products(Haste::overwrites) != expected);
    CHECK(products(Haste::reads) != expected);
    CHECK_THROWS_AS(products(Haste::leaves), Error);

    const DeviceArray<uint32_t> x(std::vector<uint32_t>{1, 2, 3, 4});
    for (const bool wait : {true, false}) {
        const DeviceArray<float> out(std::vector<float>(warp, 0.0f));
        launch("test", read_before_it_is_there, 1, warp, 0, x.data(), out.data(), wait);
        CHECK((out.values()[1] == 2.0f) == wait);
    }
}

TEST_CASE("emulation_warpgroups_multiply_as_documented") {
    check_warpgroup<64, 8>(0);
    check_warpgroup<64, 8>(6);
    check_warpgroup<80, 8>(2);
    check_warpgroup<64, 2>(0);
}

TEST_CASE("emulation_shuffles_as_documented") {
    const std::vector<float> x = Numbers(1).floats(threads);
    std::vector<float> expected(size_t{3} * threads);
    for (unsigned t = 0; t < threads; ++t) {
        const unsigned lane = t % warp, first = t - lane;
        expected[t] = x[first + 5];
        expected[threads + t] = x[first + (lane ^ 4u)];
        expected[2 * threads + t] = x[lane + 7 < warp ? t + 7 : t];
    }
    const DeviceArray<float> in(x);
    in_both_orders([&] {
        const DeviceArray<float> out(expected);
        cuda::fill_zero(out.data(), int64_t{4} * 3 * threads);
        launch("test", shuffle, 1, threads, 0, in.data(), out.data());
        CHECK(out.values() == expected);
        return out.values();
    });
}

TEST_CASE("emulation_sums_and_maxima_are_those_of_plain_loops") {
    const std::vector<float> x = whole_numbers(threads);  // exact in any order
    std::vector<float> expected(size_t{3} * threads);
    for (unsigned t = 0; t < threads; ++t) {
        const auto begin = x.begin() + t / warp * warp;
        expected[t] = std::accumulate(begin, begin + warp, 0.0f);
        expected[threads + t] = *std::max_element(begin, begin + warp);
        expected[2 * threads + t] = std::accumulate(x.begin(), x.end(), 0.0f);
    }
    const DeviceArray<float> in(x);
    in_both_orders([&] {
        const DeviceArray<float> out(std::vector<float>(expected.size(), 0.0f));
        launch("test", reduce, 1, threads, 0, in.data(), out.data());
        CHECK(out.values() == expected);
        return out.values();
    });
}

namespace {

constexpr unsigned mma_rows = 16, mma_columns = 8, units = 8;  // units of 4 bytes along k

/// a (16, 8 units), b (8 columns, 8 units), c (16, 8): c += a b, by the table of mma.h.
template <class Sum>
__global__ void multiply(const uint32_t* a, const uint32_t* b, Sum* c) {
    after_previous();
    const unsigned group = threadIdx.x / 4, quad = threadIdx.x % 4;
    const uint32_t mine_of_a[4] = {a[group * units + quad], a[(group + 8) * units + quad],
                                   a[group * units + quad + 4], a[(group + 8) * units + quad + 4]};
    const uint32_t mine_of_b[2] = {b[group * units + quad], b[group * units + quad + 4]};
    Sum* const upper = c + group * mma_columns + 2 * quad;
    Sum* const lower = upper + 8 * mma_columns;
    Sum sums[4] = {upper[0], upper[1], lower[0], lower[1]};
    if constexpr (std::is_same_v<Sum, float>) {
        cuda::mma_bf16(sums, mine_of_a, mine_of_b);
    } else {
        cuda::mma_int8(sums, mine_of_a, mine_of_b);
    }
    upper[0] = sums[0];
    upper[1] = sums[1];
    lower[0] = sums[2];
    lower[1] = sums[3];
}

/// Numbers as elements of a type that is stored in units of 4 bytes.
template <class Element>
std::vector<uint32_t> as_units(const std::vector<float>& values) {
    std::vector<Element> elements;
    for (const float x : values) {
        if constexpr (sizeof(Element) == 2) {
            elements.push_back(f32_to_bf16(x));
        } else {
            elements.push_back(static_cast<Element>(x));
        }
    }
    std::vector<uint32_t> result(elements.size() * sizeof(Element) / sizeof(uint32_t));
    std::memcpy(result.data(), elements.data(), result.size() * sizeof(uint32_t));
    return result;
}

/// Products of whole numbers, which every order of summation gives exactly.
template <class Element, class Sum>
void check_multiply() {
    constexpr unsigned k = units * 4 / sizeof(Element);
    const std::vector<float> all = whole_numbers((mma_rows + mma_columns) * k);
    const std::vector<float> a(all.begin(), all.begin() + mma_rows * k);
    const std::vector<float> b(all.begin() + mma_rows * k, all.end());
    std::vector<Sum> before, expected;
    for (unsigned i = 0; i < mma_rows * mma_columns; ++i) {
        before.push_back(static_cast<Sum>(i));
        auto sum = static_cast<float>(i);
        for (unsigned j = 0; j < k; ++j)
            sum += a[i / mma_columns * k + j] * b[i % mma_columns * k + j];
        expected.push_back(static_cast<Sum>(sum));
    }
    const DeviceArray<uint32_t> device_a(as_units<Element>(a)), device_b(as_units<Element>(b));
    in_both_orders([&] {
        const DeviceArray<Sum> c(before);
        launch("test", multiply<Sum>, 1, warp, 0, device_a.data(), device_b.data(), c.data());
        CHECK(c.values() == expected);
        const std::vector<Sum> found = c.values();
        return std::vector<float>(found.begin(), found.end());
    });
}

}  // namespace

TEST_CASE("emulation_tensor_core_products_are_those_of_plain_loops") {
    check_multiply<uint16_t, float>();
    check_multiply<int8_t, int32_t>();
}

TEST_CASE("emulation_multiplies_signed_bytes_and_rounds_pairs_to_bfloat16") {
    CHECK(__dp4a(static_cast<int>(0x80FF7F01u), static_cast<int>(0x80017F02u), -5) ==
          -128 * -128 + -1 * 1 + 127 * 127 + 1 * 2 - 5);
    CHECK(cuda::pack_bf16(1.0f, -2.0f) == 0xC0003F80u);
}

TEST_CASE("emulation_copies_sixteen_bytes_or_zeros_to_shared_memory") {
    const uint4 from{1, 2, 3, 4};
    uint4 to{5, 6, 7, 8};
    cuda::copy_async_16(&to, &from, true);
    CHECK(std::memcmp(&to, &from, sizeof(to)) == 0);
    cuda::copy_async_16(&to, nullptr, false);
    const uint4 zeros{};
    CHECK(std::memcmp(&to, &zeros, sizeof(to)) == 0);
}

TEST_CASE("emulation_host_that_reads_device_memory_faults") {
    const DeviceBytes memory(int64_t{1} << 20);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        std::signal(SIGSEGV, SIG_DFL);  // without a report
        ::_exit(*static_cast<volatile char*>(memory.data()) == 0 ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status));
}

}  // namespace mllama::test
