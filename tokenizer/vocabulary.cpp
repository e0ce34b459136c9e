// The vocabulary's hash table.
#include "tokenizer/vocabulary.h"

#include <cassert>
#include <cstring>

namespace mllama {

uint64_t hash_bytes(std::string_view bytes) {
    // Multiply and fold, eight bytes at a time; the length is mixed in so that zero padding is not
    // lost.
    constexpr uint64_t factor = 0x9E3779B97F4A7C15;
    uint64_t hash = bytes.size() * factor;
    while (!bytes.empty()) {
        uint64_t chunk = 0;
        const size_t length = bytes.size() < sizeof chunk ? bytes.size() : sizeof chunk;
        std::memcpy(&chunk, bytes.data(), length);
        hash = (hash ^ chunk) * factor;
        hash ^= hash >> 32;
        bytes.remove_prefix(length);
    }
    return hash * factor;
}

/// The slot that holds `spelling`, or the empty one where it belongs.
size_t Vocabulary::slot_of(std::string_view spelling, uint64_t hash) const {
    const size_t mask = slots_.size() - 1;
    const auto tag = static_cast<uint32_t>(hash >> 32);
    size_t index = (hash >> 16) & mask;
    while (slots_[index].id != none) {
        const Slot& slot = slots_[index];
        if (slot.tag == tag && text(entries_[static_cast<size_t>(slot.id)]) == spelling) break;
        index = (index + 1) & mask;
    }
    return index;
}

void Vocabulary::grow() {
    slots_.assign(slots_.empty() ? 1024 : slots_.size() * 2, Slot{});
    for (size_t id = 0; id < entries_.size(); ++id) {
        if (!entries_[id].present) continue;
        const uint64_t hash = hash_bytes(text(entries_[id]));
        slots_[slot_of(text(entries_[id]), hash)] = {static_cast<uint32_t>(hash >> 32),
                                                     static_cast<int32_t>(id)};
    }
}

bool Vocabulary::add(std::string_view spelling, int32_t id) {
    assert(id >= 0 && id <= max_id && spellings_.size() + spelling.size() <= UINT32_MAX);
    if (2 * (count_ + 1) > slots_.size()) grow();
    const auto index = static_cast<size_t>(id);
    if (index < entries_.size() && entries_[index].present) return false;
    const uint64_t hash = hash_bytes(spelling);
    Slot& slot = slots_[slot_of(spelling, hash)];
    if (slot.id != none) return false;
    slot = {static_cast<uint32_t>(hash >> 32), id};
    if (index >= entries_.size()) entries_.resize(index + 1);
    entries_[index] = {static_cast<uint32_t>(spellings_.size()),
                       static_cast<uint32_t>(spelling.size()), true};
    spellings_ += spelling;
    ++count_;
    return true;
}

std::optional<int32_t> Vocabulary::find(std::string_view spelling) const {
    if (slots_.empty()) return std::nullopt;
    const int32_t id = slots_[slot_of(spelling, hash_bytes(spelling))].id;
    return id == none ? std::nullopt : std::optional(id);
}

std::optional<std::string_view> Vocabulary::spelling(int32_t id) const {
    const auto index = static_cast<size_t>(id);
    if (id < 0 || index >= entries_.size() || !entries_[index].present) return std::nullopt;
    return text(entries_[index]);
}

}  // namespace mllama
