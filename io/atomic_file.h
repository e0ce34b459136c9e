// A file that appears whole or not at all.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mllama {

/// Written without a name (Linux's O_TMPFILE); when it is complete and on disk it gets one beside
/// its target, which it replaces by a rename. Until then the target stays as it was, and if it never
/// comes to that nothing stays behind, however the program ends. On file systems without nameless
/// files (NFS, some overlays) it is written under the temporary name NAME.partial-PID-N, which the
/// destructor removes and only a kill leaves behind. Who has the old file mapped keeps the old
/// bytes.
class AtomicFile {
  public:
    /// Throws Error naming the path and the reason: the directory does not exist, may not be
    /// written to, or what stands at `path` is no regular file. Symbolic links are followed.
    /// `may_be_nameless` false: as on a file system without nameless files.
    explicit AtomicFile(const std::string& path, bool may_be_nameless = true);
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;
    ~AtomicFile();

    /// Writes at a byte position, in any order. Throws Error naming the path and the reason.
    void write(const void* data, int64_t bytes, int64_t offset);

    /// Puts the file in its place. Nothing may be written afterwards. Throws as write.
    void commit();

  private:
    template <class Make>
    int with_temporary_name(const Make& make);
    [[noreturn]] void fail_to_write(int error) const;

    std::string path_;       // behind symbolic links
    std::string temporary_;  // empty while the file has no name
    int descriptor_ = -1;    // -1 before and after
};

/// Writes a whole file at once. Errors as AtomicFile.
void write_file(const std::string& path, std::string_view content);

/// Asks the system to put the names in a directory on disk. Not all file systems can do this; then
/// it is theirs to order.
void flush_directory(const std::string& directory);
/// The same for the directory that a path is in.
void flush_directory_of(const std::string& path);

}  // namespace mllama
