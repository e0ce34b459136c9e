#include "tensor/parcel.h"

#include <cstring>
#include <utility>

namespace mllama {

Parcel::Parcel(Arena& arena, std::vector<std::byte>& packed) : arena_(arena), packed_(packed) {
    packed_.clear();
}

void Parcel::pack(const Tensor& piece, const void* elements) {
    if (piece.numel() == 0) return;
    const auto offset =
        static_cast<const std::byte*>(piece.data()) - std::as_const(*piece.storage()).data();
    if (piece.storage() != storage_) {  // the arena has begun a new block
        send();
        storage_ = piece.storage();
        begin_ = offset;
    }
    const auto place = static_cast<size_t>(offset - begin_);
    packed_.resize(place + static_cast<size_t>(piece.bytes()));
    std::memcpy(packed_.data() + place, elements, static_cast<size_t>(piece.bytes()));
}

void Parcel::send() {
    if (packed_.empty()) return;
    Tensor all(storage_, begin_, {static_cast<int64_t>(packed_.size())}, DType::u8);
    all.fill_from(packed_.data());
    packed_.clear();
    storage_.reset();
}

}  // namespace mllama
