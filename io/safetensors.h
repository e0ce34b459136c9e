// The safetensors format: named tensors in one file that can be used where they lie.
//
//     8 bytes    N, little endian
//     N bytes    JSON: {"name": {"dtype": "BF16", "shape": [7, 5], "data_offsets": [begin, end]},
//                       "__metadata__": {"key": "text"}, ...}
//     the rest   the elements, row-major, little endian; data_offsets count from here
//
// Source: https://github.com/huggingface/safetensors, README.md and safetensors/src/tensor.rs
// (`SafeTensors::read_metadata`, `Metadata::validate`). As there, tensors must lie one behind the
// other without holes or overlaps and fill the file.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "io/printable.h"
#include "tensor/tensor.h"

namespace mllama {

/// What a file says about a tensor.
struct TensorInfo {
    std::string name;            ///< as it stands in the file
    std::string dtype_name;      ///< as it stands in the file: "BF16"
    std::optional<DType> dtype;  ///< none: a type this program cannot hold: listed but not read
    std::vector<int64_t> shape;
    int64_t begin = 0;  ///< first byte, from the start of the file
    int64_t bytes = 0;

    /// "BF16 (7, 5)"
    [[nodiscard]] std::string to_string() const;
};

/// "(7, 5)", as Tensor::shape_string.
std::string shape_string(const std::vector<int64_t>& shape);

/// A safetensors file, open for reading. Opening reads the header only; tensors are views of the
/// mapped file and keep it alive.
class SafetensorsFile {
  public:
    /// Throws Error naming the file and the tensor, what was expected and found: a header that is
    /// not whole, not JSON or not of this form, a name twice, an impossible shape, a size that is
    /// not that of the shape, ranges that overlap, leave a hole or go past the end of the file.
    static SafetensorsFile open(const std::string& path);

    [[nodiscard]] const std::string& path() const { return file_->path(); }
    [[nodiscard]] const std::shared_ptr<const MappedFile>& file() const { return file_; }

    /// In the order in which they lie in the file.
    [[nodiscard]] const std::vector<TensorInfo>& tensors() const { return tensors_; }
    /// Null if there is no such tensor.
    [[nodiscard]] const TensorInfo* find(std::string_view name) const;
    /// __metadata__; empty if there is none.
    [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }

    /// A tensor as it is. Throws Error if there is none of that name, or of a dtype that this
    /// program cannot hold. Where the file does not align a tensor to its elements, it is copied to
    /// memory that is; otherwise it is a view of the file.
    [[nodiscard]] Tensor get(std::string_view name) const;
    /// The same; also throws if dtype or shape differ.
    [[nodiscard]] Tensor get(std::string_view name, DType dtype, const Shape& shape) const;
    /// A tensor of this file's list.
    [[nodiscard]] Tensor get(const TensorInfo& info) const;

  private:
    SafetensorsFile() = default;

    std::shared_ptr<const MappedFile> file_;
    std::shared_ptr<Storage> storage_;  // the file's bytes
    std::vector<TensorInfo> tensors_;
    std::map<std::string, size_t, std::less<>> by_name_;  // places in tensors_
    std::map<std::string, std::string> metadata_;
};

/// Writes a safetensors file piece by piece: what is in it is said first, then the elements come,
/// so that they never have to be in memory all at once. The file appears when it is complete
/// (AtomicFile): until then, or if anything fails, the target stays as it was.
class SafetensorsWriter {
  public:
    struct Entry {
        std::string name;
        DType dtype = DType::f32;
        Shape shape;
    };
    using Metadata = std::map<std::string, std::string>;

    /// Tensors lie in the file by size of element, the largest first (so that all are aligned),
    /// then as given. Throws Error if the file cannot be made, or if a name comes twice or is not
    /// UTF-8.
    SafetensorsWriter(const std::string& path, const std::vector<Entry>& entries,
                      const Metadata& metadata = {});

    /// The next elements of a tensor: all at once, or part by part from the front (the parts'
    /// shapes do not matter). Tensors may come in any order. Wrong names, types and sizes are
    /// mistakes of the program (assert). Throws Error if writing fails.
    void write(std::string_view name, const Tensor& part);

    /// When all is written (assert): puts the file in its place. Throws Error if that fails.
    void finish();

  private:
    struct Slot {
        DType dtype;
        int64_t next;  // where its next byte goes, from the start of the file
        int64_t end;
    };

    std::map<std::string, Slot, std::less<>> slots_;
    AtomicFile file_;
};

/// Writes tensors that are at hand as one file. Errors as SafetensorsWriter.
void write_safetensors(const std::string& path,
                       const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const SafetensorsWriter::Metadata& metadata = {});

}  // namespace mllama
