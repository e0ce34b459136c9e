// A file open for reading.
#pragma once

#include <cstdint>
#include <string>

namespace mllama {

/// A file's descriptor, closed at the end.
class InputFile {
  public:
    enum class Kind : uint8_t {
        regular,  ///< pipes and devices are refused, at once: a pipe without a writer would make
                  ///< the opening wait for ever
        any,      ///< a pipe or terminal is waited for
    };

    /// Throws Error that names the path and the system's reason: it does not exist, may not be
    /// read, is a directory or not of the kind.
    explicit InputFile(const std::string& path, Kind kind = Kind::regular);
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;
    ~InputFile();

    [[nodiscard]] int descriptor() const { return descriptor_; }
    /// Bytes of a regular file, at the moment of opening.
    [[nodiscard]] int64_t size() const { return size_; }
    /// Everything from here to the end. Throws Error if it is more than `limit` bytes or cannot be
    /// read.
    [[nodiscard]] std::string read_to_end(int64_t limit) const;

  private:
    void check_kind(Kind kind);

    std::string path_;
    int descriptor_;
    int64_t size_ = 0;
};

}  // namespace mllama
