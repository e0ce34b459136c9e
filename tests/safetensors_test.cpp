// Reading and writing of safetensors files: against files of the reference package, round trips,
// and hostile files.
#include "io/safetensors.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <map>

#include "io/safetensors_header.h"
#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

const std::string goldens = std::string(MLLAMA_TEST_DATA) + "/goldens/safetensors";

/// A file with this header and this many bytes 1, 2, 3, ... of data.
std::string file_bytes(std::string_view header, size_t data_bytes) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i) & 0xFF);
    bytes += header;
    for (size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i + 1);
    return bytes;
}

/// Opens such a file.
struct Opened {
    TemporaryDirectory directory;
    std::string path = directory / "x.safetensors";
    SafetensorsFile open(std::string_view header, size_t data_bytes) const {
        write_bytes(path, file_bytes(header, data_bytes));
        return SafetensorsFile::open(path);
    }
};

/// What opening such a file throws; it must begin with the path.
std::string error_with(std::string_view header, size_t data_bytes) {
    const Opened opened;
    const std::string message = error_of([&] { auto file = opened.open(header, data_bytes); });
    if (message.empty()) return "";
    CHECK(message.starts_with(opened.path + ": "));
    CHECK(message.find('\n') == std::string::npos);
    return message.substr(opened.path.size() + 2);
}

std::string error_of_bytes(std::string_view bytes) {
    const TemporaryDirectory directory;
    const std::string path = directory / "x.safetensors";
    write_bytes(path, bytes);
    const std::string message = error_of([&] { auto file = SafetensorsFile::open(path); });
    return message.substr(std::min(message.size(), path.size() + 2));
}

template <class T>
std::vector<T> elements(const Tensor& x) {
    return {x.data<T>(), x.data<T>() + x.numel()};
}

}  // namespace

TEST_CASE("read_file_of_the_reference_package") {
    const SafetensorsFile file = SafetensorsFile::open(goldens + "/all_types.safetensors");
    CHECK(file.metadata() ==
          std::map<std::string, std::string>{{"format", "pt"}, {"note", "a \"quoted\"\ntext"}});
    CHECK(file.tensors().size() == 20);
    CHECK(elements<double>(file.get("F64")) == std::vector<double>{-2, -1, 0, 1, 2, 3});
    CHECK(elements<float>(file.get("F32")) == std::vector<float>{-2, -1, 0, 1, 2, 3});
    CHECK(elements<int64_t>(file.get("I64")) == std::vector<int64_t>{-2, -1, 0, 1, 2, 3});
    CHECK(elements<int32_t>(file.get("I32")) == std::vector<int32_t>{-2, -1, 0, 1, 2, 3});
    CHECK(elements<int8_t>(file.get("I8")) == std::vector<int8_t>{-2, -1, 0, 1, 2, 3});
    CHECK(elements<uint8_t>(file.get("U8")) == std::vector<uint8_t>{0, 1, 2, 3, 4, 5});
    CHECK(elements<uint8_t>(file.get("BOOL")) == std::vector<uint8_t>{1, 0, 1, 0, 0, 1});
    CHECK(elements<uint16_t>(file.get("BF16")) ==
          std::vector<uint16_t>{0xC000, 0xBF80, 0, 0x3F80, 0x4000, 0x4040});
    CHECK(elements<uint16_t>(file.get("F16")) ==
          std::vector<uint16_t>{0xC000, 0xBC00, 0, 0x3C00, 0x4000, 0x4200});
    CHECK(elements<uint8_t>(file.get("F8_E4M3")) ==
          std::vector<uint8_t>{0xC0, 0xB8, 0, 0x38, 0x40, 0x44});
    CHECK(elements<uint8_t>(file.get("F8_E5M2")) ==
          std::vector<uint8_t>{0xC0, 0xBC, 0, 0x3C, 0x40, 0x42});
    CHECK(file.get("BF16", DType::bf16, {2, 3}).storage()->kind() == Storage::Kind::mapped);
    CHECK(file.get("scalar").shape() == Shape());
    CHECK(elements<float>(file.get("scalar")) == std::vector<float>{7.5f});
    CHECK(file.get("empty").shape() == Shape{3, 0, 2});
    CHECK(file.get("deep").shape() == Shape{1, 2, 1, 3, 1, 2});
    CHECK(elements<float>(file.get("größe")) == std::vector<float>{0, 1, 2, 3, 4});
}

