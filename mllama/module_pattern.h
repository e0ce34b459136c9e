// Names of modules as quantisation configs list them: exact ones, and regular expressions behind
// "re:".
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mllama {

/// One entry of a `targets` or `ignore` list of compressed-tensors. "re:PATTERN" matches a name that
/// begins with what PATTERN describes (Python's re.match); any other text matches a name that is
/// equal to it.
///
/// Patterns come from files, so they run in time proportional to pattern times name (Thompson 1968:
/// all ways through the pattern at once), whatever they are. Of Python's syntax they may hold
/// characters, . [...] \d \w \s and their complements, groups, | * + ? {m,n} (also lazy), ^ and $.
class ModulePattern {
  public:
    /// Throws Error, which begins with `where`, for a pattern that is malformed, too long, or uses
    /// what is not listed above.
    ModulePattern(const std::string& text, const std::string& where);

    [[nodiscard]] bool matches(std::string_view name) const;
    /// As it stands in the file.
    [[nodiscard]] const std::string& text() const { return text_; }
    [[nodiscard]] bool is_expression() const { return !program_.empty(); }
    /// Of the compiled expression: what `matches` may take for each byte of a name. 0 of an exact
    /// name.
    [[nodiscard]] int64_t steps() const { return static_cast<int64_t>(program_.size()); }

    /// A step of a compiled pattern. Steps follow each other; `next` and `other` count from the
    /// step itself.
    struct Step {
        enum class Kind : uint8_t { byte, split, begin, end, match };
        Kind kind = Kind::match;
        int64_t next = 1;
        int64_t other = 0;         ///< split: the second way on
        std::bitset<256> bytes{};  ///< byte: those that pass
    };
    using Program = std::vector<Step>;

  private:
    std::string text_;
    Program program_;  // empty: an exact name
};

}  // namespace mllama
