// Write, flush to disk, rename.
#include "io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "kernels/error.h"

namespace mllama {
namespace {

/// The file itself behind symbolic links; it need not exist. Throws if something stands there that
/// is no regular file: renaming would replace it (think of /dev/null).
std::string target_file(const std::string& path) {
    std::error_code error;
    const std::filesystem::path target = std::filesystem::weakly_canonical(path, error);
    if (error) fail(path, ": cannot be written: ", error.message());
    const std::filesystem::file_status status = std::filesystem::status(target, error);
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
        fail(path,
             ": cannot be written: expected a file or nothing there, found a directory or device");
    }
    return target.string();
}

/// A rename is on disk when its directory is. Not all file systems can do this; then it is theirs
/// to order.
void flush_directory_of(const std::string& path) {
    const std::string directory = std::filesystem::path(path).parent_path().string();
    const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;
    ::fsync(descriptor);
    ::close(descriptor);
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(target_file(path)) {
    // Not mkstemp: that would leave a file which only its owner may read.
    for (int attempt = 0; descriptor_ < 0; ++attempt) {
        temporary_ =
            path_ + ".partial-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
        descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor_ < 0 && errno != EEXIST) fail_to_write(errno);
    }
}

AtomicFile::~AtomicFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, int64_t bytes, int64_t offset) {
    assert(descriptor_ >= 0 && bytes >= 0 && offset >= 0);
    const auto* next = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t written = ::pwrite(descriptor_, next, static_cast<size_t>(bytes), offset);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) fail_to_write(written < 0 ? errno : ENOSPC);
        next += written;
        offset += written;
        bytes -= written;
    }
}

void AtomicFile::commit() {
    assert(descriptor_ >= 0);
    // On failure the destructor closes and removes.
    if (::fsync(descriptor_) != 0) fail_to_write(errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_to_write(errno);
    ::close(descriptor_);
    descriptor_ = -1;
    flush_directory_of(path_);
}

void AtomicFile::fail_to_write(int error) const {
    fail(path_, ": cannot be written: ", std::strerror(error));
}

}  // namespace mllama
