// The device behind cuda.h: choosing it, its memory, copies, and recorded graphs.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/cuda.h"
#include "kernels/cuda/counts.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/order.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/warpgroup.h"
#include "kernels/cuda/workspace.h"
#include "kernels/error.h"

namespace mllama::cuda {
namespace {

constexpr int oldest_major = 8;  // bfloat16 on tensor cores, cp.async

std::string version(int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

/// The sentence of unavailable().
std::string find_fault() {
    int driver = 0;
    int devices = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
        return "no NVIDIA driver was found (libcuda.so.1 is missing; nvidia-smi would fail too)";
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status == cudaErrorInsufficientDriver) {
        return "the NVIDIA driver supports CUDA " + version(driver) + ", this program needs " +
               version(CUDART_VERSION) + ": update the driver";
    }
    if (status != cudaSuccess) return cudaGetErrorString(status);
    if (devices == 0) return "no CUDA device was found";
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess)
        return "the CUDA device does not answer";
    if (properties.major < oldest_major) {
        return std::string(properties.name) + " has compute capability " +
               std::to_string(properties.major) + "." + std::to_string(properties.minor) +
               ", 8.0 is the least";
    }
    return cublaslt_fault();
}

/// Says what it is compiled for.
__global__ void probe_kernel(bool* warpgroups) {
    after_previous();
    *warpgroups = compiled_for_warpgroups;
}

bool warpgroups_allowed = true;

/// The first device, current, and the stream of everything.
cudaStream_t open_stream() {
    const std::string fault = unavailable();
    if (!fault.empty()) fail("CUDA: ", fault);
    check(cudaSetDevice(0), "choosing the device");
    cudaStream_t result = nullptr;
    check(cudaStreamCreateWithFlags(&result, cudaStreamNonBlocking), "making a stream");
    return result;
}

}  // namespace

cudaStream_t stream() {
    static const cudaStream_t the_stream = open_stream();
    return the_stream;
}

bool begins_early() {
    static const bool early = [] {
        // Code for older devices does not wait: all kernels are compiled for the same ones.
        cudaFuncAttributes compiled_as{};
        check(cudaFuncGetAttributes(&compiled_as, probe_kernel), "asking about a kernel");
        int driver = 0;
        check(cudaDriverGetVersion(&driver), "asking for the driver's version");
        constexpr int records_it = 12030;  // the first that keeps it in a recorded graph
        return driver >= records_it && compiled_as.ptxVersion >= 90 && device_info().major >= 9;
    }();
    return early;
}

bool has_warpgroups() {
    static const bool compiled = [] {
        auto* answer = static_cast<bool*>(allocate(sizeof(bool)));
        launch("probe", probe_kernel, 1, 32, 0, answer);
        bool result = false;
        copy_to_host(&result, answer, sizeof(bool));
        release(answer);
        return result;
    }();
    return compiled && warpgroups_allowed;
}

bool compiled() {
    return true;
}

std::string unavailable() {
    static const std::string fault = find_fault();
    return fault;
}

DeviceInfo device_info() {
    stream();
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, 0), "reading the device's properties");
    DeviceInfo info;
    info.name = properties.name;
    info.major = properties.major;
    info.minor = properties.minor;
    info.processors = properties.multiProcessorCount;
    size_t free = 0;
    size_t all = 0;
    check(cudaMemGetInfo(&free, &all), "reading free memory");
    info.free_bytes = static_cast<int64_t>(free);
    info.memory_bytes = static_cast<int64_t>(all);
    return info;
}

void* allocate(int64_t bytes) {
    stream();
    ++counts.allocations;
    void* memory = nullptr;
    const cudaError_t status =
        cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // it is not the next call's error
        fail("CUDA: ", bytes, " bytes of device memory cannot be taken, ", device_info().free_bytes,
             " are free");
    }
    check(status, "taking device memory");
    return memory;
}

void release(void* memory) noexcept {
    cudaFree(memory);
}

void* allocate_pinned(int64_t bytes) {
    stream();
    ++counts.pinned_allocations;
    void* memory = nullptr;
    check(cudaMallocHost(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1))),
          "taking pinned memory");
    return memory;
}

void release_pinned(void* host) noexcept {
    cudaFreeHost(host);
}

