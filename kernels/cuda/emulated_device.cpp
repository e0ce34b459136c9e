// The device of the emulation: its memory is the heap, its stream runs at once, and a recording is
// a list of what was queued.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "kernels/cuda.h"
#include "kernels/cuda/counts.h"
#include "kernels/cuda/emulated.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/workspace.h"
#include "kernels/error.h"

namespace mllama::cuda {
namespace {

using Recording = std::vector<std::function<void()>>;
Recording* recording = nullptr;  // what is being recorded, or none

/// Larger blocks may be touched only while an operation runs: a host that reads device memory faults
/// here as it would on a GPU. Smaller ones come from the heap, where AddressSanitizer guards their
/// ends.
constexpr int64_t guarded_from = int64_t{1} << 20;
std::map<void*, size_t> guarded;  // bytes

int64_t memory_bytes = int64_t{4} << 30;
std::map<void*, int64_t> taken;  // bytes of all blocks

int64_t free_bytes() {
    int64_t left = memory_bytes;
    for (const auto& [memory, bytes] : taken) left -= bytes;
    return left;
}

void* record(void* memory, int64_t bytes) {
    taken.emplace(memory, bytes);
    return memory;
}

void protect_all(int protection) {
    for (const auto& [memory, bytes] : guarded) ::mprotect(memory, bytes, protection);
}

/// Device memory is open while this lives.
class Opened {
  public:
    Opened() { protect_all(PROT_READ | PROT_WRITE); }
    ~Opened() { protect_all(PROT_NONE); }
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;
};

}  // namespace

void emulated::queue(std::function<void()> work) {
    if (recording) {
        recording->push_back(std::move(work));
        return;
    }
    const Opened open;
    work();
}

bool compiled() {
    return true;
}

std::string unavailable() {
    return {};
}

DeviceInfo device_info() {
    DeviceInfo info;
    info.name = "emulated";
    info.major = 9;
    info.processors = 4;
    info.memory_bytes = memory_bytes;
    info.free_bytes = free_bytes();
    return info;
}

void emulated::set_free_bytes(int64_t bytes) {
    memory_bytes += bytes - free_bytes();
}

void* allocate(int64_t bytes) {
    ++counts.allocations;
    if (recording) fail("emulated CUDA: memory is taken while operations are recorded");
    if (bytes > free_bytes())
        fail("CUDA: ", bytes, " bytes of device memory cannot be taken, ", free_bytes(),
             " are free");
    if (bytes >= guarded_from) {
        const auto size = static_cast<size_t>(bytes);
        void* memory =
            ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("emulated CUDA: ", bytes, " bytes cannot be taken");
        guarded.emplace(memory, size);
        return record(memory, bytes);
    }
    constexpr std::align_val_t alignment{256};
    return record(::operator new(static_cast<size_t>(bytes), alignment), bytes);
}

void release(void* memory) noexcept {
    taken.erase(memory);
    if (const auto entry = guarded.find(memory); entry != guarded.end()) {
        ::munmap(memory, entry->second);
        guarded.erase(entry);
        return;
    }
    ::operator delete (memory, std::align_val_t{256});
}

void* allocate_pinned(int64_t bytes) {
    ++counts.pinned_allocations;
    return ::operator new(static_cast<size_t>(bytes));
}

void release_pinned(void* host) noexcept {
    ::operator delete(host);
}

void copy_to_device(void* to, const void* host, int64_t bytes) {
    ++counts.uploads;
    if (bytes == 0) return;  // nor addresses
    emulated::queue([=] { std::memcpy(to, host, static_cast<size_t>(bytes)); });
}

void copy_to_host(void* host, const void* from, int64_t bytes) {
    if (recording) fail("emulated CUDA: the host waits while operations are recorded");
    const Opened open;
    if (bytes > 0) std::memcpy(host, from, static_cast<size_t>(bytes));
}

void copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride,
               int64_t row_bytes, int64_t rows) {
    emulated::queue([=] {
        for (int64_t r = 0; r < rows; ++r) {
            std::memmove(static_cast<std::byte*>(to) + r * to_stride,
                         static_cast<const std::byte*>(from) + r * from_stride,
                         static_cast<size_t>(row_bytes));
        }
    });
}

void fill_zero(void* to, int64_t bytes) {
    emulated::queue([=] { std::memset(to, 0, static_cast<size_t>(bytes)); });
}

void synchronise() {
    if (recording) fail("emulated CUDA: the host waits while operations are recorded");
}

struct Uploader::Buffers {};
Uploader::Uploader() = default;
Uploader::~Uploader() = default;
void Uploader::copy(void* to, const void* host, int64_t bytes) {
    copy_to_device(to, host, bytes);
}

struct Graph::Recorded {
    Recording work;
};

Graph::Graph() : recorded_(std::make_unique<Recorded>()) {}
Graph::~Graph() = default;

void Graph::begin() {
    recorded_->work.clear();
    recording = &recorded_->work;
}

void Graph::end() {
    recording = nullptr;
}

void Graph::abandon() noexcept {
    recording = nullptr;
    recorded_->work.clear();
}

void Graph::launch() {
    const Opened open;
    for (const auto& work : recorded_->work) work();
}

std::byte* workspace() {
    static auto* const memory = static_cast<std::byte*>(allocate(workspace_bytes));
    return memory;
}

void take_workspace() {
    workspace();
    take_product_memory();
}

void take_product_memory() {}  // plain loops need none

void product(const void* x, int64_t x_stride, const void* w, int64_t w_stride, DType dtype,
             int64_t m, int64_t n, int64_t k, float scale, float keep, const float* bias,
             float* out, int64_t out_stride) {
    emulated::queue([=] {
        for (int64_t row = 0; row < m; ++row) {
            for (int64_t column = 0; column < n; ++column) {
                float sum = 0;
                for (int64_t i = 0; i < k; ++i) {
                    sum += float_element(x, dtype, row * x_stride + i) *
                           float_element(w, dtype, column * w_stride + i);
                }
                float& element = out[row * out_stride + column];
                element = keep == 0 ? scale * sum : scale * sum + keep * element;
                if (bias != nullptr) element += bias[column];
            }
        }
    });
}

void product_int8(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t w_stride, int64_t m,
                  int64_t n, int64_t k, int32_t* out, int64_t out_stride) {
    emulated::queue([=] {
        for (int64_t row = 0; row < m; ++row) {
            for (int64_t column = 0; column < n; ++column) {
                int32_t sum = 0;
                for (int64_t i = 0; i < k; ++i)
                    sum += x[row * x_stride + i] * w[column * w_stride + i];
                out[row * out_stride + column] = sum;
            }
        }
    });
}

}  // namespace mllama::cuda
