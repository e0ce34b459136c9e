#!/bin/sh
# Builds the environment of the peers, once, and runs peers.py in it.
# usage: run.sh BUILD_DIR [options of peers.py]
#   MLLAMA_PEERS_WORK    keeps environment and weights; default BUILD_DIR/peers
#   MLLAMA_PEERS_PYTHON  an interpreter that has the packages of requirements.txt already
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=${1:?usage: run.sh BUILD_DIR [options]}
shift
work=${MLLAMA_PEERS_WORK:-$build/peers}
mkdir -p "$work"
work=$(cd "$work" && pwd)
log="$work/environment.log"
venv="$work/venv"

has() { # has MODULES: can the interpreter import them?
    "$python" -c "import $1" >/dev/null 2>&1
}

requirement() { # requirement NAME: its line in requirements.txt
    grep "^$1==" "$here/requirements.txt"
}

install() { # install PIP_ARGUMENTS...
    "$python" -m pip install --disable-pip-version-check "$@" >>"$log" 2>&1
}

if [ -n "${MLLAMA_PEERS_PYTHON:-}" ]; then
    python=$MLLAMA_PEERS_PYTHON
else
    python="$venv/bin/python"
    if [ ! -x "$python" ] && ! python3 -m venv "$venv" >"$log" 2>&1; then
        rm -rf "$venv"
        "$here/../../.ci/packages" peers
        python3 -m venv "$venv"
    fi
    if ! has torch,transformers,gguf; then
        echo "Installing PyTorch and transformers in $venv (7 GB, some minutes) ..." >&2
        install "$(requirement torch)" "$(requirement transformers)" "$(requirement gguf)" ||
            { tail -n 5 "$log" >&2; echo "peers: pip failed, see $log" >&2; exit 1; }
    fi
    if ! has llama_cpp; then
        echo "Building llama.cpp for this processor (ten minutes of a core) ..." >&2
        CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" \
            install --no-binary llama-cpp-python "$(requirement llama-cpp-python)" ||
            { tail -n 5 "$log" >&2; echo "llama.cpp could not be built, see $log" >&2; }
    fi
fi
has torch,transformers || { echo "peers: $python has no torch and transformers" >&2; exit 1; }

exec "$python" -B "$here/peers.py" --binary "$build/mllama" --work "$work" "$@"
