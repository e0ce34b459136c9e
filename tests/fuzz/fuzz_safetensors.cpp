// libFuzzer program for safetensors files: the input is a file. Whatever it holds, it is refused
// with an Error, or every tensor lies within the file behind the one before and can be read. Good
// seeds: tests/goldens/safetensors.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "io/safetensors.h"
#include "io/safetensors_header.h"
#include "kernels/error.h"

using namespace mllama;

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

/// A file in memory; its path is /proc/self/fd/N.
class MemoryFile {
  public:
    explicit MemoryFile(std::string_view bytes) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
        require(descriptor_ >= 0);
        require(::write(descriptor_, bytes.data(), bytes.size()) ==
                static_cast<ssize_t>(bytes.size()));
    }
    MemoryFile(const MemoryFile&) = delete;
    MemoryFile& operator=(const MemoryFile&) = delete;
    ~MemoryFile() { ::close(descriptor_); }
    [[nodiscard]] std::string path() const {
        return "/proc/self/fd/" + std::to_string(descriptor_);
    }

  private:
    int descriptor_;
};

void check_layout(const SafetensorsHeader& header, std::string_view bytes) {
    int64_t end = header.tensors.empty() ? 0 : header.tensors.front().begin;
    require(header.tensors.empty() || end >= 8);
    for (const TensorInfo& tensor : header.tensors) {
        require(tensor.begin == end && tensor.bytes >= 0);
        end += tensor.bytes;
    }
    require(header.tensors.empty() || end == static_cast<int64_t>(bytes.size()));
}

/// Reads every byte of every tensor that can be held.
void read_all(const SafetensorsFile& file) {
    uint64_t sum = 0;
    for (const TensorInfo& info : file.tensors()) {
        require(file.find(info.name) == &info);
        try {
            const Tensor tensor = file.get(info.name);
            require(tensor.bytes() == info.bytes && tensor.dtype() == *info.dtype);
            const auto* bytes = static_cast<const uint8_t*>(tensor.data());
            for (int64_t i = 0; i < tensor.bytes(); ++i) sum += bytes[i];
        } catch (const Error&) {  // a type or a shape that a Tensor cannot have
        }
    }
    volatile uint64_t used = sum;
    static_cast<void>(used);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    try {
        check_layout(read_safetensors_header(bytes, "fuzz"), bytes);
    } catch (const Error& error) {
        require(std::string_view(error.what()).starts_with("fuzz: "));
        require(std::string_view(error.what()).find('\n') == std::string_view::npos);
        return 0;
    }
    const MemoryFile file(bytes);
    read_all(SafetensorsFile::open(file.path()));
    return 0;
}
