// The device's memory, copies and recorded graphs, on a GPU as on the emulated device.
#include "tests/cuda/device.h"

#include <cstring>
#include <numeric>

#include "kernels/error.h"

namespace mllama::test {
namespace {

std::vector<float> counted(size_t n) {
    std::vector<float> values(n);
    std::iota(values.begin(), values.end(), 1.0f);
    return values;
}

/// Memory that copies may read and write while the program goes on.
class Pinned {
  public:
    explicit Pinned(int64_t bytes) : memory_(cuda::allocate_pinned(bytes)) {}
    ~Pinned() { cuda::release_pinned(memory_); }
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;
    [[nodiscard]] float* floats() const { return static_cast<float*>(memory_); }

  private:
    void* memory_;
};

}  // namespace

TEST_CASE("cuda_device_says_what_it_is") {
    if (!has_device()) return;
    const cuda::DeviceInfo info = cuda::device_info();
    CHECK(cuda::compiled());
    CHECK(!info.name.empty());
    CHECK(info.major >= 8);
    CHECK(info.processors > 0);
    CHECK(info.free_bytes > 0);
    CHECK(info.free_bytes <= info.memory_bytes);
}

TEST_CASE("cuda_memory_is_aligned_and_an_error_says_how_much_there_is_not") {
    if (!has_device()) return;
    for (const int64_t bytes : {0, 1, 1000, 3 << 20}) {
        const DeviceBytes memory(bytes);
        CHECK(reinterpret_cast<uintptr_t>(memory.data()) % 256 == 0);
    }
    CHECK_THROWS_AS(cuda::allocate(int64_t{1} << 50), Error);
    const DeviceArray<float> still_works(counted(3));
    CHECK(still_works.values() == counted(3));
}

TEST_CASE("cuda_uploads_of_any_size_arrive_whole") {
    if (!has_device()) return;
    // none; less than the buffers hold; more than all of them together
    for (const size_t n : {size_t{0}, size_t{1}, size_t{1} << 20, (size_t{10} << 20) + 3}) {
        const std::vector<float> values = counted(n);
        CHECK(DeviceArray<float>(values).values() == values);
    }
}

TEST_CASE("cuda_copies_from_pinned_memory_and_fills_with_zeros") {
    if (!has_device()) return;
    const Pinned host(12);
    std::iota(host.floats(), host.floats() + 3, 1.0f);
    const DeviceArray<float> memory(std::vector<float>(5, 9.0f));
    cuda::copy_to_device(memory.data() + 1, host.floats(), 12);
    cuda::synchronise();
    cuda::fill_zero(memory.data() + 2, 4);
    CHECK(memory.values() == std::vector<float>{9, 1, 0, 3, 9});
}

TEST_CASE("cuda_copy_rows_copies_only_the_rows") {
    if (!has_device()) return;
    const DeviceArray<float> from(counted(3 * 5)), to(std::vector<float>(3 * 4, 0.0f));
    cuda::copy_rows(to.data() + 1, 4 * 4, from.data() + 2, 5 * 4, 2 * 4, 3);
    CHECK(to.values() == std::vector<float>{0, 3, 4, 0, 0, 8, 9, 0, 0, 13, 14, 0});
    cuda::copy_rows(to.data(), 4 * 4, from.data(), 5 * 4, 2 * 4, 0);
    cuda::copy_rows(to.data(), 4 * 4, from.data(), 5 * 4, 0, 3);
    CHECK(to.values()[0] == 0.0f);
}

TEST_CASE("cuda_graph_runs_what_was_recorded_and_reads_memory_anew") {
    if (!has_device()) return;
    const DeviceArray<float> sum(std::vector<float>{1, 2, 3}),
        added(std::vector<float>{10, 20, 30}), copy(std::vector<float>(3, 0.0f));
    cuda::Graph graph;
    graph.begin();
    cuda::add_scaled(sum.data(), added.data(), DType::f32, 1.0f, 3);
    cuda::copy_rows(copy.data(), 12, sum.data(), 12, 12, 1);
    graph.end();
    CHECK(sum.values() == std::vector<float>{1, 2, 3});  // nothing ran
    graph.launch();
    CHECK(copy.values() == std::vector<float>{11, 22, 33});
    cuda::fill_zero(sum.data(), 4);
    graph.launch();
    CHECK(copy.values() == std::vector<float>{10, 42, 63});
}

TEST_CASE("cuda_graph_can_be_recorded_again_and_given_up") {
    if (!has_device()) return;
    const DeviceArray<float> sum(std::vector<float>{1}), added(std::vector<float>{10});
    cuda::Graph graph;
    for (const float scale : {1.0f, 2.0f}) {
        graph.begin();
        cuda::add_scaled(sum.data(), added.data(), DType::f32, scale, 1);
        graph.end();
    }
    graph.launch();
    CHECK(sum.values() == std::vector<float>{21});  // the second recording alone
    cuda::Graph other;
    other.begin();
    cuda::add_scaled(sum.data(), added.data(), DType::f32, 1.0f, 1);
    other.abandon();
    cuda::add_scaled(sum.data(), added.data(), DType::f32, -2.0f, 1);  // runs
    CHECK(sum.values() == std::vector<float>{1});
}

TEST_CASE("cuda_recording_refuses_to_wait_or_take_memory_on_the_emulated_device") {
    if (!has_device() || cuda::device_info().name != "emulated") return;
    cuda::Graph graph;
    graph.begin();
    float host = 0;
    CHECK_THROWS_AS(cuda::allocate(1), Error);
    CHECK_THROWS_AS(cuda::synchronise(), Error);
    CHECK_THROWS_AS(cuda::copy_to_host(&host, &host, 4), Error);
    graph.abandon();
}

}  // namespace mllama::test
