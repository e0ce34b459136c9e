#include "io/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/error.h"

namespace mllama {

InputFile::InputFile(const std::string& path, Kind kind)
    : path_(path),
      descriptor_(
          ::open(path.c_str(), O_RDONLY | O_CLOEXEC | (kind == Kind::regular ? O_NONBLOCK : 0))) {
    if (descriptor_ < 0) fail(path, ": cannot be read: ", std::strerror(errno));
    try {
        check_kind(kind);
    } catch (...) {
        ::close(descriptor_);
        throw;
    }
}

void InputFile::check_kind(Kind kind) {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) fail(path_, ": cannot be read: ", std::strerror(errno));
    if (S_ISDIR(status.st_mode)) fail(path_, ": expected a file, found a directory");
    if (kind == Kind::regular && !S_ISREG(status.st_mode))
        fail(path_, ": expected a regular file, found a device or pipe");
    size_ = status.st_size;
}

InputFile::~InputFile() {
    ::close(descriptor_);
}

std::string InputFile::read_to_end(int64_t limit) const {
    std::string content;
    char block[1 << 16];
    for (;;) {
        const ssize_t count = ::read(descriptor_, block, sizeof block);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail(path_, ": cannot be read: ", std::strerror(errno));
        if (count == 0) return content;
        content.append(block, static_cast<size_t>(count));
        if (static_cast<int64_t>(content.size()) > limit) {
            fail(path_, ": larger than the ", limit, " bytes that are read of such a file");
        }
    }
}

}  // namespace mllama
