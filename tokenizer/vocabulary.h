// The vocabulary of a BPE model: token spelling <-> id, in three flat arrays. A published
// vocabulary has 128,000 entries and is loaded at every start, so there is no allocation per token.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mllama {

/// A fast hash of bytes, for tables that live in memory only.
[[nodiscard]] uint64_t hash_bytes(std::string_view bytes);

/// Tokens by spelling (as tokenizer.json writes them: in the byte-level alphabet) and by id.
class Vocabulary {
  public:
    /// Ids are dense in every published vocabulary; a larger one is refused, as it would size the
    /// table.
    static constexpr int64_t max_id = (int64_t{1} << 20) - 1;

    /// Adds a token. False, and nothing happens, if its spelling or its id is taken.
    /// 0 <= id <= max_id; all spellings together at most 4 GiB.
    bool add(std::string_view spelling, int32_t id);

    [[nodiscard]] std::optional<int32_t> find(std::string_view spelling) const;

    /// The spelling of an id; none if no token has this id.
    [[nodiscard]] std::optional<std::string_view> spelling(int32_t id) const;

    [[nodiscard]] size_t count() const { return count_; }
    /// The largest id + 1.
    [[nodiscard]] int32_t id_limit() const { return static_cast<int32_t>(entries_.size()); }

  private:
    static constexpr int32_t none = -1;

    struct Entry {
        uint32_t offset = 0;  // of the spelling in spellings_
        uint32_t length = 0;
        bool present = false;
    };
    struct Slot {
        uint32_t tag = 0;  // upper half of the spelling's hash: most comparisons end here
        int32_t id = none;
    };

    [[nodiscard]] std::string_view text(const Entry& entry) const {
        return std::string_view(spellings_).substr(entry.offset, entry.length);
    }
    [[nodiscard]] size_t slot_of(std::string_view spelling, uint64_t hash) const;
    void grow();

    std::string spellings_;       // all spellings, one after the other
    std::vector<Entry> entries_;  // (largest id + 1)
    std::vector<Slot> slots_;  // open addressing, linear probing, a power of two, at most half full
    size_t count_ = 0;
};

}  // namespace mllama
