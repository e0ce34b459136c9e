# A thin front of CMake. `make demo` and `make test` are enough on a fresh machine: they install what is missing.
BUILD ?= build
JOBS  ?= $(shell nproc)
CMAKE_OPTIONS ?=

.PHONY: all build demo test test-sanitized bench lint format install packages clean

all: build

# Packages by name from Debian; without the rights, the command to run is printed.
packages:
	@.ci/packages build

build: packages
	@cmake -S . -B $(BUILD) $(CMAKE_OPTIONS) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log
	@cmake --build $(BUILD) --parallel $(JOBS)

demo: build
	@$(BUILD)/mllama demo

test: build
	@tests/run.sh $(BUILD)

# The same tests under AddressSanitizer and UndefinedBehaviorSanitizer.
test-sanitized:
	@$(MAKE) --no-print-directory test BUILD=build-sanitized \
	    CMAKE_OPTIONS="-DMLLAMA_SANITIZE=address,undefined $(CMAKE_OPTIONS)"

bench: build
	@$(BUILD)/mllama bench -m apps/demo/model --images 1

lint:
	@.ci/packages lint
	@.ci/lint $(BUILD)

format:
	@.ci/packages lint
	@git ls-files '*.cpp' '*.h' | xargs clang-format-14 -i

install: build
	@cmake --install $(BUILD)

clean:
	rm -rf build build-sanitized
