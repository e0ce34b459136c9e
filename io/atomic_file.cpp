// Write, flush to disk, name, rename.
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

std::string directory_of(const std::string& path) {
    const std::string directory = std::filesystem::path(path).parent_path().string();
    return directory.empty() ? "." : directory;
}

/// The name by which the system lets a nameless file be linked (open(2), O_TMPFILE).
std::string link_to(int descriptor) {
    return "/proc/self/fd/" + std::to_string(descriptor);
}

/// A nameless file on the file system of `path`, or -1 where that cannot be had.
int open_nameless(const std::string& path) {
    const int descriptor =
        ::open(directory_of(path).c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
    if (descriptor < 0 || ::access(link_to(descriptor).c_str(), F_OK) == 0) return descriptor;
    ::close(descriptor);  // without /proc it could never be named
    return -1;
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path, bool may_be_nameless) : path_(target_file(path)) {
    if (may_be_nameless) descriptor_ = open_nameless(path_);
    if (descriptor_ >= 0) return;
    // Not mkstemp: that would leave a file which only its owner may read.
    descriptor_ = with_temporary_name([](const char* name) {
        return ::open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    });
}

AtomicFile::~AtomicFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

/// What `make` makes of the first name that is not taken, which is kept. `make` returns a negative
/// number if it fails.
template <class Make>
int AtomicFile::with_temporary_name(const Make& make) {
    for (int attempt = 0;; ++attempt) {
        const std::string name =
            path_ + ".partial-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
        const int made = make(name.c_str());
        if (made < 0 && errno == EEXIST) continue;
        if (made < 0) fail_to_write(errno);
        temporary_ = name;
        return made;
    }
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
    if (temporary_.empty()) {
        with_temporary_name([this](const char* name) {
            return ::linkat(AT_FDCWD, link_to(descriptor_).c_str(), AT_FDCWD, name,
                            AT_SYMLINK_FOLLOW);
        });
    }
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_to_write(errno);
    ::close(descriptor_);
    descriptor_ = -1;
    flush_directory_of(path_);  // a rename is on disk when its directory is
}

void AtomicFile::fail_to_write(int error) const {
    fail(path_, ": cannot be written: ", std::strerror(error));
}

void write_file(const std::string& path, std::string_view content) {
    AtomicFile file(path);
    file.write(content.data(), static_cast<int64_t>(content.size()), 0);
    file.commit();
}

void flush_directory(const std::string& directory) {
    const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;
    ::fsync(descriptor);
    ::close(descriptor);
}

void flush_directory_of(const std::string& path) {
    flush_directory(directory_of(path));
}

}  // namespace mllama
