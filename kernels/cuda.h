// The GPU's operations: the list of cpu_ops.h for memory of a CUDA device, and that memory itself.
// Raw pointers and sizes; the caller (tensor/ops) has checked the shapes. Pointers named `host` are
// to memory of the process, all others to memory of the device.
//
// Everything is queued in one stream, in order, and runs later: only copy_to_host and synchronise
// wait. Nothing here allocates but `allocate`, `allocate_pinned` and `take_workspace`. Every function but `compiled`
// and `unavailable` throws Error where there is no device, and where the device reports a fault.
//
// All of it serves one thread of the process at a time, whatever the number of models: there is one
// stream and one workspace, and what a second thread queued would become part of a recording.
//
// A result depends on the rows of its own sequence and on the weights. Products of few rows sum in an
// order of their own, which is the same for any number of them; products of more are cuBLASLt's. In the same way attention has kernels for few queries and for many:
// which one a query meets, and so how its sums are rounded, depends on how many there are in the call.
//
// Three things may stand behind this header: the kernels of kernels/cuda/ compiled by nvcc, the same
// sources compiled as plain C++ (kernels/cuda/emulated.h: slow, for tests), or no_cuda.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/arguments.h"
#include "kernels/limits.h"

namespace mllama::cuda {

/// Products of up to so many rows read the weights once, by kernels made for it;
inline constexpr int64_t few_rows = 8;
/// products in bf16 read them once for 32 rows, by the same kernels, up to so many rows: cuBLASLt has
/// too few blocks for a short prompt if no sum may be cut.
inline constexpr int64_t few_rows_bf16 = 64;

/// Whether this build holds kernels.
bool compiled();

/// Why no operation can run here, as a sentence for users (no driver, no device, one that is too
/// old, no cuBLASLt, a build without kernels); "" if they can.
std::string unavailable();

struct DeviceInfo {
    std::string name;          ///< "NVIDIA H100 80GB HBM3"; "emulated" in tests
    int major = 0, minor = 0;  ///< compute capability
    int processors = 0;        ///< streaming multiprocessors
    int64_t memory_bytes = 0;  ///< in all
    int64_t free_bytes = 0;    ///< now
};
DeviceInfo device_info();

/// Its streaming multiprocessors; what is to be cut into enough blocks asks for them.
inline int processors() {
    static const int count = device_info().processors;
    return count;
}

// Memory.

/// At least `bytes`, aligned to 256. Throws Error with figures if there is not as much.
void* allocate(int64_t bytes);
void release(void* memory) noexcept;
/// Memory of the process that the device copies from and to without a detour.
void* allocate_pinned(int64_t bytes);
void release_pinned(void* host) noexcept;

/// Queues a copy; `host` is pinned and must stay as it is until the copy has run (synchronise).
void copy_to_device(void* to, const void* host, int64_t bytes);
/// Waits for everything queued so far, and for the copy.
void copy_to_host(void* host, const void* from, int64_t bytes);
/// Queues a copy of `rows` rows of row_bytes, whose starts are to_stride and from_stride bytes apart.
void copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride,
               int64_t row_bytes, int64_t rows);
void fill_zero(void* to, int64_t bytes);
void synchronise();

/// Copies host memory of any kind (a mapped file) to the device through a few pinned buffers: the
/// next one is filled while the last ones travel. One at a time is enough for a program.
class Uploader {
  public:
    Uploader();
    ~Uploader();
    Uploader(const Uploader&) = delete;
    Uploader& operator=(const Uploader&) = delete;
    /// Returns when `host` has been read; operations queued later see the bytes.
    void copy(void* to, const void* host, int64_t bytes);

  private:
    struct Buffers;
    std::unique_ptr<Buffers> buffers_;
};

/// A recorded sequence of operations. The numbers that it was recorded with stand; what lies in
/// memory of the device is read anew each time.
class Graph {
  public:
    Graph();
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    /// Operations from here to `end` are recorded, not run.
    void begin();
    void end();
    /// Gives up a recording (an operation threw).
    void abandon() noexcept;
    void launch();

  private:
    struct Recorded;
    std::unique_ptr<Recorded> recorded_;
};

/// Bytes that the operations themselves work in, taken at their first use or by take_workspace, and
/// kept; beside them what the library of products works in.
inline constexpr int64_t workspace_bytes = int64_t{288} << 20;
/// Takes both now.
void take_workspace();

// Operations: shapes and meanings as in cpu_ops.h. Floats may be of bf16 here.

/// With Compute::int8 and a matrix for which multiplies_integers holds, products of integers; other
/// coded matrices are multiplied as the bfloat16 (or, Compute::f32, float32) that they decode to.
/// The matrix, and weights of norms, may be read while the operations queued in front still run:
/// none of those may write them (a copy may).
/// x is f32; or bf16, which gives the bits of the f32 that rounds to it, and is multiplied where it
/// lies. That is for many rows: few with x or a result in bf16 are summed as many are. Layers that
/// multiply integers take and write f32 alone.
void linear(const Matrix& x, std::span<const Projection> projections);

/// Rules and bias are in memory of the device as well. If args.past is given, `keys` is the number
/// of keys that there is room for: the sequence has *past + queries keys, and a query sees
/// those up to its own (causal_from = *past).
/// Calls of the same shape but for their keys, one behind the other, share a launch where they can:
/// each gives what it gives alone, to the bit.
void attention(std::span<const Attention> calls, Compute compute);
void attention_weights(const Attention& args, float* weights);

/// The keys begin + *past, ...; past: none counts as 0. Up to 8 sequences are one launch.
void store_keys_values(std::span<const NewKeysValues> sequences);

void rms_norm(const float* x, int64_t rows, int64_t width, const void* weight, DType weight_dtype,
              float eps, Floats out);
void layer_norm(const float* x, int64_t rows, int64_t width, const void* weight, const void* bias,
                DType weight_dtype, float eps, Floats out);
void rope_angles(const int64_t* positions, int64_t rows, const float* inverse_frequencies,
                 int64_t pairs, float* cos, float* sin);
void rope(float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t x_stride,
          const float* cos, const float* sin);
void gated(const float* gate, const float* up, int64_t rows, int64_t width, int64_t in_stride,
           Activation activation, Floats out, int64_t out_stride);
void activate(float* x, int64_t n, Activation activation);
void add_scaled(float* y, const void* x, DType x_dtype, float scale, int64_t n);
void add_to_rows(float* y, int64_t rows, int64_t width, const void* x, DType x_dtype, float scale);
void scale_rows(float* x, int64_t rows, int64_t width, const float* factor);
void embedding(const int64_t* ids, int64_t n, const void* table, DType table_dtype, int64_t width,
               float* out);
void argmax(const float* x, int64_t rows, int64_t width, int64_t* index);
void top_k(const float* x, int64_t rows, int64_t width, int64_t k, float* values, int64_t* index);
void convert(const void* from, DType from_dtype, void* to, DType to_dtype, int64_t n);
void unfold_patches(const float* pixels, int64_t channels, int64_t side, int64_t patch, float* out);
void interleave(const float* const* states, int64_t count, int64_t rows, int64_t width, float* out,
                int64_t out_stride);

/// What the device can do at most: reading memory far larger than its caches by the plainest kernel,
/// and the vendor's products of large matrices. A second or so.
Limits measure_limits();

}  // namespace mllama::cuda