TEST_CASE("types_that_cannot_be_held_are_listed_but_not_read") {
    const SafetensorsFile file = SafetensorsFile::open(goldens + "/all_types.safetensors");
    for (const char* name : {"U64", "U32", "U16", "I16", "C64"}) {
        const TensorInfo* info = file.find(name);
        REQUIRE(info);
        CHECK(info->dtype_name == name);
        CHECK(!info->dtype.has_value());
        CHECK(info->shape == std::vector<int64_t>{2, 3});
        CHECK(info->bytes == 6 * safetensors_dtype_bits(name) / 8);
        CHECK(holds_all(error_of([&] { return file.get(name); }),
                        {"all_types.safetensors: tensor ", name, "cannot hold"}));
    }
    const Opened opened;
    const SafetensorsFile unknown =
        opened.open(R"({"a":{"dtype":"F3","shape":[5],"data_offsets":[0,2]}})", 2);
    CHECK(unknown.tensors()[0].to_string() == "F3 (5,)");
    CHECK(holds_all(error_of([&] { return unknown.get("a"); }), {"tensor a", "F3"}));
    CHECK(opened.open(R"({"a":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}})", 3)
              .tensors()[0]
              .bytes == 3);
    CHECK(holds_all(error_with(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2),
                    {"whole number of bytes"}));
}

TEST_CASE("get_checks_name_dtype_and_shape") {
    const SafetensorsFile file = SafetensorsFile::open(goldens + "/all_types.safetensors");
    CHECK(holds_all(error_of([&] { return file.get("missing"); }),
                    {"all_types.safetensors", "has no tensor missing"}));
    CHECK(holds_all(error_of([&] {
                        return file.get("F32", DType::bf16, {2, 3});
                    }),
                    {"all_types.safetensors: tensor F32: expected BF16 (2, 3), found F32 (2, 3)"}));
    CHECK(holds_all(error_of([&] { return file.get("F32", DType::f32, {6}); }),
                    {"expected F32 (6,), found F32 (2, 3)"}));
    CHECK(file.find("missing") == nullptr);
}

TEST_CASE("tensors_are_listed_in_the_order_of_the_file_and_outlive_it") {
    const Opened opened;
    Tensor b;
    {
        const SafetensorsFile file = opened.open(
            R"({"b":{"dtype":"I8","shape":[2],"data_offsets":[3,5]},"e":{"dtype":"I8","shape":[0],"data_offsets":[3,3]},)"
            R"("a":{"shape":[3],"data_offsets":[0,3],"dtype":"U8","more":{"x":[1,{"y":null}]},"z":-1.5}}  )",
            5);
        REQUIRE(file.tensors().size() == 3);
        CHECK(file.tensors()[0].name == "a");
        CHECK(file.tensors()[1].name == "e");
        CHECK(file.tensors()[2].name == "b");
        b = file.get("b");
    }
    CHECK(elements<int8_t>(b) == std::vector<int8_t>{4, 5});
    CHECK(!b.writable());
}

TEST_CASE("unaligned_tensor_is_copied_to_aligned_memory") {
    const Opened opened;  // 67 bytes of header: nothing behind it is aligned
    const SafetensorsFile file =
        opened.open(R"({"a":{"dtype":"I32","shape":[1,2],   "data_offsets":[0,8]}})", 8);
    REQUIRE(file.tensors()[0].begin % 4 != 0);
    const Tensor a = file.get("a");
    CHECK(a.storage()->kind() == Storage::Kind::owned);
    CHECK(elements<int32_t>(a) == std::vector<int32_t>{0x04030201, 0x08070605});
}

