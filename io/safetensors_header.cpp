// The header of a safetensors file: from bytes to a checked list of tensors.
#include "io/safetensors_header.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "io/json.h"

namespace mllama {
namespace {

constexpr int64_t length_bytes = 8;                // of the header's length
constexpr int64_t max_header_bytes = 100'000'000;  // as in the reference
constexpr size_t max_dims = 64;  // more than any program has; bounds the memory of a hostile list

constexpr std::array computable = {DType::f32,     DType::bf16,    DType::f16,    DType::i8,
                                   DType::i32,     DType::i64,     DType::u8,     DType::f64,
                                   DType::f8_e4m3, DType::f8_e5m2, DType::boolean};

/// The types of the format that this program cannot hold.
constexpr std::array<std::pair<std::string_view, int64_t>, 11> other_dtype_bits = {
    {{"U16", 16},
     {"I16", 16},
     {"U32", 32},
     {"U64", 64},
     {"C64", 64},
     {"F8_E8M0", 8},
     {"F8_E4M3FNUZ", 8},
     {"F8_E5M2FNUZ", 8},
     {"F6_E2M3", 6},
     {"F6_E3M2", 6},
     {"F4", 4}}};

std::optional<DType> dtype_from_name(std::string_view name) {
    for (const DType dtype : computable) {
        if (dtype_name(dtype) == name) return dtype;
    }
    return std::nullopt;
}

std::string tensor_in(const std::string& path, std::string_view name) {
    return path + ": tensor " + printable(name);
}

/// Takes the header apart as the parser goes over it, so that memory stays in proportion and
/// nothing unexpected is kept. Each event (a value, the beginning or the end of an object or list)
/// is looked at in the state that says what may come.
class HeaderEvents : public nlohmann::json_sax<Json> {
  public:
    explicit HeaderEvents(const std::string& path) : path_(path) {}

    std::vector<TensorInfo> tensors;  // begin counts from the end of the header, as in the file
    std::map<std::string, std::string> metadata;

    bool null() override {
        if (state_ == State::metadata) return go(State::name);  // as if it were not there
        return other_value("null");
    }
    bool boolean(bool value) override { return other_value(value ? "true" : "false"); }
    bool number_integer(int64_t value) override { return other_value(std::to_string(value)); }
    bool number_float(double, const std::string& text) override {
        return other_value(printable(text));
    }
    bool binary(binary_t&) override { return other_value("binary data"); }

    bool number_unsigned(uint64_t value) override {
        const bool fits = value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
        if (state_ == State::dimension && fits) return append(tensor_.shape, value, max_dims);
        if (state_ == State::offset && fits) return append(offsets_, value, 2);
        return other_value(std::to_string(value));
    }

    bool string(std::string& text) override {
        if (state_ == State::dtype) {
            tensor_.dtype_name = text;
            tensor_.dtype = dtype_from_name(text);
            return go(State::field);
        }
        if (state_ == State::metadata_text) {
            metadata[metadata_key_] = text;
            return go(State::metadata_key);
        }
        return other_value("\"" + printable(text) + "\"");
    }

    bool start_object(size_t) override {
        switch (state_) {
            case State::header:
                return go(State::name);
            case State::tensor:
                return go(State::field);
            case State::metadata:
                return go(State::metadata_key);
            default:
                return open_other("an object");
        }
    }

    bool end_object() override {
        if (ignored_depth_ > 0) return close_other();
        if (state_ == State::field) {
            keep_tensor();
            return go(State::name);
        }
        return go(state_ == State::metadata_key ? State::name : State::end);
    }

    bool start_array(size_t) override {
        switch (state_) {
            case State::shape:
                return go(State::dimension);
            case State::offsets:
                return go(State::offset);
            default:
                return open_other("a list");
        }
    }

    bool end_array() override {
        if (ignored_depth_ > 0) return close_other();
        if (state_ == State::offset && offsets_.size() != 2) wrong(std::to_string(offsets_.size()));
        return go(State::field);
    }

