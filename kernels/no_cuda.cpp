// What stands behind cuda.h in a build without kernels: everything says so.
#include "kernels/cuda.h"
#include "kernels/cuda/order.h"
#include "kernels/error.h"

namespace mllama::cuda {
namespace {

[[noreturn]] void missing() {
    fail("CUDA: ", unavailable());
}

}  // namespace

bool compiled() {
    return false;
}

std::string unavailable() {
    return "this program was built without CUDA (no nvcc was found, or MLLAMA_CUDA=OFF)";
}

struct Uploader::Buffers {};
struct Graph::Recorded {};

// clang-format off
DeviceInfo device_info() { missing(); }
void* allocate(int64_t) { missing(); }
void release(void*) noexcept {}
void* allocate_pinned(int64_t) { missing(); }
void release_pinned(void*) noexcept {}
void copy_to_device(void*, const void*, int64_t) { missing(); }
void copy_to_host(void*, const void*, int64_t) { missing(); }
void copy_rows(void*, int64_t, const void*, int64_t, int64_t, int64_t) { missing(); }
void fill_zero(void*, int64_t) { missing(); }
void synchronise() { missing(); }
void take_workspace() { missing(); }
Uploader::Uploader() { missing(); }
Uploader::~Uploader() = default;
void Uploader::copy(void*, const void*, int64_t) { missing(); }
Graph::Graph() { missing(); }
Graph::~Graph() = default;
void Graph::begin() { missing(); }
void Graph::end() { missing(); }
void Graph::abandon() noexcept {}
void Graph::launch() { missing(); }
void linear(const Matrix&, std::span<const Projection>) { missing(); }
void attention(std::span<const Attention>, Compute) { missing(); }
void attention_weights(const Attention&, float*) { missing(); }
void store_keys_values(std::span<const NewKeysValues>) { missing(); }
void rms_norm(const float*, int64_t, int64_t, const void*, DType, float, Floats) { missing(); }
void layer_norm(const float*, int64_t, int64_t, const void*, const void*, DType, float, Floats) { missing(); }
void rope_angles(const int64_t*, int64_t, const float*, int64_t, float*, float*) { missing(); }
void rope(float*, int64_t, int64_t, int64_t, int64_t, const float*, const float*) { missing(); }
void gated(const float*, const float*, int64_t, int64_t, int64_t, Activation, Floats, int64_t) { missing(); }
void activate(float*, int64_t, Activation) { missing(); }
void add_scaled(float*, const void*, DType, float, int64_t) { missing(); }
void add_to_rows(float*, int64_t, int64_t, const void*, DType, float) { missing(); }
void scale_rows(float*, int64_t, int64_t, const float*) { missing(); }
void embedding(const int64_t*, int64_t, const void*, DType, int64_t, float*) { missing(); }
void convert(const void*, DType, void*, DType, int64_t) { missing(); }
void unfold_patches(const float*, int64_t, int64_t, int64_t, float*) { missing(); }
void interleave(const float* const*, int64_t, int64_t, int64_t, float*, int64_t) { missing(); }
Limits measure_limits() { missing(); }
void set_reversed(bool) {}
void argmax(const float*, int64_t, int64_t, int64_t*) { missing(); }
void top_k(const float*, int64_t, int64_t, int64_t, float*, int64_t*) { missing(); }
// clang-format on

}  // namespace mllama::cuda