TEST_CASE("empty_file_of_tensors_is_one") {
    const Opened opened;
    CHECK(opened.open("{}", 0).tensors().empty());
    CHECK(opened.open(R"({"__metadata__":{"a":"b"}})", 0).metadata().at("a") == "b");
    CHECK(opened.open(R"({"__metadata__":null})", 0).metadata().empty());
}

TEST_CASE("open_a_file_that_is_none_names_the_reason") {
    const TemporaryDirectory directory;
    CHECK(error_of([&] { return SafetensorsFile::open(directory / "x"); }) ==
          (directory / "x") + ": cannot be read: No such file or directory");
    CHECK(error_of([&] { return SafetensorsFile::open(directory.path()); }) ==
          directory.path() + ": expected a file, found a directory");
    CHECK(holds_all(error_of([&] { return SafetensorsFile::open("/dev/null"); }),
                    {"/dev/null: expected a regular file"}));
    REQUIRE(::mkfifo((directory / "pipe").c_str(), 0600) == 0);
    CHECK(holds_all(error_of([&] { return SafetensorsFile::open(directory / "pipe"); }),
                    {"pipe: expected a regular file"}));
}

TEST_CASE("header_length_is_checked_against_the_file") {
    CHECK(holds_all(error_of_bytes(""), {"expected 8 bytes", "found 0"}));
    CHECK(holds_all(error_of_bytes("1234567"), {"expected 8 bytes", "found 7"}));
    CHECK(holds_all(error_of_bytes(std::string("\x03\0\0\0\0\0\0\0{}", 10)),
                    {"truncated: expected a header of 3 bytes, found 2"}));
    CHECK(holds_all(error_of_bytes(std::string("\0\0\0\0\0\0\0\0", 8)), {"begins with '{'"}));
    CHECK(holds_all(error_of_bytes(std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10)),
                    {"at most 100000000", "18446744073709551615"}));
    CHECK(holds_all(error_of_bytes(std::string("\x01\xE1\xF5\x05\0\0\0\0{}", 10)),
                    {"at most 100000000", "100000001"}));
    CHECK(holds_all(error_of_bytes("GGUF............"), {"not a safetensors file"}));
}

TEST_CASE("header_that_is_not_json_is_an_error") {
    CHECK(holds_all(error_with("{", 0), {"not valid JSON at byte"}));
    CHECK(holds_all(error_with(R"({"a":{"dtype":"F32","shape":[1])", 4), {"not valid JSON"}));
    CHECK(holds_all(error_with("{} x", 0), {"not valid JSON"}));
    CHECK(
        holds_all(error_with(std::string_view("{}\0\0\0\0", 6), 0), {"not valid JSON at byte 11"}));
    CHECK(holds_all(error_with(" {}", 0), {"begins with '{'"}));
    CHECK(holds_all(error_with("[]", 0), {"begins with '{'"}));
    CHECK(holds_all(error_with("{\"\xC3\x28\":1}", 0), {"not valid JSON"}));
    CHECK(holds_all(error_with(R"({"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}})", 4),
                    {"not valid JSON"}));
    std::string deep = R"({"a":{"x":)" + std::string(1'000'000, '[');
    CHECK(holds_all(error_with(deep, 0), {"not valid JSON"}));
    deep += std::string(1'000'000, ']') + R"(,"dtype":"U8","shape":[],"data_offsets":[0,1]}})";
    CHECK(error_with(deep, 1).empty());  // what is ignored may be nested as it likes
}

