#include "mllama/quantise_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include "io/atomic_directory.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "mllama/checkpoint_weights.h"
#include "mllama/mllama.h"
#include "mllama/written_quantisation.h"

namespace mllama {
namespace {

namespace fs = std::filesystem;

constexpr const char* index_name = "model.safetensors.index.json";
constexpr int64_t bytes_at_once = int64_t{64} << 20;

/// A tensor of the old files and what becomes of it.
struct Item {
    const TensorInfo* info;
    std::string module;                     ///< of a layer that is quantised: its published name
    std::optional<QuantisedFormat> format;  ///< none: copied
};

/// X of X.weight, as it stands in the file.
std::string stored_module(const TensorInfo& info) {
    return info.name.substr(0, info.name.rfind('.'));
}

/// What becomes of a tensor that is called `name` once both styles of names are one.
Item plan_item(const SafetensorsFile& file, const TensorInfo& info, const std::string& name,
               const QuantisationPlan& plan) {
    Item item{&info, {}, std::nullopt};
    const std::string where = file.path() + ": tensor " + printable(info.name);
    const std::string suffix = ".weight";
    if (name.ends_with(suffix)) {
        item.module = name.substr(0, name.size() - suffix.size());
        item.format = plan.of(item.module, info.shape.empty() ? 0 : info.shape.back());
    }
    if (item.format && (info.shape.size() != 2 || !info.dtype || !is_float(*info.dtype)))
        fail(where, ": expected a matrix of F32, BF16 or F16 to quantise, found ",
             printable(info.to_string()));
    if (!info.dtype)
        fail(where, ": has a type that this program cannot hold: ", printable(info.dtype_name));
    return item;
}

std::vector<SafetensorsWriter::Entry> entries_of(const Item& item) {
    const TensorInfo& info = *item.info;
    if (!item.format) return {{info.name, *info.dtype, info.shape}};
    const int64_t rows = info.shape[0], cols = info.shape[1];
    const std::string name = stored_module(info) + ".weight";
    std::vector<SafetensorsWriter::Entry> entries = {
        {name + "_scale", DType::bf16, {rows, item.format->groups(cols)}}};
    if (item.format->coding == Coding::int8) {
        entries.push_back({name, DType::i8, {rows, cols}});
    } else {
        entries.push_back({name + "_packed", DType::i32, {rows, int4_words(cols)}});
        entries.push_back({name + "_shape", DType::i64, {2}});
    }
    return entries;
}

/// Rows [begin, end) of a matrix of the file, as a tensor of its own.
TensorInfo rows_of(const TensorInfo& info, int64_t begin, int64_t end) {
    const int64_t row_bytes = info.shape[1] * dtype_size(*info.dtype);
    TensorInfo part = info;
    part.shape[0] = end - begin;
    part.begin += begin * row_bytes;
    part.bytes = (end - begin) * row_bytes;
    return part;
}

/// One run from directory to directory.
class Writer {
  public:
    Writer(const std::string& from, const std::string& to, const ColumnImportance& importance,
           const QuantiseObserver& observer)
        : from_(from),
          importance_(importance),
          observer_(observer),
          checkpoint_(open_checkpoint(from)),
          all_bytes_(checkpoint_.bytes()),
          directory_(to) {}

    void run(const QuantisationPlan& plan) {
        OrderedJson config = read_config();
        // What the model's loader refuses is refused before anything is written. Weights are mapped,
        // so this reads next to none of them.
        static_cast<void>(Model::load(from_, {}));
        auto name = checkpoint_.names().begin();  // they are in the order of the files
        for (const SafetensorsFile& file : checkpoint_.files()) {
            std::vector<Item> items;
            for (const TensorInfo& info : file.tensors())
                items.push_back(plan_item(file, info, *name++, plan));
            write_shard(file, items);
        }
        if (config_.empty()) fail(from_, ": expected layers to quantise, found none");
        write_index();
        copy_other_files();
        // The last: without it, what a kill leaves behind is no checkpoint.
        config["quantization_config"] = config_.to_json();
        write_file(directory_.path() + "/config.json", config.dump(2) + "\n");
        directory_.commit();
    }

  private:
    [[nodiscard]] OrderedJson read_config() const {
        const std::string path = from_ + "/config.json";
        static_cast<void>(ModelConfig::load(from_));  // it is one of this model
        OrderedJson config = parse_ordered_json(read_file(path), path);
        if (config.contains("quantization_config"))
            fail(path, ": expected weights that are not quantised yet, found quantization_config");
        return config;
    }

    /// How far it is; the pages that were read may go.
    void advance(const SafetensorsFile& file, int64_t begin, int64_t end) {
        file.file()->let_go(begin, end);
        done_bytes_ += end - begin;
        if (observer_.progress) observer_.progress(done_bytes_, all_bytes_);
        if (observer_.cancelled && observer_.cancelled()) throw Interrupted();
    }

