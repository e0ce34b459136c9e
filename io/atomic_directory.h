// A directory that appears whole or not at all.
#pragma once

#include <string>

namespace mllama {

/// Files are written to path(), a new directory NAME.partial-PID-N beside the target, which gets its
/// name by a rename when all is there. If it never comes to that, the destructor removes it with
/// everything in it; only a kill leaves it behind, under that name.
class AtomicDirectory {
  public:
    /// Throws Error naming the path and the reason: something stands there already, the directory
    /// around it does not exist or may not be written to.
    explicit AtomicDirectory(const std::string& target);
    /// The first of these reasons alone, for those who work long before they write.
    static void check_is_free(const std::string& target);
    AtomicDirectory(const AtomicDirectory&) = delete;
    AtomicDirectory& operator=(const AtomicDirectory&) = delete;
    ~AtomicDirectory();

    /// Where the files go until then.
    [[nodiscard]] const std::string& path() const { return temporary_; }

    /// Puts the directory in its place. Throws Error naming the path and the reason.
    void commit();

  private:
    [[noreturn]] void fail_to_write(int error) const;

    std::string target_;
    std::string temporary_;
    bool committed_ = false;
};

}  // namespace mllama