TEST_CASE("header_with_values_of_wrong_kinds_names_tensor_expected_and_found") {
    const auto tensor = [](std::string_view fields) {
        return error_with(R"({"t.w":{)" + std::string(fields) + "}}", 4);
    };
    CHECK(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])").empty());
    CHECK(tensor(R"("dtype":7,"shape":[1],"data_offsets":[0,4])") ==
          "tensor t.w: dtype: expected a string, found 7");
    CHECK(tensor(R"("dtype":null,"shape":[1],"data_offsets":[0,4])") ==
          "tensor t.w: dtype: expected a string, found null");
    CHECK(tensor(R"("dtype":["F32"],"shape":[1],"data_offsets":[0,4])") ==
          "tensor t.w: dtype: expected a string, found a list");
    CHECK(tensor(R"("dtype":"F32","shape":1,"data_offsets":[0,4])") ==
          "tensor t.w: shape: expected a list of sizes, found 1");
    CHECK(tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])") ==
          "tensor t.w: shape: expected a list of sizes, found -1");
    CHECK(tensor(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])") ==
          "tensor t.w: shape: expected a list of sizes, found 1.0");
    CHECK(tensor(R"("dtype":"F32","shape":["1"],"data_offsets":[0,4])") ==
          "tensor t.w: shape: expected a list of sizes, found \"1\"");
    CHECK(tensor(R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])") ==
          "tensor t.w: shape: expected a list of sizes, found a list");
    CHECK(tensor(R"("dtype":"F32","shape":{},"data_offsets":[0,4])") ==
          "tensor t.w: shape: expected a list of sizes, found an object");
    CHECK(holds_all(tensor(R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4])"),
                    {"found 18446744073709551615"}));
    CHECK(holds_all(tensor(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4])"),
                    {"shape", "found 99999999999999999999"}));
    CHECK(holds_all(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0])"),
                    {"data_offsets: expected a list of 2", "found 1"}));
    CHECK(holds_all(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])"),
                    {"data_offsets", "more than 2"}));
    CHECK(holds_all(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])"),
                    {"data_offsets", "found -4"}));
    CHECK(holds_all(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"),
                    {"end before they begin: [4, 0]"}));
    CHECK(tensor(R"("shape":[1],"data_offsets":[0,4])") == "tensor t.w: has no dtype");
    CHECK(tensor(R"("dtype":"F32","data_offsets":[0,4])") == "tensor t.w: has no shape");
    CHECK(tensor(R"("dtype":"F32","shape":[1])") == "tensor t.w: has no data_offsets");
    CHECK(holds_all(tensor(R"("dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4])"),
                    {"\"dtype\" comes twice"}));
    CHECK(holds_all(error_with(R"({"a":5})", 0),
                    {"tensor a: expected an object with dtype", "found 5"}));
    CHECK(
        holds_all(error_with(R"({"a":[]})", 0), {"tensor a: expected an object", "found a list"}));
    CHECK(holds_all(error_with(R"({"__metadata__":5})", 0),
                    {"__metadata__: expected an object of strings, found 5"}));
    CHECK(holds_all(error_with(R"({"__metadata__":{"a":5}})", 0), {"__metadata__", "found 5"}));
    CHECK(holds_all(error_with(R"({"__metadata__":{"a":{}}})", 0),
                    {"__metadata__", "found an object"}));
    CHECK(holds_all(error_with(R"({"__metadata__":{"a":"1","a":"2"}})", 0), {"\"a\" comes twice"}));
}

