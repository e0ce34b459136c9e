#include "io/atomic_directory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "io/atomic_file.h"
#include "kernels/error.h"

namespace mllama {
namespace {

namespace fs = std::filesystem;

/// "a/b/" is "a/b".
std::string without_last_slashes(std::string path) {
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    return path;
}

}  // namespace

AtomicDirectory::AtomicDirectory(const std::string& target)
    : target_(without_last_slashes(target)) {
    check_is_free(target_);
    for (int attempt = 0;; ++attempt) {
        temporary_ =
            target_ + ".partial-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
        if (::mkdir(temporary_.c_str(), 0777) == 0) return;
        if (errno != EEXIST) fail_to_write(errno);
    }
}

void AtomicDirectory::check_is_free(const std::string& target) {
    if (target.empty()) fail("expected the name of a directory to write, found an empty name");
    std::error_code error;
    if (fs::exists(fs::symlink_status(without_last_slashes(target), error)))
        fail(target, ": cannot be written: expected nothing there, found a file or directory");
}

AtomicDirectory::~AtomicDirectory() {
    std::error_code ignored;
    if (!committed_) fs::remove_all(temporary_, ignored);
}

void AtomicDirectory::commit() {
    flush_directory(temporary_);
    // A rename would replace an empty directory that has come there meanwhile: it has nothing to lose.
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_to_write(errno);
    committed_ = true;
    flush_directory_of(target_);
}

void AtomicDirectory::fail_to_write(int error) const {
    fail(target_, ": cannot be written: ", std::strerror(error));
}

}  // namespace mllama
