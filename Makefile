# A thin front of CMake. `make demo` and `make test` are enough on a fresh machine: they install what is missing.
BUILD ?= build
JOBS  ?= $(shell nproc)
CMAKE_OPTIONS ?=
# Where `make install` puts things; empty: CMake's default, /usr/local.
PREFIX ?=
MAKEFLAGS += --no-print-directory

# Options of tests/peers/peers.py for `make peers`, and where it keeps 20 GB of environment and weights.
PEERS_OPTIONS ?=
MLLAMA_PEERS_WORK ?= $(BUILD)/peers

.PHONY: all configure build program demo test test-sanitized bench peers lint format install packages clean

all: build

# Packages by name from Debian; without the rights, the command to run is printed.
packages:
	@.ci/packages build

configure: packages
	@cmake -S . -B $(BUILD) $(CMAKE_OPTIONS) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log

build: configure
	@cmake --build $(BUILD) --parallel $(JOBS)

# The program alone: what `make` builds beside it are the libraries and the tests.
program: configure
	@cmake --build $(BUILD) --target mllama --parallel $(JOBS)

demo: program
	@$(BUILD)/mllama demo

test: build
	@tests/run.sh $(BUILD)

# The same tests under AddressSanitizer and UndefinedBehaviorSanitizer; the kernels of the GPU as plain C++.
test-sanitized:
	@$(MAKE) test BUILD=build-sanitized \
	    CMAKE_OPTIONS="-DMLLAMA_SANITIZE=address,undefined -DMLLAMA_CUDA=OFF $(CMAKE_OPTIONS)"

bench: program
	@$(BUILD)/mllama bench -m apps/demo/model --images 1

# This engine beside transformers and llama.cpp; tests/peers/README.md.
peers: program
	@MLLAMA_PEERS_WORK=$(MLLAMA_PEERS_WORK) tests/peers/run.sh $(BUILD) $(PEERS_OPTIONS)

lint:
	@.ci/packages lint
	@.ci/lint $(BUILD)

format:
	@.ci/packages lint
	@git ls-files '*.cpp' '*.h' '*.cu' | xargs clang-format-14 -i

install: build
	@cmake --install $(BUILD) $(if $(PREFIX),--prefix $(abspath $(PREFIX)))

clean:
	rm -rf build build-sanitized