TEST_CASE("shape_and_size_must_agree_and_not_overflow") {
    const auto shape = [](std::string_view dims, std::string_view end) {
        return error_with(R"({"a":{"dtype":"F32","shape":[)" + std::string(dims) +
                              R"(],"data_offsets":[0,)" + std::string(end) + "]}}",
                          8);
    };
    CHECK(shape("2", "8").empty());
    CHECK(shape("1,2,1,1,1,1,1,1,1", "8").empty());  // listed; more dimensions than a Tensor has
    CHECK(shape("3", "8") == "tensor a: expected 12 bytes for F32 (3,), found 8");
    CHECK(shape("", "8") == "tensor a: expected 4 bytes for F32 (), found 8");
    CHECK(shape("0", "8") == "tensor a: expected 0 bytes for F32 (0,), found 8");
    CHECK(shape("4294967296,4294967296", "8") ==
          "tensor a: shape (4294967296, 4294967296) is too large");
    CHECK(shape("9223372036854775807", "8") ==
          "tensor a: shape (9223372036854775807,) is too large");
    CHECK(holds_all(shape("4611686018427387905", "8"), {"too large"}));  // 4 * this is 4 in 64 bits
    std::string many = "2";
    for (int i = 0; i < 64; ++i) many += ",1";
    CHECK(shape(many, "8") == "tensor a: shape: expected a list of sizes, found more than 64");
    const Opened opened;
    const SafetensorsFile file =
        opened.open(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1);
    CHECK(holds_all(error_of([&] { return file.get("a"); }),
                    {"tensor a: ", "at most 6 dimensions, found 8"}));
    const SafetensorsFile empty = opened.open(
        R"({"a":{"dtype":"U8","shape":[0,4611686018427387904],"data_offsets":[0,0]}})", 0);
    CHECK(holds_all(error_of([&] { return empty.get("a"); }), {"tensor a: ", "elements"}));
}

TEST_CASE("ranges_must_fill_the_file_without_holes_and_overlaps") {
    const auto two = [](int a_begin, int a_end, int b_begin, int b_end, size_t bytes) {
        const auto entry = [](const char* name, int begin, int end) {
            return std::string("\"") + name + R"(":{"dtype":"U8","shape":[)" +
                   std::to_string(end - begin) + R"(],"data_offsets":[)" + std::to_string(begin) +
                   "," + std::to_string(end) + "]}";
        };
        return error_with("{" + entry("a", a_begin, a_end) + "," + entry("b", b_begin, b_end) + "}",
                          bytes);
    };
    CHECK(two(0, 4, 4, 9, 9).empty());
    CHECK(two(4, 9, 0, 4, 9).empty());
    CHECK(
        two(0, 4, 5, 9, 9) ==
        "tensor b: expected to begin at byte 4 of the data, where tensor a ends, found 5: a hole");
    CHECK(two(0, 4, 3, 9, 9) ==
          "tensor b: expected to begin at byte 4 of the data, where tensor a ends, found 3: they "
          "overlap");
    CHECK(two(0, 4, 0, 4, 8) ==
          "tensor b: expected to begin at byte 4 of the data, where tensor a ends, found 0: they "
          "overlap");
    CHECK(two(1, 4, 4, 9, 9) ==
          "tensor a: expected to begin at byte 0 of the data, where the header ends, found 1: a "
          "hole");
    CHECK(two(0, 4, 4, 9, 8) == "tensor b: truncated: expected 5 bytes, found 4");
    CHECK(two(0, 4, 4, 9, 0) == "tensor a: truncated: expected 4 bytes, found 0");
    CHECK(two(0, 4, 4, 9, 10) == "expected 9 bytes of data, found 10");
    CHECK(holds_all(
        error_with(
            R"({"a":{"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]}})",
            4),
        {"too large"}));
    CHECK(holds_all(
        error_with(
            R"({"a":{"dtype":"X","shape":[1],"data_offsets":[0,9223372036854775807]},)"
            R"("b":{"dtype":"X","shape":[1],"data_offsets":[9223372036854775807,9223372036854775807]}})",
            4),
        {"tensor a: truncated"}));
}

TEST_CASE("name_twice_is_an_error") {
    const std::string entry = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
    CHECK(error_with("{" + entry + "," + entry + "}", 1) == "tensor a: comes twice in the header");
    CHECK(holds_all(error_with(R"({"__metadata__":{},"__metadata__":{}})", 0), {"comes twice"}));
}

TEST_CASE("hostile_names_stay_on_one_line_of_a_message") {
    CHECK(error_with(R"({"a\nb":5})", 0) ==
          "tensor a\\x0Ab: expected an object with dtype, shape and data_offsets, found 5");
}