    void write_shard(const SafetensorsFile& file, const std::vector<Item>& items) {
        std::vector<SafetensorsWriter::Entry> entries;
        for (const Item& item : items) {
            for (SafetensorsWriter::Entry& entry : entries_of(item))
                entries.push_back(std::move(entry));
        }
        const std::string name = fs::path(file.path()).filename().string();
        for (const SafetensorsWriter::Entry& entry : entries) {
            weight_map_[entry.name] = name;
            written_bytes_ += entry.shape.numel() * dtype_size(entry.dtype);
        }
        SafetensorsWriter writer(directory_.path() + "/" + name, entries, file.metadata());
        for (const Item& item : items) {
            if (item.format) {
                write_quantised(file, item, writer);
            } else {
                copy(file, item, writer);
            }
        }
        writer.finish();
    }

    void write_quantised(const SafetensorsFile& file, const Item& item, SafetensorsWriter& writer) {
        const TensorInfo& info = *item.info;
        const std::string where = file.path() + ": tensor " + printable(info.name) + ": ";
        if (!config_.add(item.module, *item.format))
            fail(where, "has rows of ", info.shape[1], ", unlike the same layer elsewhere");
        const std::string name = stored_module(info) + ".weight";
        const bool int8 = item.format->coding == Coding::int8;
        const int64_t rows = info.shape[0], cols = info.shape[1];
        // Rows are quantised each for itself: some at a time are the same as all at once.
        const int64_t row_bytes = std::max<int64_t>(cols * dtype_size(*info.dtype), 1);
        const int64_t at_once = std::max<int64_t>(bytes_at_once / row_bytes, 1);
        for (int64_t begin = 0; begin < rows; begin += at_once) {
            const TensorInfo part = rows_of(info, begin, std::min(begin + at_once, rows));
            const Weight weight = quantised_rows(file, item, part, begin, where);
            writer.write(name + "_scale", weight.scale);
            writer.write(int8 ? name : name + "_packed", weight.data);
            advance(file, part.begin, part.begin + part.bytes);
        }
        if (!int8) writer.write(name + "_shape", Tensor::from(std::vector<int64_t>{rows, cols}));
    }

    /// `part` is rows of the item's tensor, from `first_row` on.
    [[nodiscard]] Weight quantised_rows(const SafetensorsFile& file, const Item& item,
                                        const TensorInfo& part, int64_t first_row,
                                        const std::string& where) const {
        const auto found = importance_.find(item.module);
        const std::span<const float> columns =
            found == importance_.end() ? std::span<const float>() : found->second;
        try {
            return quantised(file.get(part), *item.format, columns, first_row);
        } catch (const Error& error) {
            fail(where, error.what());
        }
    }

    void copy(const SafetensorsFile& file, const Item& item, SafetensorsWriter& writer) {
        const TensorInfo& info = *item.info;
        const Tensor tensor = file.get(info);
        const Tensor flat = tensor.view({tensor.numel()});
        const int64_t at_once = bytes_at_once / dtype_size(tensor.dtype());
        for (int64_t begin = 0; begin < flat.numel(); begin += at_once) {
            const int64_t end = std::min(begin + at_once, flat.numel());
            writer.write(info.name, flat.rows(begin, end));
            const int64_t size = dtype_size(tensor.dtype());
            advance(file, info.begin + begin * size, info.begin + end * size);
        }
    }

    void write_index() const {
        if (!fs::exists(from_ + "/" + index_name)) return;
        OrderedJson index;
        index["metadata"]["total_size"] = written_bytes_;
        index["weight_map"] = weight_map_;
        write_file(directory_.path() + "/" + index_name, index.dump(2) + "\n");
    }

    /// Tokenizer, templates, settings, licence: what is a file, is not hidden and holds no weights.
    void copy_other_files() const {
        static const std::set<std::string> weights = {".safetensors", ".bin", ".pt",      ".pth",
                                                      ".gguf",        ".h5",  ".msgpack", ".onnx"};
        std::error_code error;
        for (fs::directory_iterator entry(from_, error), end; !error && entry != end;
             entry.increment(error)) {
            const std::string name = entry->path().filename().string();
            const bool known = name == "config.json" || name.ends_with(".index.json");
            std::error_code status_error;
            if (known || name[0] == '.' || weights.contains(entry->path().extension().string()) ||
                !entry->is_regular_file(status_error))
                continue;
            const MappedFile file(entry->path().string());
            write_file(directory_.path() + "/" + name, file.bytes());
        }
        if (error) fail(from_, ": cannot be read: ", error.message());
    }

    std::string from_;
    const ColumnImportance& importance_;
    const QuantiseObserver& observer_;
    Checkpoint checkpoint_;
    int64_t all_bytes_;
    int64_t done_bytes_ = 0;
    AtomicDirectory directory_;
    WrittenQuantisation config_;
    std::map<std::string, std::string> weight_map_;
    int64_t written_bytes_ = 0;
};

}  // namespace

void quantise_checkpoint(const std::string& from, const std::string& to,
                         const QuantisationPlan& plan, const ColumnImportance& importance,
                         const QuantiseObserver& observer) {
    Writer(from, to, importance, observer).run(plan);
}

}  // namespace mllama
