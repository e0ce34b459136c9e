// From a directory to named tensors.
#include "io/checkpoint.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <set>
#include <system_error>
#include <utility>

#include "io/json.h"
#include "kernels/error.h"

namespace mllama {
namespace {

namespace fs = std::filesystem;

constexpr const char* single_file = "model.safetensors";
constexpr const char* index_file = "model.safetensors.index.json";

bool exists(const std::string& path) {
    std::error_code error;
    return fs::exists(path, error);
}

/// The only *.safetensors file of a directory. Throws if there is none or more than one.
std::string lone_file(const std::string& directory) {
    std::error_code error;
    std::vector<std::string> found;
    for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
         entry.increment(error)) {
        if (entry->path().extension() == ".safetensors") found.push_back(entry->path().string());
    }
    if (error) fail(directory, ": cannot be read: ", error.message());
    if (found.size() == 1) return found[0];
    fail(directory, ": expected ", single_file, ", ", index_file,
         " or one other .safetensors file, found ", found.size(), " .safetensors files");
}

/// A file of the same directory: an index must not lead out of it.
bool is_plain_file_name(std::string_view name) {
    return !name.empty() && name != "." && name != ".." &&
           name.find_first_of(std::string_view("/\0", 2)) == std::string_view::npos;
}

/// weight_map of an index, turned round: {file name: tensors that it should hold}. As in the index,
/// never empty.
std::map<std::string, std::vector<std::string>> read_index(const std::string& path) {
    const Json index = read_json_file(path);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
        fail(path, ": expected an object with an object \"weight_map\"");
    }
    std::map<std::string, std::vector<std::string>> shards;
    for (const auto& [name, file] : index["weight_map"].items()) {
        const std::string text = file.is_string() ? file.get<std::string>() : "";
        if (!is_plain_file_name(text)) {
            fail(path, ": tensor ", printable(name), ": expected a plain file name, found ",
                 printable(file.dump()));
        }
        shards[text].push_back(name);
    }
    if (shards.empty()) fail(path, ": expected tensors in \"weight_map\", found none");
    return shards;
}

std::string replace_prefix(const std::string& name, const NamePrefixes& prefixes) {
    for (const auto& [from, to] : prefixes) {
        if (name.starts_with(from)) return to + name.substr(from.size());
    }
    return name;
}

/// Insertions, deletions and replacements that make one text of the other (Levenshtein 1966).
size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);  // of the beginning of a so far to every beginning of b
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < a.size(); ++i) {
        size_t diagonal = std::exchange(row[0], i + 1);
        for (size_t j = 0; j < b.size(); ++j) {
            const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
            diagonal = row[j + 1];
            row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
        }
    }
    return row[b.size()];
}

/// The name that is most like `wanted`, if one is like it at all. Bounded in time, whatever a file
/// holds.
std::string_view most_similar(std::string_view wanted, const std::vector<std::string>& names) {
    constexpr size_t most_names = 20000;
    constexpr size_t longest = 256;
    std::string_view best;
    size_t best_distance = wanted.size() / 4 + 2;
    for (size_t i = 0; i < std::min(names.size(), most_names); ++i) {
        const size_t length = names[i].size();
        const size_t apart = std::max(length, wanted.size()) - std::min(length, wanted.size());
        if (length > longest || apart >= best_distance) continue;
        const size_t distance = edit_distance(wanted, names[i]);
        if (distance < best_distance) {
            best = names[i];
            best_distance = distance;
        }
    }
    return best;
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& directory, const NamePrefixes& prefixes) {
    std::error_code error;
    const fs::file_status status = fs::status(directory, error);
    if (!fs::exists(status))
        fail(directory, ": cannot be read: ", error ? error.message() : std::strerror(ENOENT));
    if (!fs::is_directory(status))
        fail(directory, ": expected a checkpoint directory, found a file");

    Checkpoint result(directory);
    const std::string index_path = directory + "/" + index_file;
    if (exists(directory + "/" + single_file)) {
        result.add_file(SafetensorsFile::open(directory + "/" + single_file), prefixes);
    } else if (exists(index_path)) {
        result.add_indexed_files(index_path, prefixes);
    } else {
        result.add_file(SafetensorsFile::open(lone_file(directory)), prefixes);
    }
    return result;
}