void copy_to_device(void* to, const void* host, int64_t bytes) {
    ++counts.uploads;
    check(cudaMemcpyAsync(to, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream()),
          "copying to the device");
}

void copy_to_host(void* host, const void* from, int64_t bytes) {
    check(cudaMemcpyAsync(host, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream()),
          "copying from the device");
    synchronise();
}

void copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride,
               int64_t row_bytes, int64_t rows) {
    if (rows == 0 || row_bytes == 0) return;
    check(cudaMemcpy2DAsync(to, static_cast<size_t>(to_stride), from,
                            static_cast<size_t>(from_stride), static_cast<size_t>(row_bytes),
                            static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, stream()),
          "copying on the device");
}

void fill_zero(void* to, int64_t bytes) {
    check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream()), "filling with zeros");
}

void synchronise() {
    check(cudaStreamSynchronize(stream()), "waiting for the device");
}

/// Two buffers and an event for each: the copy from it has run. A third copy waits for the first: a
/// step that is done over and over brings what it needs in one (tensor/parcel.h).
struct Uploader::Buffers {
    static constexpr int64_t bytes = int64_t{16} << 20;
    static constexpr int count = 2;

    Buffers() {
        for (int i = 0; i < count; ++i) {
            memory[i] = allocate_pinned(bytes);
            check(cudaEventCreateWithFlags(&travelled[i], cudaEventDisableTiming),
                  "making an event");
        }
    }
    ~Buffers() {
        cudaStreamSynchronize(stream());
        for (int i = 0; i < count; ++i) {
            cudaEventDestroy(travelled[i]);
            release_pinned(memory[i]);
        }
    }

    void* memory[count] = {};
    cudaEvent_t travelled[count] = {};
    int next = 0;
};

Uploader::Uploader() : buffers_(std::make_unique<Buffers>()) {}
Uploader::~Uploader() = default;

void Uploader::copy(void* to, const void* host, int64_t bytes) {
    Buffers& b = *buffers_;
    for (int64_t done = 0; done < bytes; done += Buffers::bytes) {
        const int64_t piece = std::min(Buffers::bytes, bytes - done);
        check(cudaEventSynchronize(b.travelled[b.next]), "waiting for a buffer");
        std::memcpy(b.memory[b.next], static_cast<const std::byte*>(host) + done,
                    static_cast<size_t>(piece));
        copy_to_device(static_cast<std::byte*>(to) + done, b.memory[b.next], piece);
        check(cudaEventRecord(b.travelled[b.next], stream()), "recording an event");
        b.next = (b.next + 1) % Buffers::count;
    }
}

struct Graph::Recorded {
    cudaGraphExec_t executable = nullptr;
};

Graph::Graph() : recorded_(std::make_unique<Recorded>()) {}

Graph::~Graph() {
    if (recorded_->executable) cudaGraphExecDestroy(recorded_->executable);
}

void Graph::begin() {
    check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "recording");
}

namespace {

/// Makes the last recording's executable that of `graph`: possible, and much cheaper than a new one,
/// where the same kernels follow each other with other arguments (the next text's step). False if not.
bool update(cudaGraphExec_t executable, cudaGraph_t graph) {
    cudaGraphExecUpdateResultInfo ignored{};
    if (cudaGraphExecUpdate(executable, graph, &ignored) == cudaSuccess) return true;
    cudaGetLastError();
    return false;
}

}  // namespace

void Graph::end() {
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream(), &graph), "recording");
    cudaGraphExec_t& executable = recorded_->executable;
    cudaError_t status = cudaSuccess;
    if (!executable || !update(executable, graph)) {
        if (executable) cudaGraphExecDestroy(executable);
        executable = nullptr;
        status = cudaGraphInstantiate(&executable, graph, 0);
    }
    cudaGraphDestroy(graph);
    check(status, "preparing a recording");
}

void Graph::abandon() noexcept {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream(), &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
}

void Graph::launch() {
    check(cudaGraphLaunch(recorded_->executable, stream()), "running a recording");
}

void set_reversed(bool) {}

void allow_warpgroups(bool allowed) {
    warpgroups_allowed = allowed;
}

std::byte* workspace() {
    static auto* const memory = static_cast<std::byte*>(allocate(workspace_bytes));
    return memory;
}

void take_workspace() {
    workspace();
    take_product_memory();
}

}  // namespace mllama::cuda
