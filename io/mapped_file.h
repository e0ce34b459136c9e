// A file as read-only memory: pages are read from disk when they are first touched, and the system
// may drop them again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace mllama {

/// The whole of a regular file, mapped. Shared by those who hold views of its bytes; unmapped with
/// the last of them.
///
/// The size is that of the moment of opening, and readers check what they want against it. A file
/// that another program makes shorter while it is mapped cannot be guarded against: touching the
/// lost bytes raises SIGBUS. Replace files by renaming (as SafetensorsWriter does), which leaves
/// the mapped one as it was.
class MappedFile {
  public:
    /// Throws Error that names the path and the system's reason: it does not exist, is a directory,
    /// may not be read.
    explicit MappedFile(const std::string& path);
    static std::shared_ptr<const MappedFile> open(const std::string& path) {
        return std::make_shared<const MappedFile>(path);
    }

    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    ~MappedFile();

    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] int64_t size() const { return size_; }
    /// The first byte, at the start of a page; null if the file is empty.
    [[nodiscard]] const std::byte* data() const { return data_; }
    [[nodiscard]] std::string_view bytes() const {
        return {reinterpret_cast<const char*>(data_), static_cast<size_t>(size_)};
    }

    /// The pages of bytes [begin, end) are not needed again soon: the system may drop them. (Other advice
    /// gained nothing where it was tried, see PERFORMANCE.md.)
    void let_go(int64_t begin, int64_t end) const;

  private:
    std::string path_;
    int64_t size_ = 0;
    const std::byte* data_ = nullptr;
};

}  // namespace mllama
