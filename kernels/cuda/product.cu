// cuBLASLt. It thinks in matrices whose columns are contiguous: our row-major out (m, n) is its
// (n, m), computed as w^T-transposed times x.
#include <map>
#include <tuple>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/workspace.h"
#include "kernels/error.h"

namespace mllama::cuda {
namespace {

constexpr int64_t library_bytes = int64_t{32} << 20;  // what the library may work in

void check(cublasStatus_t status, const char* doing) {
    if (status != CUBLAS_STATUS_SUCCESS)
        fail("cuBLASLt: ", doing, ": ", cublaslt().status_string(status));
}

/// A handle of the library that is destroyed with its object.
template <class Handle, cublasStatus_t (*CublasLt::*destroy)(Handle)>
class Owned {
  public:
    Owned() = default;
    ~Owned() {
        if (handle) (cublaslt().*destroy)(handle);
    }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    Handle handle = nullptr;
};

cublasLtHandle_t library() {
    static const cublasLtHandle_t handle = [] {
        stream();
        cublasLtHandle_t result = nullptr;
        check(cublaslt().create(&result), "opening the library");
        return result;
    }();
    return handle;
}

std::byte* library_memory() {
    static auto* const memory = static_cast<std::byte*>(allocate(library_bytes));
    return memory;
}

struct Types {
    cudaDataType factor, result;
    cublasComputeType_t compute;
    cudaDataType scale;
};
constexpr Types float_types{CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F};
constexpr Types bf16_types{CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F};
constexpr Types int8_types{CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, CUDA_R_32I};

/// What a product looks like to the library, and the algorithm that it was given. (Where its bias
/// stands is told anew each time.)
struct Plan {
    Owned<cublasLtMatmulDesc_t, &CublasLt::matmul_desc_destroy> operation;
    Owned<cublasLtMatrixLayout_t, &CublasLt::matrix_layout_destroy> w, x, out;
    cublasLtMatmulAlgo_t algorithm{};
};

cublasLtMatrixLayout_t layout(cudaDataType type, int64_t rows, int64_t columns, int64_t stride) {
    cublasLtMatrixLayout_t result = nullptr;
    check(cublaslt().matrix_layout_create(&result, type, static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(columns), stride),
          "describing a matrix");
    return result;
}

using Key = std::tuple<int, bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, uint32_t>;

/// Bytes that all of these addresses and strides are multiples of, at most 16.
uint32_t alignment_of(const void* x, const void* w, const void* out) {
    const auto bits = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(w) |
                      reinterpret_cast<uintptr_t>(out) | 16u;
    return static_cast<uint32_t>(bits & (~bits + 1));
}

void choose_algorithm(Plan& plan, uint32_t alignment) {
    Owned<cublasLtMatmulPreference_t, &CublasLt::matmul_preference_destroy> preference;
    check(cublaslt().matmul_preference_create(&preference.handle), "asking for an algorithm");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
        check(cublaslt().matmul_preference_set_attribute(preference.handle, what, &value,
                                                         sizeof(value)),
              "asking for an algorithm");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(library_bytes));
    // One pass over k: no partial sums whose number depends on the shape.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE));
    for (const auto what :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
        set(what, alignment);
    }
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    check(cublaslt().matmul_algo_get_heuristic(library(), plan.operation.handle, plan.w.handle,
                                               plan.x.handle, plan.out.handle, plan.out.handle,
                                               preference.handle, 1, &found, &count),
          "choosing an algorithm");
    if (count == 0) fail("cuBLASLt: no algorithm for a product of this shape");
    plan.algorithm = found.algo;
}

template <class Value>
void set(const Plan& plan, cublasLtMatmulDescAttributes_t what, const Value& value) {
    check(cublaslt().matmul_desc_set_attribute(plan.operation.handle, what, &value, sizeof(value)),
          "describing a product");
}

/// A shape, and what else an algorithm is chosen for.
struct Product {
    Types types;
    int64_t m, n, k, x_stride, w_stride, out_stride;
    uint32_t alignment;
};

void make(Plan& plan, const Product& product, const float* bias) {
    const Types& types = product.types;
    check(cublaslt().matmul_desc_create(&plan.operation.handle, types.compute, types.scale),
          "describing a product");
    set(plan, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (bias != nullptr) {
        set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
    plan.w.handle = layout(types.factor, product.k, product.n, product.w_stride);
    plan.x.handle = layout(types.factor, product.k, product.m, product.x_stride);
    plan.out.handle = layout(types.result, product.n, product.m, product.out_stride);
    choose_algorithm(plan, product.alignment);
}

/// Made once for each shape: a model has few.
const Plan& plan_for(const Product& product, const float* bias) {
    static std::map<Key, Plan> plans;
    constexpr size_t most_plans = 4096;
    if (plans.size() >= most_plans) plans.clear();
    const auto& [types, m, n, k, x_stride, w_stride, out_stride, alignment] = product;
    const Key key{types.factor, bias != nullptr, m,          n,        k,
                  x_stride,     w_stride,        out_stride, alignment};
    const auto [place, fresh] = plans.try_emplace(key);
    if (fresh) {
        try {
            make(place->second, product, bias);
        } catch (...) {
            plans.erase(place);  // half of a plan would serve the next product
            throw;
        }
    }
    return place->second;
}

void multiply(const Types& types, const void* x, int64_t x_stride, const void* w, int64_t w_stride,
              int64_t m, int64_t n, int64_t k, const void* scale, const void* keep,
              const float* bias, void* out, int64_t out_stride) {
    if (m == 0 || n == 0) return;
    const Plan& plan =
        plan_for({types, m, n, k, x_stride, w_stride, out_stride, alignment_of(x, w, out)}, bias);
    if (bias != nullptr) set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    check(cublaslt().matmul(library(), plan.operation.handle, scale, w, plan.w.handle, x,
                            plan.x.handle, keep, out, plan.out.handle, out, plan.out.handle,
                            &plan.algorithm, library_memory(), library_bytes, stream()),
          "multiplying");
}

}  // namespace

void product(const void* x, int64_t x_stride, const void* w, int64_t w_stride, DType dtype,
             int64_t m, int64_t n, int64_t k, float scale, float keep, const float* bias,
             float* out, int64_t out_stride) {
    multiply(dtype == DType::f32 ? float_types : bf16_types, x, x_stride, w, w_stride, m, n, k,
             &scale, &keep, bias, out, out_stride);
}

void product_int8(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t w_stride, int64_t m,
                  int64_t n, int64_t k, int32_t* out, int64_t out_stride) {
    const int32_t one = 1;
    const int32_t zero = 0;
    multiply(int8_types, x, x_stride, w, w_stride, m, n, k, &one, &zero, nullptr, out, out_stride);
}

void take_product_memory() {
    library_memory();
}

}  // namespace mllama::cuda
