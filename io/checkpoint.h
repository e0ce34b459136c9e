// The weights of a checkpoint directory, whatever files they are in and whichever style of names
// those use.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/safetensors.h"
#include "tensor/tensor.h"

namespace mllama {

/// {beginning of a name in a file, what it is read as}. The first that fits is applied, once; a
/// name that none fits stays as it is.
using NamePrefixes = std::vector<std::pair<std::string, std::string>>;

/// A directory with
///   - model.safetensors, or else
///   - model.safetensors.index.json, {"weight_map": {name: file}}, and its files (shards), or else
///   - exactly one other *.safetensors.
/// Opening reads the headers of all files and checks that they agree with each other and the index;
/// elements are read from disk when they are touched. Tensors keep their file mapped; the
/// Checkpoint itself need not live as long.
///
/// All errors are Error, and name the file (directory, index), the tensor as it stands in the file,
/// expected and found.
class Checkpoint {
  public:
    /// Throws if there are no such files, one is not as SafetensorsFile::open wants it, a shard of
    /// the index is missing or named by more than a plain file name, a tensor is not in the shard
    /// that the index says, or two tensors (of two shards or two styles of names) have one name.
    static Checkpoint open(const std::string& directory, const NamePrefixes& prefixes = {});

    /// Names here and below are those after the replacement of prefixes.
    [[nodiscard]] bool has(std::string_view name) const {
        return tensors_.find(name) != tensors_.end();
    }
    /// In the order of the files and of the tensors in them.
    [[nodiscard]] const std::vector<std::string>& names() const { return names_; }
    [[nodiscard]] const TensorInfo& info(std::string_view name) const;
    /// The file that holds a tensor.
    [[nodiscard]] const std::string& file(std::string_view name) const;
    /// "FILE: tensor NAME", by their names outside: what a message about a tensor begins with.
    [[nodiscard]] std::string where(std::string_view name) const;
    /// The pages of a tensor may leave memory; they are read again when they are touched.
    void let_go(std::string_view name) const;
    /// All files, in the order of their names.
    [[nodiscard]] const std::vector<SafetensorsFile>& files() const { return files_; }
    /// Bytes of all tensors.
    [[nodiscard]] int64_t bytes() const;

    /// A tensor of the given shape and any float type (f32, bf16, f16), as stored: a view of the
    /// file. Throws if it is missing (naming the most similar name there is), or of another shape
    /// or a type that is none of these.
    [[nodiscard]] Tensor get(std::string_view name, const Shape& shape) const;
    /// The same, of exactly this type.
    [[nodiscard]] Tensor get(std::string_view name, DType dtype, const Shape& shape) const;

  private:
    struct Place {
        size_t file = 0;    // in files_
        size_t tensor = 0;  // in that file's tensors()
    };

    explicit Checkpoint(std::string directory) : directory_(std::move(directory)) {}
    void add_file(SafetensorsFile file, const NamePrefixes& prefixes);
    void add_indexed_files(const std::string& index_path, const NamePrefixes& prefixes);
    [[nodiscard]] const Place& place(std::string_view name) const;
    [[noreturn]] void fail_missing(std::string_view name) const;
    template <class Accepts>
    [[nodiscard]] Tensor get(std::string_view name, const Shape& shape,
                             std::string_view expected_dtype, const Accepts& accepts) const;

    std::string directory_;
    std::vector<SafetensorsFile> files_;
    std::vector<std::string> names_;
    std::map<std::string, Place, std::less<>> tensors_;
};

}  // namespace mllama
