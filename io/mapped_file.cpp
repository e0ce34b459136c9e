// mmap with errors that name the path.
#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>

#include "kernels/error.h"

namespace mllama {
namespace {

/// Closes a file descriptor: a mapping outlives it.
class Descriptor {
  public:
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    [[nodiscard]] int number() const { return number_; }

  private:
    int number_;
};

[[noreturn]] void fail_to_read(const std::string& path) {
    fail(path, ": cannot be read: ", std::strerror(errno));
}

int system_advice(MappedFile::Advice advice) {
    switch (advice) {
        case MappedFile::Advice::normal:
            return MADV_NORMAL;
        case MappedFile::Advice::sequential:
            return MADV_SEQUENTIAL;
        case MappedFile::Advice::random:
            return MADV_RANDOM;
        case MappedFile::Advice::will_need:
            return MADV_WILLNEED;
        case MappedFile::Advice::drop:
            return MADV_DONTNEED;
    }
    return MADV_NORMAL;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
    // Not blocking: opening a pipe that nobody writes to would wait for ever.
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.number() < 0) fail_to_read(path);
    struct stat status {};
    if (::fstat(file.number(), &status) != 0) fail_to_read(path);
    if (S_ISDIR(status.st_mode)) fail(path, ": expected a file, found a directory");
    if (!S_ISREG(status.st_mode)) fail(path, ": expected a regular file, found a device or pipe");
    size_ = status.st_size;
    if (size_ == 0) return;  // nothing can be mapped of it
    void* memory =
        ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file.number(), 0);
    if (memory == MAP_FAILED) fail(path, ": cannot be mapped: ", std::strerror(errno));
    data_ = static_cast<const std::byte*>(memory);
}

MappedFile::~MappedFile() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
}

void MappedFile::advise(Advice advice, int64_t begin, int64_t end) const {
    assert(0 <= begin && begin <= end && end <= size_);
    const int64_t page = ::sysconf(_SC_PAGESIZE);
    const int64_t from = begin / page * page;
    if (from == end) return;
    ::madvise(const_cast<std::byte*>(data_) + from, static_cast<size_t>(end - from),
              system_advice(advice));
}

}  // namespace mllama
