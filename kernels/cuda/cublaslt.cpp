// The library by its file name: where the system looks for libraries, and in the toolkit that this
// program was built with (MLLAMA_CUDA_LIBRARY_DIR).
#include "kernels/cuda/cublaslt.h"

#include <dlfcn.h>

namespace mllama::cuda {
namespace {

constexpr size_t wanted = CUBLAS_VER_MAJOR;  // of the header: others may have other structures

struct Opened {
    CublasLt functions{};
    std::string fault;
};

void* open_file(const std::string& versioned) {
    const std::string toolkit = MLLAMA_CUDA_LIBRARY_DIR "/";
    const std::string plain = "libcublasLt.so";
    for (const std::string& file : {versioned, toolkit + versioned, plain, toolkit + plain}) {
        if (void* library = ::dlopen(file.c_str(), RTLD_LAZY | RTLD_LOCAL)) return library;
    }
    return nullptr;
}

/// Finds a function; the name of the first that is missing stays in `missing`.
template <class Function>
void find(void* library, const char* name, Function& function, const char*& missing) {
    function = reinterpret_cast<Function>(::dlsym(library, name));
    if (!function && !missing) missing = name;
}

const char* find_functions(void* library, CublasLt& lt) {
    const char* missing = nullptr;
    const auto get = [&](const char* name, auto& function) {
        find(library, name, function, missing);
    };
    get("cublasLtGetVersion", lt.get_version);
    get("cublasLtGetStatusString", lt.status_string);
    get("cublasLtCreate", lt.create);
    get("cublasLtMatmulDescCreate", lt.matmul_desc_create);
    get("cublasLtMatmulDescDestroy", lt.matmul_desc_destroy);
    get("cublasLtMatmulDescSetAttribute", lt.matmul_desc_set_attribute);
    get("cublasLtMatrixLayoutCreate", lt.matrix_layout_create);
    get("cublasLtMatrixLayoutDestroy", lt.matrix_layout_destroy);
    get("cublasLtMatmulPreferenceCreate", lt.matmul_preference_create);
    get("cublasLtMatmulPreferenceDestroy", lt.matmul_preference_destroy);
    get("cublasLtMatmulPreferenceSetAttribute", lt.matmul_preference_set_attribute);
    get("cublasLtMatmulAlgoGetHeuristic", lt.matmul_algo_get_heuristic);
    get("cublasLtMatmul", lt.matmul);
    return missing;
}

Opened open_library() {
    Opened result;
    const std::string name = "libcublasLt.so." + std::to_string(wanted);
    void* library = open_file(name);
    if (!library) {
        result.fault = name + " was not found (cuBLAS of CUDA " + std::to_string(wanted) +
                       ": install it, or name its folder in LD_LIBRARY_PATH)";
    } else if (const char* missing = find_functions(library, result.functions)) {
        result.fault = "the libcublasLt.so that was found lacks " + std::string(missing) +
                       ", this program needs " + name;
    } else if (const size_t found = result.functions.get_version() / 10000; found != wanted) {
        result.fault = "the libcublasLt.so that was found is of CUDA " + std::to_string(found) +
                       ", this program needs " + name;
    }
    return result;
}

const Opened& opened() {
    static const Opened library = open_library();
    return library;
}

}  // namespace

std::string cublaslt_fault() {
    return opened().fault;
}

const CublasLt& cublaslt() {
    return opened().functions;
}

}  // namespace mllama::cuda
