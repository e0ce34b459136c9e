// The merge table and the priority queue over neighbouring pairs.
#include "tokenizer/merges.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <functional>

namespace mllama {
namespace {

uint64_t hash_pair(int32_t left, int32_t right) {
    const uint64_t key = uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
    const uint64_t hash = (key ^ key >> 29) * 0x9E3779B97F4A7C15;
    return hash >> 24;
}

}  // namespace

/// The slot of the pair, or the empty one where it belongs.
size_t MergeTable::slot_of(int32_t left, int32_t right) const {
    const size_t mask = slots_.size() - 1;
    size_t index = hash_pair(left, right) & mask;
    while (slots_[index].left != none &&
           (slots_[index].left != left || slots_[index].right != right)) {
        index = (index + 1) & mask;
    }
    return index;
}

void MergeTable::rehash(size_t slots) {
    slots_.assign(slots, Slot{});
    for (uint32_t rank = 0; rank < merges_.size(); ++rank) {
        const Merge& merge = merges_[rank];
        slots_[slot_of(merge.left, merge.right)] = {merge.left, merge.right, rank};
    }
}

void MergeTable::reserve(size_t count) {
    merges_.reserve(count);
    const size_t slots = std::bit_ceil(count * 8 / 5 + 16);
    if (slots > slots_.size()) rehash(slots);
}

void MergeTable::add(const Merge& merge) {
    assert(merge.left >= 0 && merge.right >= 0 && merges_.size() < UINT32_MAX);
    if (8 * (merges_.size() + 1) > 5 * slots_.size()) reserve(2 * merges_.size() + 1);
    const auto rank = static_cast<uint32_t>(merges_.size());
    merges_.push_back(merge);
    slots_[slot_of(merge.left, merge.right)] = {merge.left, merge.right, rank};
}

std::optional<uint32_t> MergeTable::rank(int32_t left, int32_t right) const {
    if (slots_.empty()) return std::nullopt;
    const Slot& slot = slots_[slot_of(left, right)];
    return slot.left == none ? std::nullopt : std::optional(slot.rank);
}

/// Queues the pair that starts with the symbol at `left`, if there is one and it can be merged.
void Merger::push_pair(const MergeTable& table, const std::vector<int32_t>& symbols,
                       uint32_t left) {
    const uint32_t right = next_[left];
    if (right == symbols.size()) return;
    if (const auto rank = table.rank(symbols[left], symbols[right])) {
        queue_.push_back(uint64_t{*rank} << 32 | left);
    }
}

void Merger::merge(const MergeTable& table, std::vector<int32_t>& symbols) {
    constexpr int32_t removed = -1;
    assert(symbols.size() < UINT32_MAX);
    const auto end = static_cast<uint32_t>(symbols.size());
    if (end < 2) return;
    next_.resize(end);
    previous_.resize(end);
    queue_.clear();
    for (uint32_t i = 0; i < end; ++i) {
        next_[i] = i + 1;
        previous_[i] = i == 0 ? end : i - 1;
    }
    for (uint32_t i = 0; i + 1 < end; ++i) push_pair(table, symbols, i);
    const auto later = std::greater<uint64_t>();  // the smallest key is the heap's front
    std::make_heap(queue_.begin(), queue_.end(), later);

    while (!queue_.empty()) {
        std::pop_heap(queue_.begin(), queue_.end(), later);
        const auto left = static_cast<uint32_t>(queue_.back());
        const Merge& merge = table[static_cast<uint32_t>(queue_.back() >> 32)];
        queue_.pop_back();
        // An entry is out of date when either of its symbols has since become part of another.
        if (symbols[left] != merge.left) continue;
        const uint32_t right = next_[left];
        if (right == end || symbols[right] != merge.right) continue;

        symbols[left] = merge.merged;
        symbols[right] = removed;
        next_[left] = next_[right];
        if (next_[left] != end) previous_[next_[left]] = left;

        const size_t queued = queue_.size();
        if (previous_[left] != end) push_pair(table, symbols, previous_[left]);
        push_pair(table, symbols, left);
        for (size_t size = queued + 1; size <= queue_.size(); ++size) {
            std::push_heap(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(size),
                           later);
        }
    }
    std::erase(symbols, removed);
}

}  // namespace mllama
