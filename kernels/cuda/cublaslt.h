// cuBLASLt, which is opened when it is first needed: a program with kernels starts on machines that
// lack it, and says so to those who ask for the GPU.
#pragma once

#include <cublasLt.h>

#include <string>

namespace mllama::cuda {

/// The functions that are used, by their names without "cublasLt".
struct CublasLt {
    decltype(&cublasLtGetVersion) get_version;
    decltype(&cublasLtGetStatusString) status_string;
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtMatmulDescCreate) matmul_desc_create;
    decltype(&cublasLtMatmulDescDestroy) matmul_desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) matmul_desc_set_attribute;
    decltype(&cublasLtMatrixLayoutCreate) matrix_layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) matrix_layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) matmul_preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) matmul_preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) matmul_preference_set_attribute;
    decltype(&cublasLtMatmulAlgoGetHeuristic) matmul_algo_get_heuristic;
    decltype(&cublasLtMatmul) matmul;
};

/// Why there is none, as a sentence for users; "" if there is.
std::string cublaslt_fault();

/// Only if there is no fault. It stays open.
const CublasLt& cublaslt();

}  // namespace mllama::cuda