void Checkpoint::add_indexed_files(const std::string& index_path, const NamePrefixes& prefixes) {
    for (const auto& [file, expected] : read_index(index_path)) {
        const std::string path = directory_ + "/" + file;
        if (!exists(path)) {
            fail(path, ": does not exist; ", index_file, " expects tensor ", printable(expected[0]),
                 " in it");
        }
        SafetensorsFile shard = SafetensorsFile::open(path);
        for (const std::string& name : expected) {
            if (!shard.find(name)) {
                fail(path, ": has no tensor ", printable(name), ", which ", index_file,
                     " expects in it");
            }
        }
        add_file(std::move(shard), prefixes);
    }
}

void Checkpoint::add_file(SafetensorsFile file, const NamePrefixes& prefixes) {
    for (size_t i = 0; i < file.tensors().size(); ++i) {
        const std::string& stored = file.tensors()[i].name;
        std::string name = replace_prefix(stored, prefixes);
        const auto [entry, is_new] = tensors_.try_emplace(name, Place{files_.size(), i});
        if (!is_new) {
            const Place& other = entry->second;
            const SafetensorsFile& other_file =
                other.file == files_.size() ? file : files_[other.file];
            fail(file.path(), ": tensor ", printable(stored), ": is also in ", other_file.path(),
                 " as ", printable(other_file.tensors()[other.tensor].name));
        }
        names_.push_back(std::move(name));
    }
    files_.push_back(std::move(file));
}

const Checkpoint::Place& Checkpoint::place(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail_missing(name);
    return found->second;
}

void Checkpoint::fail_missing(std::string_view name) const {
    const std::string where = files_.size() == 1 ? files_[0].path() : directory_;
    const std::string_view similar = most_similar(name, names_);
    if (similar.empty()) fail(where, ": has no tensor ", printable(name));
    fail(where, ": has no tensor ", printable(name), "; the most similar is ",
         printable(info(similar).name));
}

const TensorInfo& Checkpoint::info(std::string_view name) const {
    const Place& at = place(name);
    return files_[at.file].tensors()[at.tensor];
}

const std::string& Checkpoint::file(std::string_view name) const {
    return files_[place(name).file].path();
}

std::string Checkpoint::where(std::string_view name) const {
    return file(name) + ": tensor " + printable(info(name).name);
}

void Checkpoint::let_go(std::string_view name) const {
    const TensorInfo& tensor = info(name);
    files_[place(name).file].file()->let_go(tensor.begin, tensor.begin + tensor.bytes);
}

int64_t Checkpoint::bytes() const {
    int64_t sum = 0;
    for (const SafetensorsFile& file : files_) {
        for (const TensorInfo& tensor : file.tensors()) sum += tensor.bytes;
    }
    return sum;
}

Tensor Checkpoint::get(std::string_view name, const Shape& shape) const {
    return get(name, shape, "F32, BF16 or F16", [](DType dtype) { return is_float(dtype); });
}

Tensor Checkpoint::get(std::string_view name, DType dtype, const Shape& shape) const {
    return get(name, shape, dtype_name(dtype), [dtype](DType found) { return found == dtype; });
}

template <class Accepts>
Tensor Checkpoint::get(std::string_view name, const Shape& shape, std::string_view expected_dtype,
                       const Accepts& accepts) const {
    const Place& at = place(name);
    const SafetensorsFile& file = files_[at.file];
    const TensorInfo& found = file.tensors()[at.tensor];
    const bool same_shape =
        std::equal(shape.begin(), shape.end(), found.shape.begin(), found.shape.end());
    if (!found.dtype || !accepts(*found.dtype) || !same_shape) {
        fail(file.path(), ": tensor ", printable(found.name), ": expected ", expected_dtype, " ",
             shape.to_string(), ", found ", printable(found.to_string()));
    }
    return file.get(found);
}

}  // namespace mllama