TEST_CASE("every_truncation_and_every_changed_byte_is_an_error_or_a_whole_file") {
    const TemporaryDirectory directory;
    const std::string good = read_bytes(goldens + "/sharded/model-00003-of-00003.safetensors");
    const std::string path = directory / "x.safetensors";
    for (size_t size = 0; size < good.size(); ++size) {
        write_bytes(path, good.substr(0, size));
        CHECK(error_of([&] { auto file = SafetensorsFile::open(path); }).starts_with(path + ": "));
    }
    for (size_t i = 0; i < 160; ++i) {
        for (const int bit : {1, 0x10, 0x80}) {
            std::string bad = good;
            bad[i] = static_cast<char>(bad[i] ^ bit);
            write_bytes(path, bad);
            const std::string message = error_of([&] {
                const SafetensorsFile file = SafetensorsFile::open(path);
                for (const TensorInfo& info : file.tensors()) {
                    if (info.dtype) CHECK(file.get(info).bytes() == info.bytes);
                }
            });
            CHECK((message.empty() || message.starts_with(path + ": ")));
        }
    }
}

TEST_CASE("write_and_read_back_every_type") {
    const TemporaryDirectory directory;
    const std::string path = directory / "out.safetensors";
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const DType dtype :
         {DType::boolean, DType::f32, DType::bf16, DType::i64, DType::u8, DType::f16, DType::i32,
          DType::i8, DType::f64, DType::f8_e4m3, DType::f8_e5m2}) {
        Tensor x = Tensor::empty({3, 5}, dtype);
        for (int64_t i = 0; i < x.bytes(); ++i)
            static_cast<uint8_t*>(x.data())[i] = static_cast<uint8_t>(i * 37);
        tensors.emplace_back(dtype_name(dtype), x);
    }
    tensors.emplace_back("a \"quoted\\ name\"\n", Tensor::from(std::vector<float>{1, 2}));
    tensors.emplace_back("scalar", Tensor::from(std::vector<int64_t>{-5}, {}));
    tensors.emplace_back("empty", Tensor::empty({0, 7}, DType::f32));
    write_safetensors(path, tensors, {{"format", "pt"}, {"ключ", "значение"}});

    const SafetensorsFile file = SafetensorsFile::open(path);
    CHECK(file.metadata() == SafetensorsWriter::Metadata{{"format", "pt"}, {"ключ", "значение"}});
    CHECK(file.tensors().size() == tensors.size());
    CHECK(static_cast<uint8_t>(read_bytes(path)[0]) % 8 == 0);
    for (const auto& [name, x] : tensors) {
        const Tensor y = file.get(name, x.dtype(), x.shape());
        CHECK(y.storage()->kind() == Storage::Kind::mapped);  // all are aligned
        CHECK(std::memcmp(x.data(), y.data(), static_cast<size_t>(x.bytes())) == 0);
    }
    CHECK(file.tensors()[0].name == "I64");  // the largest elements first, then as given
    CHECK(file.tensors()[1].name == "F64");
    CHECK(file.tensors().back().name == "F8_E5M2");
    CHECK(directory.entries() == 1);
}

TEST_CASE("write_piece_by_piece_in_any_order_and_from_strided_rows") {
    const TemporaryDirectory directory;
    const std::string path = directory / "out.safetensors";
    const Tensor wide =
        Tensor::from(std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {3, 4});
    {
        SafetensorsWriter writer(
            path, {{"x", DType::f32, {3, 2}}, {"y", DType::f32, {12}}, {"none", DType::f32, {0}}});
        writer.write("y", wide.rows(0, 1));
        writer.write("x", wide.cols(1, 3).rows(0, 2));
        writer.write("y", wide.rows(1, 3));
        writer.write("x", wide.cols(1, 3).rows(2, 3));
        writer.finish();
    }
    const SafetensorsFile file = SafetensorsFile::open(path);
    CHECK(elements<float>(file.get("x", DType::f32, {3, 2})) ==
          std::vector<float>{1, 2, 5, 6, 9, 10});
    CHECK(elements<float>(file.get("y", DType::f32, {12})) == elements<float>(wide));
}

