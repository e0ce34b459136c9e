// Byte pair encoding proper: the ranked list of merges, and its application to a sequence of
// symbols. Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword Units
// (2016). Reference: tokenizers models/bpe/word.rs, Word::merge_all.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace mllama {

/// "Where `left` stands before `right`, put `merged`."
struct Merge {
    int32_t left = 0;
    int32_t right = 0;
    int32_t merged = 0;
};

/// All merges of a model; a merge's rank is its place in the order of add. The lowest rank goes
/// first.
class MergeTable {
  public:
    /// Room for `count` merges without growing.
    void reserve(size_t count);
    /// Appends a merge of ids >= 0. A pair that is there already takes the new, higher rank.
    void add(const Merge& merge);
    /// The rank of a pair, if it can be merged.
    [[nodiscard]] std::optional<uint32_t> rank(int32_t left, int32_t right) const;
    [[nodiscard]] const Merge& operator[](uint32_t rank) const { return merges_[rank]; }
    [[nodiscard]] size_t size() const { return merges_.size(); }

  private:
    static constexpr int32_t none = -1;

    struct Slot {
        int32_t left = none;
        int32_t right = none;
        uint32_t rank = 0;
    };
    [[nodiscard]] size_t slot_of(int32_t left, int32_t right) const;
    void rehash(size_t slots);

    std::vector<Merge> merges_;  // by rank
    std::vector<Slot> slots_;  // open addressing, linear probing, a power of two, at most 5/8 full
};

/// Merges symbols in place: as long as any two neighbours can be merged, the pair of the lowest
/// rank is, of equal ones the leftmost. O(n log n) by a priority queue. Holds working memory: keep
/// one per thread.
class Merger {
  public:
    void merge(const MergeTable& table, std::vector<int32_t>& symbols);

  private:
    void push_pair(const MergeTable& table, const std::vector<int32_t>& symbols, uint32_t left);

    // The symbols as a doubly linked list over their first positions; `end` after the last.
    std::vector<uint32_t> next_, previous_;
    std::vector<uint64_t> queue_;  // min-heap of rank << 32 | position of the left symbol
};

}  // namespace mllama
