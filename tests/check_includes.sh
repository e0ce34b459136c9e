#!/bin/sh
# The architecture is a direction: kernels <- tensor <- nn <- mllama <- apps;  io -> tensor;  tokenizer -> io/json.h only.
# Reads the include lines and fails on an arrow that points up, and on Eigen, CUDA or intrinsics outside kernels/.
# kernels/error.h (the exception type) may be included from everywhere.
set -eu
cd "$(dirname "$0")/.."
bad=0

complain() {
    echo "$1"
    bad=1
}

# allowed FOLDER "PATTERN": every quoted include of FOLDER must match the pattern.
allowed() {
    found=$(grep -nE '^#include "' "$1"/*.h "$1"/*.cpp 2>/dev/null | grep -vE "#include \"(kernels/error\.h|$2)" || true)
    if [ -n "$found" ]; then complain "$1/ may not include:
$found"; fi
}

allowed kernels 'kernels/'
found=$(grep -nE '^#include "' kernels/cuda/*.h kernels/cuda/*.cu kernels/cuda/*.cpp | grep -vE '#include "kernels/' || true)
if [ -n "$found" ]; then complain "kernels/cuda may not include:
$found"; fi
found=$(grep -nE '#include <(cuda|cublas)' -r kernels/*.h kernels/*.cpp || true)
if [ -n "$found" ]; then complain "only kernels/cuda/ may include CUDA:
$found"; fi
allowed tensor '(kernels|tensor)/'
allowed nn '(kernels/dtype\.h|tensor/|nn/)'
allowed io '(kernels/dtype\.h|tensor/|io/)'
allowed tokenizer '(tokenizer/|io/json\.h)'
allowed mllama '(kernels/dtype\.h|tensor/|nn/|io/|tokenizer/|mllama/)'
allowed apps '(kernels/(dtype|limits|reference)\.h|tensor/|nn/|io/|tokenizer/|mllama/|apps/)'

found=$(grep -nE '#include <(Eigen|.*intrin\.h|cuda|cublas|thread>)' -r tensor nn io tokenizer mllama apps || true)
if [ -n "$found" ]; then complain "only kernels/ may include Eigen, CUDA, threads or intrinsics:
$found"; fi
found=$(grep -lE '#include <Eigen' kernels/*.h kernels/*.cpp | grep -v '^kernels/cpu_portable.cpp$' || true)
if [ -n "$found" ]; then complain "only kernels/cpu_portable.cpp may include Eigen: $found"; fi

# Nothing below mllama/ names the model.
found=$(grep -nE 'vision_model|language_model|multi_modal_projector|cross_attn' kernels/*.h kernels/*.cpp tensor/*.h tensor/*.cpp nn/*.h nn/*.cpp io/*.h io/*.cpp || true)
if [ -n "$found" ]; then complain "below mllama/ nothing names a model:
$found"; fi
exit $bad
