# Looks for a CUDA compiler. Sets MLLAMA_HAS_CUDA, and if there is one makes the objects
# cuda_kernels and sets
# MLLAMA_CUDA_OBJECTS to them and MLLAMA_CUDA_LIBRARIES to what they need.
set(MLLAMA_HAS_CUDA OFF)
set(MLLAMA_CUDA_OBJECTS)
set(MLLAMA_CUDA_LIBRARIES)
if(NOT MLLAMA_CUDA STREQUAL "OFF")
    include(CheckLanguage)
    if(NOT CMAKE_CUDA_COMPILER)
        find_program(nvcc nvcc PATHS /usr/local/cuda/bin)
        if(nvcc)
            set(CMAKE_CUDA_COMPILER ${nvcc})
        endif()
    endif()
    if(NOT CMAKE_CUDA_ARCHITECTURES)
        # A100 and H100 (90a: with its warpgroups), and code that the driver compiles for what comes after.
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
    endif()
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
        enable_language(CUDA)
        if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake 3.25 does not know how to ask newer compilers
            set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
            set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
        endif()
        find_package(CUDAToolkit)
    endif()
    # cuBLASLt's header alone: the library is opened when the program runs (cublaslt.cpp).
    find_file(MLLAMA_CUBLASLT_HEADER cublasLt.h PATHS ${CUDAToolkit_INCLUDE_DIRS})
    mark_as_advanced(MLLAMA_CUBLASLT_HEADER)
    if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0
       AND MLLAMA_CUBLASLT_HEADER)
        set(MLLAMA_HAS_CUDA ON)
    elseif(MLLAMA_CUDA STREQUAL "ON")
        message(FATAL_ERROR "MLLAMA_CUDA=ON: expected nvcc 12.0 or later with cublasLt.h, found "
                            "${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION} ${MLLAMA_CUBLASLT_HEADER}")
    endif()
endif()
message(STATUS "CUDA kernels: ${MLLAMA_HAS_CUDA}")
if(MLLAMA_HAS_CUDA)
    set(CMAKE_CUDA_FLAGS_RELEASE "-O2")
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cu)
    add_library(cuda_kernels OBJECT ${sources})
    target_include_directories(cuda_kernels PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(cuda_kernels PRIVATE CUDA::cudart_static)
    # constexpr functions, such as those of kv_layout.h, serve host and device.
    target_compile_options(cuda_kernels PRIVATE --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra
                           $<$<BOOL:${MLLAMA_WERROR}>:-Werror=all-warnings -Xcompiler=-Werror>)
    set(MLLAMA_CUDA_OBJECTS $<TARGET_OBJECTS:cuda_kernels>)
    set(MLLAMA_CUDA_LIBRARIES CUDA::cudart_static ${CMAKE_DL_LIBS})
endif()