    bool key(std::string& key) override {
        if (ignored_depth_ > 0) return true;
        if (state_ == State::metadata_key) {
            if (metadata.contains(key))
                fail(path_, ": __metadata__: key \"", printable(key), "\" comes twice");
            metadata_key_ = key;
            return go(State::metadata_text);
        }
        if (state_ == State::field) return start_field(key);
        if (!names_.insert(key).second) fail(tensor_in(path_, key), ": comes twice in the header");
        tensor_ = {};
        tensor_.name = key;
        offsets_.clear();
        fields_.clear();
        return go(key == "__metadata__" ? State::metadata : State::tensor);
    }

    bool parse_error(size_t position, const std::string&,
                     const nlohmann::detail::exception&) override {
        fail(path_, ": header is not valid JSON at byte ",
             length_bytes + static_cast<int64_t>(position));
    }

  private:
    /// What comes next: the value that a state is named after, or a key of an object.
    enum class State {
        header,  // the object that is the header
        name,    // in it: a name of a tensor, __metadata__, or its end
        tensor,  // the object of a tensor
        field,   // in it: a key, or its end
        dtype,   // the values of its keys
        shape,
        dimension,  // in the list of dimensions: one, or its end
        offsets,
        offset,    // in the list of offsets: one, or its end
        ignored,   // the value of a key that the format does not know; it is not looked at, as in
                   // the reference
        metadata,  // the object of __metadata__
        metadata_key,
        metadata_text,
        end,
    };

    bool go(State state) {
        state_ = state;
        return true;
    }

    bool append(std::vector<int64_t>& list, uint64_t value, size_t most) {
        if (list.size() == most) wrong("more than " + std::to_string(most));
        list.push_back(static_cast<int64_t>(value));
        return true;
    }

    bool start_field(const std::string& key) {
        if (!fields_.insert(key).second)
            fail(tensor_in(path_, tensor_.name), ": key \"", printable(key), "\" comes twice");
        if (key == "dtype") return go(State::dtype);
        if (key == "shape") return go(State::shape);
        return go(key == "data_offsets" ? State::offsets : State::ignored);
    }

    /// A value that is no part of a tensor's description: fine where it is ignored, wrong
    /// elsewhere.
    bool other_value(const std::string& found) {
        if (state_ != State::ignored) wrong(found);
        return ignored_depth_ > 0 ? true : go(State::field);
    }
    bool open_other(const std::string& found) {
        if (state_ != State::ignored) wrong(found);
        ++ignored_depth_;
        return true;
    }
    bool close_other() {
        --ignored_depth_;
        return ignored_depth_ > 0 ? true : go(State::field);
    }

    void keep_tensor() {
        for (const char* required : {"dtype", "shape", "data_offsets"}) {
            if (!fields_.contains(required))
                fail(tensor_in(path_, tensor_.name), ": has no ", required);
        }
        if (offsets_[0] > offsets_[1]) {
            fail(tensor_in(path_, tensor_.name), ": data_offsets end before they begin: [",
                 offsets_[0], ", ", offsets_[1], "]");
        }
        tensor_.begin = offsets_[0];
        tensor_.bytes = offsets_[1] - offsets_[0];
        tensors.push_back(std::move(tensor_));
    }

    [[noreturn]] void wrong(const std::string& found) const {
        const std::string where = tensor_in(path_, tensor_.name);
        switch (state_) {
            case State::dtype:
                fail(where, ": dtype: expected a string, found ", found);
            case State::shape:
            case State::dimension:
                fail(where, ": shape: expected a list of sizes, found ", found);
            case State::offsets:
            case State::offset:
                fail(where, ": data_offsets: expected a list of 2 byte positions, found ", found);
            case State::metadata:
            case State::metadata_text:
                fail(path_, ": __metadata__: expected an object of strings, found ", found);
            case State::tensor:
                fail(where, ": expected an object with dtype, shape and data_offsets, found ",
                     found);
            default:
                fail(path_, ": header: expected an object, found ", found);
        }
    }

