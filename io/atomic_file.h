// A file that appears whole or not at all.
#pragma once

#include <cstdint>
#include <string>

namespace mllama {

/// Written under a temporary name beside its target, which it replaces when it is complete and on
/// disk. Until then the target stays as it was; if it never comes to that, the temporary file is
/// removed. Who has the old file mapped keeps the old bytes.
class AtomicFile {
  public:
    /// Throws Error naming the path and the reason: the directory does not exist, may not be
    /// written to, or what stands at `path` is no regular file. Symbolic links are followed.
    explicit AtomicFile(const std::string& path);
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;
    ~AtomicFile();

    /// Writes at a byte position, in any order. Throws Error naming the path and the reason.
    void write(const void* data, int64_t bytes, int64_t offset);

    /// Puts the file in its place. Nothing may be written afterwards. Throws as write.
    void commit();

  private:
    [[noreturn]] void fail_to_write(int error) const;

    std::string path_;  // behind symbolic links
    std::string temporary_;
    int descriptor_ = -1;  // -1 before and after
};

}  // namespace mllama
