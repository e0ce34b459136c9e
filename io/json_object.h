// Typed reading of a JSON object whose every value is checked: errors name the file, the key,
// expected and found.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace mllama {

/// One object of a JSON file. Keeps a reference to the document: it must outlive this view.
class JsonObject {
  public:
    /// `where` is what messages begin with: "config.json" or "config.json: text_config". Error if
    /// `object` is none.
    JsonObject(const Json& object, std::string where);

    /// Present and not null.
    [[nodiscard]] bool has(std::string_view key) const;

    /// A required value in [low, high].
    [[nodiscard]] int64_t integer(std::string_view key, int64_t low, int64_t high) const;
    /// As above; `fallback` if the key is absent or null.
    [[nodiscard]] int64_t integer_or(std::string_view key, int64_t low, int64_t high,
                                     int64_t fallback) const;
    /// A finite number in [low, high]; integers are numbers.
    [[nodiscard]] double number(std::string_view key, double low, double high) const;
    [[nodiscard]] double number_or(std::string_view key, double low, double high,
                                   double fallback) const;
    [[nodiscard]] bool boolean_or(std::string_view key, bool fallback) const;
    [[nodiscard]] std::string text(std::string_view key) const;
    [[nodiscard]] std::string text_or(std::string_view key, std::string_view fallback) const;
    /// A list of integers in [low, high]; a lone integer counts as a list of one if `lone`
    /// (eos_token_id is either).
    [[nodiscard]] std::vector<int64_t> integers(std::string_view key, int64_t low, int64_t high,
                                                bool lone = false) const;
    [[nodiscard]] std::vector<double> numbers(std::string_view key) const;
    /// A nested object.
    [[nodiscard]] JsonObject object(std::string_view key) const;
    /// Any value. Error if absent.
    [[nodiscard]] const Json& value(std::string_view key) const;

    /// The first of the names that is present (checkpoints differ), or the first of all if none is.
    [[nodiscard]] std::string_view either(std::string_view first, std::string_view second) const;

    [[nodiscard]] const std::string& where() const { return where_; }

    /// Throws: "where: key: expected ..., found <value>".
    [[noreturn]] void reject(std::string_view key, const std::string& expected) const;

  private:
    const Json& object_;
    std::string where_;
};

}  // namespace mllama