    const std::string& path_;
    State state_ = State::header;
    int64_t ignored_depth_ = 0;  // open objects and lists of an ignored value
    TensorInfo tensor_;          // the one that is being read
    std::vector<int64_t> offsets_;
    std::set<std::string> fields_;  // its keys so far
    std::string metadata_key_;
    std::set<std::string> names_;
};

/// The bytes of the header's JSON.
std::string_view header_text(std::string_view file, const std::string& path) {
    const auto size = static_cast<int64_t>(file.size());
    if (size < length_bytes) {
        fail(path, ": not a safetensors file: expected ", length_bytes,
             " bytes of header length, found ", size, " bytes");
    }
    uint64_t length = 0;
    for (int64_t i = length_bytes; i-- > 0;) {
        length = length << 8 | static_cast<uint8_t>(file[static_cast<size_t>(i)]);
    }
    if (length > static_cast<uint64_t>(max_header_bytes)) {
        fail(path, ": not a safetensors file: expected a header of at most ", max_header_bytes,
             " bytes, found a length of ", length);
    }
    if (static_cast<int64_t>(length) > size - length_bytes) {
        fail(path, ": truncated: expected a header of ", length, " bytes, found ",
             size - length_bytes);
    }
    const std::string_view text = file.substr(length_bytes, length);
    if (text.empty() || text.front() != '{')
        fail(path, ": not a safetensors file: expected a header that begins with '{'");
    // The parser takes a zero byte for the end of the text.
    const size_t zero = text.find('\0');
    if (zero != std::string_view::npos) {
        fail(path, ": header is not valid JSON at byte ",
             length_bytes + static_cast<int64_t>(zero) + 1);
    }
    return text;
}

/// The bytes that a tensor's dtype and shape need; none if the dtype is not known.
std::optional<int64_t> expected_bytes(const TensorInfo& tensor, const std::string& path) {
    const int64_t bits = safetensors_dtype_bits(tensor.dtype_name);
    if (bits == 0) return std::nullopt;
    int64_t total = bits;
    for (const int64_t dim : tensor.shape) {
        if (__builtin_mul_overflow(total, dim, &total)) {
            fail(tensor_in(path, tensor.name), ": shape ", shape_string(tensor.shape),
                 " is too large");
        }
    }
    if (total % 8 != 0) {
        fail(tensor_in(path, tensor.name), ": ", printable(tensor.to_string()),
             " is no whole number of bytes");
    }
    return total / 8;
}

/// Tensors lie one behind the other from the end of the header to the end of the file.
void check_ranges(const std::vector<TensorInfo>& tensors, int64_t data_bytes,
                  const std::string& path) {
    int64_t end = 0;
    std::string before = "the header";
    for (const TensorInfo& tensor : tensors) {
        const std::string where = tensor_in(path, tensor.name);
        const std::optional<int64_t> expected = expected_bytes(tensor, path);
        if (expected && *expected != tensor.bytes) {
            fail(where, ": expected ", *expected, " bytes for ", printable(tensor.to_string()),
                 ", found ", tensor.bytes);
        }
        if (tensor.begin != end) {
            fail(where, ": expected to begin at byte ", end, " of the data, where ", before,
                 " ends, found ", tensor.begin, tensor.begin < end ? ": they overlap" : ": a hole");
        }
        if (tensor.bytes > data_bytes - end) {
            fail(where, ": truncated: expected ", tensor.bytes, " bytes, found ", data_bytes - end);
        }
        end += tensor.bytes;
        before = "tensor " + printable(tensor.name);
    }
    if (end != data_bytes) fail(path, ": expected ", end, " bytes of data, found ", data_bytes);
}

}  // namespace

int64_t safetensors_dtype_bits(std::string_view name) {
    if (const std::optional<DType> dtype = dtype_from_name(name)) return 8 * dtype_size(*dtype);
    for (const auto& [other, bits] : other_dtype_bits) {
        if (other == name) return bits;
    }
    return 0;
}

SafetensorsHeader read_safetensors_header(std::string_view file, const std::string& path) {
    const std::string_view text = header_text(file, path);
    HeaderEvents events(path);
    Json::sax_parse(text.begin(), text.end(), &events);
    SafetensorsHeader header{std::move(events.tensors), std::move(events.metadata)};
    // Empty tensors may stand where others begin: they come first.
    std::stable_sort(header.tensors.begin(), header.tensors.end(),
                     [](const TensorInfo& a, const TensorInfo& b) {
                         return std::pair(a.begin, a.bytes) < std::pair(b.begin, b.bytes);
                     });
    const auto data_begin = length_bytes + static_cast<int64_t>(text.size());
    check_ranges(header.tensors, static_cast<int64_t>(file.size()) - data_begin, path);
    for (TensorInfo& tensor : header.tensors) tensor.begin += data_begin;
    return header;
}

}  // namespace mllama
