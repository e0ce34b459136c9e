// Reading the fields of a binary file: every read is checked against the end of the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/error.h"

namespace mllama {

/// A position in a file's bytes. Reads advance it; a read past the end throws Error "`name`:
/// truncated: ...". The bytes and the name must outlive the reader.
class ByteReader {
  public:
    ByteReader(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}

    size_t position() const { return position_; }
    size_t left() const { return bytes_.size() - position_; }

    /// Moves to an absolute position, at most the size of the file.
    void seek(size_t position) {
        if (position > bytes_.size()) truncated(position);
        position_ = position;
    }

    /// The next n bytes, as a view into the file.
    std::string_view take(size_t n) {
        if (n > left()) truncated(position_ + n);
        const std::string_view part = bytes_.substr(position_, n);
        position_ += n;
        return part;
    }

    uint8_t u8() { return static_cast<uint8_t>(take(1)[0]); }
    uint16_t u16_little() { return static_cast<uint16_t>(little(take(2))); }
    uint32_t u32_little() { return little(take(4)); }
    uint16_t u16_big() { return static_cast<uint16_t>(big(take(2))); }
    uint32_t u32_big() { return big(take(4)); }

  private:
    static uint32_t little(std::string_view bytes) {
        uint32_t value = 0;
        for (size_t i = bytes.size(); i-- > 0;) {
            value = value << 8 | static_cast<uint8_t>(bytes[i]);
        }
        return value;
    }

    static uint32_t big(std::string_view bytes) {
        uint32_t value = 0;
        for (const char byte : bytes) value = value << 8 | static_cast<uint8_t>(byte);
        return value;
    }

    [[noreturn]] void truncated(size_t needed) const {
        fail(name_, ": truncated: expected at least ", needed, " bytes, found ", bytes_.size());
    }

    std::string_view bytes_;
    const std::string& name_;
    size_t position_ = 0;
};

}  // namespace mllama