TEST_CASE("unfinished_or_failed_writing_leaves_the_target_as_it_was") {
    const TemporaryDirectory directory;
    const std::string path = directory / "out.safetensors";
    const Tensor one = Tensor::from(std::vector<float>{1});
    write_safetensors(path, {{"x", one}});
    const std::string before = read_bytes(path);
    {
        SafetensorsWriter writer(path, {{"x", DType::f32, {1}}, {"y", DType::f32, {1}}});
        writer.write("x", one);
        CHECK(read_bytes(path) == before);
    }
    CHECK(read_bytes(path) == before);
    CHECK(directory.entries() == 1);
    CHECK(holds_all(error_of([&] {
                        write_safetensors(path, {{"x", one}, {"x", one}});
                    }),
                    {path, "tensor x", "taken"}));
    CHECK(holds_all(error_of([&] {
                        write_safetensors(path, {{"__metadata__", one}});
                    }),
                    {"taken"}));
    CHECK(holds_all(error_of([&] { write_safetensors(path, {{"\xFF", one}}); }), {path, "UTF-8"}));
    CHECK(read_bytes(path) == before);
    CHECK(directory.entries() == 1);
}

TEST_CASE("writing_that_fails_half_way_names_the_reason_and_leaves_nothing_behind") {
    const TemporaryDirectory directory;
    const std::string path = directory / "out.safetensors";
    // As if the disk were full after 4096 bytes.
    const auto previous_handler = std::signal(SIGXFSZ, SIG_IGN);
    rlimit previous{};
    ::getrlimit(RLIMIT_FSIZE, &previous);
    const rlimit small{4096, previous.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &small);
    const std::string message = error_of([&] {
        write_safetensors(path, {{"x", Tensor::zeros({2000}, DType::f32)}});
    });
    ::setrlimit(RLIMIT_FSIZE, &previous);
    std::signal(SIGXFSZ, previous_handler);
    CHECK(message == path + ": cannot be written: File too large");
    CHECK(directory.entries() == 0);
}

TEST_CASE("replaced_file_keeps_its_bytes_for_who_has_it_mapped") {
    const TemporaryDirectory directory;
    const std::string path = directory / "out.safetensors";
    write_safetensors(path, {{"x", Tensor::from(std::vector<float>{1, 2, 3})}});
    const Tensor old = SafetensorsFile::open(path).get("x");
    write_safetensors(path, {{"x", Tensor::from(std::vector<float>{4})}});
    CHECK(elements<float>(old) == std::vector<float>{1, 2, 3});
    CHECK(elements<float>(SafetensorsFile::open(path).get("x")) == std::vector<float>{4});
}

TEST_CASE("write_where_nothing_can_be_written_names_the_reason") {
    const TemporaryDirectory directory;
    const std::vector<std::pair<std::string, Tensor>> tensors{
        {"x", Tensor::from(std::vector<float>{1})}};
    CHECK(holds_all(error_of([&] { write_safetensors(directory / "no/out", tensors); }),
                    {"/no/out: cannot be written: No such"}));
    CHECK(holds_all(error_of([&] { write_safetensors(directory.path(), tensors); }),
                    {directory.path(), "found a directory"}));
    CHECK(holds_all(error_of([&] { write_safetensors("/dev/null", tensors); }),
                    {"/dev/null: cannot be written", "device"}));
    // A symbolic link is followed, not replaced.
    write_safetensors(directory / "real", tensors);
    REQUIRE(::symlink((directory / "real").c_str(), (directory / "link").c_str()) == 0);
    write_safetensors(directory / "link", {{"y", Tensor::from(std::vector<float>{2})}});
    CHECK(SafetensorsFile::open(directory / "real").find("y"));
}
