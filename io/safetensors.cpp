// Reading tensors of a safetensors file, and writing one.
#include "io/safetensors.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "io/json.h"
#include "io/safetensors_header.h"
#include "kernels/error.h"

namespace mllama {

std::string shape_string(const std::vector<int64_t>& shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); ++i) {
        if (i > 0) text += ", ";
        text += std::to_string(shape[i]);
    }
    return text + (shape.size() == 1 ? ",)" : ")");
}

std::string TensorInfo::to_string() const {
    return dtype_name + " " + shape_string(shape);
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
    SafetensorsFile result;
    result.file_ = MappedFile::open(path);
    SafetensorsHeader header = read_safetensors_header(result.file_->bytes(), path);
    result.storage_ = Storage::mapped(result.file_->data(), result.file_->size(), result.file_);
    result.tensors_ = std::move(header.tensors);
    result.metadata_ = std::move(header.metadata);
    for (size_t i = 0; i < result.tensors_.size(); ++i) {
        result.by_name_.emplace(result.tensors_[i].name, i);
    }
    return result;
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

Tensor SafetensorsFile::get(std::string_view name) const {
    const TensorInfo* info = find(name);
    if (!info) fail(path(), ": has no tensor ", printable(name));
    return get(*info);
}

Tensor SafetensorsFile::get(std::string_view name, DType dtype, const Shape& shape) const {
    Tensor tensor = get(name);
    if (tensor.dtype() != dtype || tensor.shape() != shape) {
        fail(path(), ": tensor ", printable(name), ": expected ", dtype_name(dtype), " ",
             shape.to_string(), ", found ", dtype_name(tensor.dtype()), " ", tensor.shape_string());
    }
    return tensor;
}

Tensor SafetensorsFile::get(const TensorInfo& info) const {
    const std::string where = path() + ": tensor " + printable(info.name);
    if (!info.dtype)
        fail(where, ": has a type that this program cannot hold: ", printable(info.dtype_name));
    try {
        const Shape shape(info.shape);
        if (info.begin % dtype_size(*info.dtype) == 0)
            return {storage_, info.begin, shape, *info.dtype};
        Tensor copy = Tensor::empty(shape, *info.dtype);
        std::memcpy(copy.data(), file_->data() + info.begin, static_cast<size_t>(info.bytes));
        return copy;
    } catch (const Error& error) {  // more dimensions than a Tensor has
        fail(where, ": ", error.what());
    }
}

namespace {

/// The 8 bytes of length and the JSON, padded so that the data begin at a multiple of 8. `order`:
/// as they lie in the file.
std::string header_bytes(const std::vector<SafetensorsWriter::Entry>& order,
                         const SafetensorsWriter::Metadata& metadata) {
    std::string text = "{";
    if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump();
    int64_t begin = 0;
    for (const SafetensorsWriter::Entry& entry : order) {
        const int64_t end = begin + entry.shape.numel() * dtype_size(entry.dtype);
        OrderedJson value;
        value["dtype"] = dtype_name(entry.dtype);
        value["shape"] = std::vector<int64_t>(entry.shape.begin(), entry.shape.end());
        value["data_offsets"] = {begin, end};
        if (text.size() > 1) text += ',';
        text += Json(entry.name).dump() + ":" + value.dump();
        begin = end;
    }
    text += '}';
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>(text.size() >> (8 * i) & 0xFF);
    return bytes + text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<Entry>& entries,
                                     const Metadata& metadata)
    : file_(path) {
    std::vector<Entry> order = entries;
    std::stable_sort(order.begin(), order.end(), [](const Entry& a, const Entry& b) {
        return dtype_size(a.dtype) > dtype_size(b.dtype);
    });
    std::string header;
    try {
        header = header_bytes(order, metadata);
    } catch (const nlohmann::json::exception&) {
        fail(path, ": cannot be written: a name or text of the header is not valid UTF-8");
    }
    auto offset = static_cast<int64_t>(header.size());
    for (const Entry& entry : order) {
        const int64_t end = offset + entry.shape.numel() * dtype_size(entry.dtype);
        if (entry.name == "__metadata__" ||
            !slots_.try_emplace(entry.name, Slot{entry.dtype, offset, end}).second) {
            fail(path, ": cannot be written: tensor ", printable(entry.name),
                 ": this name is taken");
        }
        offset = end;
    }
    file_.write(header.data(), static_cast<int64_t>(header.size()), 0);
}

void SafetensorsWriter::write(std::string_view name, const Tensor& part) {
    const auto found = slots_.find(name);
    assert(found != slots_.end() && found->second.dtype == part.dtype());
    Slot& slot = found->second;
    assert(part.bytes() <= slot.end - slot.next);
    const int64_t runs = part.contiguous() ? 1 : part.rows();
    const int64_t run_bytes = part.bytes() / std::max<int64_t>(runs, 1);
    const int64_t run_stride = part.row_stride() * dtype_size(part.dtype());
    const auto* data = static_cast<const std::byte*>(part.data());
    for (int64_t run = 0; run < runs; ++run) {
        file_.write(data + run * run_stride, run_bytes, slot.next);
        slot.next += run_bytes;
    }
}

void SafetensorsWriter::finish() {
    assert(std::all_of(slots_.begin(), slots_.end(),
                       [](const auto& slot) { return slot.second.next == slot.second.end; }));
    file_.commit();
}

void write_safetensors(const std::string& path,
                       const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const SafetensorsWriter::Metadata& metadata) {
    std::vector<SafetensorsWriter::Entry> entries;
    entries.reserve(tensors.size());
    for (const auto& [name, tensor] : tensors)
        entries.push_back({name, tensor.dtype(), tensor.shape()});
    SafetensorsWriter writer(path, entries, metadata);
    for (const auto& [name, tensor] : tensors) writer.write(name, tensor);
    writer.finish();
}

}  // namespace mllama
