// mmap with errors that name the path.
#include "io/mapped_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>

#include "io/input_file.h"
#include "kernels/error.h"

namespace mllama {
MappedFile::MappedFile(const std::string& path) : path_(path) {
    const InputFile file(path);
    size_ = file.size();
    if (size_ == 0) return;  // nothing can be mapped of it
    void* memory =
        ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file.descriptor(), 0);
    if (memory == MAP_FAILED) fail(path, ": cannot be mapped: ", std::strerror(errno));
    data_ = static_cast<const std::byte*>(memory);
}

MappedFile::~MappedFile() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
}

void MappedFile::let_go(int64_t begin, int64_t end) const {
    assert(0 <= begin && begin <= end && end <= size_);
    const int64_t page = ::sysconf(_SC_PAGESIZE);
    const int64_t from = begin / page * page;
    if (from == end) return;
    ::madvise(const_cast<std::byte*>(data_) + from, static_cast<size_t>(end - from),
              MADV_DONTNEED);  // that a system does not follow advice is no error
}

}  // namespace mllama
