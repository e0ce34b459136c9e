// Checkpoint directories: the three layouts, both styles of names, and everything that can be wrong
// with them.
#include "io/checkpoint.h"

#include <doctest/doctest.h>

#include <map>

#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

const std::string goldens = std::string(MLLAMA_TEST_DATA) + "/goldens/safetensors";

// As for the published model: names in memory on the left, names of the files on the right.
const NamePrefixes prefixes = {{"model.language_model.", "language_model.model."},
                               {"lm_head.", "language_model.lm_head."}};

Tensor floats(std::vector<float> values) {
    return Tensor::from(values);
}

/// A directory with an index that says what is given, and two shards: one.safetensors with a and b,
/// two.safetensors with c.
struct Sharded {
    TemporaryDirectory directory;
    explicit Sharded(std::string_view index) {
        write_safetensors(directory / "one.safetensors",
                          {{"a", floats({1})}, {"b", floats({2, 3})}});
        write_safetensors(directory / "two.safetensors", {{"c", floats({4})}});
        write_bytes(directory / "model.safetensors.index.json", index);
    }
    [[nodiscard]] std::string error() const {
        return error_of([&] { auto checkpoint = Checkpoint::open(directory.path()); });
    }
};

std::string index_error(std::string_view index) {
    const Sharded sharded(index);
    const std::string message = sharded.error();
    const std::string start = sharded.directory.path() + "/";
    CHECK((message.empty() || message.starts_with(start)));
    return message.empty() ? "" : message.substr(start.size());
}

const char* const good_index =
    R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}})";

}  // namespace

TEST_CASE("sharded_checkpoint_of_the_reference_package_with_both_styles_of_names") {
    const Checkpoint checkpoint = Checkpoint::open(goldens + "/sharded", prefixes);
    CHECK(checkpoint.names().size() == 8);
    CHECK(checkpoint.files().size() == 3);
    CHECK(checkpoint.bytes() == 648);
    for (int64_t i = 0; i < 6; ++i) {
        const std::string name = "language_model.model.layers." + std::to_string(i) + ".weight";
        REQUIRE(checkpoint.has(name));
        const Tensor weight = checkpoint.get(name, {8, 4});
        CHECK(weight.dtype() == DType::bf16);
        CHECK(weight.data<uint16_t>()[3] == f32_to_bf16(static_cast<float>(i + 3)));
        CHECK(weight.storage()->kind() == Storage::Kind::mapped);
    }
    CHECK(checkpoint.get("language_model.lm_head.weight", DType::f32, {16, 4}).data<float>()[63] ==
          63);
    CHECK(checkpoint.get("language_model.model.norm.weight", {4}).data<uint16_t>()[0] ==
          f32_to_bf16(1));
    CHECK(!checkpoint.has("lm_head.weight"));
    CHECK(checkpoint.info("language_model.lm_head.weight").name == "lm_head.weight");
    CHECK(checkpoint.info("language_model.lm_head.weight").to_string() == "F32 (16, 4)");
    CHECK(checkpoint.file("language_model.lm_head.weight") ==
          goldens + "/sharded/model-00003-of-00003.safetensors");
}

TEST_CASE("without_prefixes_names_are_those_of_the_files") {
    const Checkpoint checkpoint = Checkpoint::open(goldens + "/sharded");
    CHECK(checkpoint.has("model.language_model.layers.0.weight"));
    CHECK(!checkpoint.has("language_model.model.layers.0.weight"));
}

TEST_CASE("only_the_first_prefix_that_fits_is_replaced_and_only_once") {
    const TemporaryDirectory directory;
    write_safetensors(directory / "model.safetensors",
                      {{"a.x", floats({1})}, {"b.x", floats({2})}, {"c.a.x", floats({3})}});
    const Checkpoint checkpoint =
        Checkpoint::open(directory.path(), {{"a.", "b.a."}, {"b.", "d."}, {"a.x", "never"}});
    CHECK(checkpoint.has("b.a.x"));
    CHECK(checkpoint.has("d.x"));
    CHECK(checkpoint.has("c.a.x"));
    CHECK(checkpoint.names().size() == 3);
}

TEST_CASE("single_file_and_lone_other_file") {
    const TemporaryDirectory directory;
    CHECK(holds_all(error_of([&] { return Checkpoint::open(directory.path()); }),
                    {directory.path(), "expected model.safetensors", "found 0"}));
    write_safetensors(directory / "adapter.safetensors", {{"a", floats({1})}});
    CHECK(Checkpoint::open(directory.path()).has("a"));
    write_safetensors(directory / "second.safetensors", {{"b", floats({1})}});
    CHECK(holds_all(error_of([&] { return Checkpoint::open(directory.path()); }),
                    {directory.path(), "found 2 .safetensors files"}));
    write_bytes(directory / "model.safetensors.index.json",
                R"({"weight_map":{"b":"second.safetensors"}})");
    CHECK(!Checkpoint::open(directory.path()).has("a"));
    write_safetensors(directory / "model.safetensors", {{"c", floats({1})}});
    CHECK(Checkpoint::open(directory.path()).names() ==
          std::vector<std::string>{"c"});  // goes before an index
}

TEST_CASE("tensors_outlive_the_checkpoint") {
    Tensor weight;
    {
        const Checkpoint checkpoint = Checkpoint::open(goldens + "/sharded", prefixes);
        weight = checkpoint.get("language_model.lm_head.weight", {16, 4});
    }
    CHECK(std::as_const(weight).data<float>()[10] == 10);
}

TEST_CASE("directory_that_is_none_names_the_reason") {
    const TemporaryDirectory directory;
    CHECK(error_of([&] { return Checkpoint::open(directory / "x"); }) ==
          (directory / "x") + ": cannot be read: No such file or directory");
    write_bytes(directory / "x", "");
    CHECK(error_of([&] { return Checkpoint::open(directory / "x"); }) ==
          (directory / "x") + ": expected a checkpoint directory, found a file");
}

TEST_CASE("index_that_is_wrong_is_an_error") {
    CHECK(index_error(good_index).empty());
    CHECK(holds_all(index_error("{"), {"model.safetensors.index.json: not valid JSON at line 1"}));
    CHECK(holds_all(index_error("[]"), {"index.json: expected an object", "weight_map"}));
    CHECK(holds_all(index_error("{}"), {"index.json: expected an object", "weight_map"}));
    CHECK(holds_all(index_error(R"({"weight_map":[]})"),
                    {"index.json: expected an object", "weight_map"}));
    CHECK(holds_all(index_error(R"({"weight_map":{}})"), {"index.json: expected tensors", "none"}));
    CHECK(holds_all(index_error(R"({"weight_map":{"a":5}})"),
                    {"index.json: tensor a: expected a plain file name, found 5"}));
}

TEST_CASE("index_must_not_lead_out_of_its_directory") {
    for (const char* file : {"../one.safetensors", "/etc/passwd", "..", ".", "",
                             "sub/one.safetensors", "one.safetensors\\u0000x"}) {
        const std::string message =
            index_error(R"({"weight_map":{"a":")" + std::string(file) + "\"}}");
        CHECK(holds_all(message, {"index.json: tensor a: expected a plain file name, found \""}));
    }
}

TEST_CASE("index_and_shards_must_agree") {
    CHECK(index_error(R"({"weight_map":{"a":"one.safetensors","c":"three.safetensors"}})") ==
          "three.safetensors: does not exist; model.safetensors.index.json expects tensor c in it");
    CHECK(index_error(R"({"weight_map":{"a":"one.safetensors","c":"one.safetensors"}})") ==
          "one.safetensors: has no tensor c, which model.safetensors.index.json expects in it");
    CHECK(index_error(R"({"weight_map":{"a":"one.safetensors"}})")
              .empty());  // b is there all the same
}

TEST_CASE("truncated_shard_names_file_and_tensor") {
    const Sharded sharded(good_index);
    const std::string path = sharded.directory / "one.safetensors";
    const std::string bytes = read_bytes(path);
    write_bytes(path, bytes.substr(0, bytes.size() - 1));
    CHECK(sharded.error() == path + ": tensor b: truncated: expected 8 bytes, found 7");
    write_bytes(path, bytes.substr(0, 20));
    CHECK(holds_all(sharded.error(), {path, "truncated: expected a header of"}));
}

TEST_CASE("tensor_in_two_shards_is_an_error") {
    const Sharded sharded(good_index);
    write_safetensors(sharded.directory / "two.safetensors",
                      {{"a", floats({9})}, {"c", floats({4})}});
    CHECK(sharded.error() == (sharded.directory / "two.safetensors") + ": tensor a: is also in " +
                                 (sharded.directory / "one.safetensors") + " as a");
}

TEST_CASE("tensor_in_both_styles_of_names_is_an_error") {
    const TemporaryDirectory directory;
    const std::string path = directory / "model.safetensors";
    write_safetensors(
        path, {{"lm_head.weight", floats({1})}, {"language_model.lm_head.weight", floats({1})}});
    CHECK(error_of([&] { return Checkpoint::open(directory.path(), prefixes); }) ==
          path + ": tensor language_model.lm_head.weight: is also in " + path +
              " as lm_head.weight");
    CHECK(Checkpoint::open(directory.path()).names().size() == 2);
}

TEST_CASE("get_says_file_tensor_expected_and_found") {
    const Checkpoint checkpoint = Checkpoint::open(goldens + "/sharded", prefixes);
    const std::string file = goldens + "/sharded/model-00003-of-00003.safetensors";
    CHECK(error_of([&] {
              return checkpoint.get("language_model.lm_head.weight", {16, 5});
          }) ==
          file + ": tensor lm_head.weight: expected F32, BF16 or F16 (16, 5), found F32 (16, 4)");
    CHECK(error_of([&] { return checkpoint.get("language_model.lm_head.weight", {64}); }) ==
          file + ": tensor lm_head.weight: expected F32, BF16 or F16 (64,), found F32 (16, 4)");
    CHECK(error_of([&] {
              return checkpoint.get("language_model.lm_head.weight", DType::bf16, {16, 4});
          }) == file + ": tensor lm_head.weight: expected BF16 (16, 4), found F32 (16, 4)");
}

TEST_CASE("get_refuses_types_that_are_no_weights") {
    const TemporaryDirectory directory;
    std::filesystem::copy_file(goldens + "/all_types.safetensors", directory / "model.safetensors");
    const Checkpoint checkpoint = Checkpoint::open(directory.path());
    for (const char* name : {"F64", "F8_E4M3", "F8_E5M2", "I8", "I64", "U16", "BOOL"}) {
        CHECK(holds_all(error_of([&] {
                            return checkpoint.get(name, {2, 3});
                        }),
                        {"tensor ", name, "expected F32, BF16 or F16 (2, 3), found ", name}));
    }
    for (const char* name : {"F32", "BF16", "F16"})
        CHECK(checkpoint.get(name, {2, 3}).numel() == 6);
    CHECK(checkpoint.get("I8", DType::i8, {2, 3}).numel() == 6);
    CHECK(checkpoint.get("scalar", {}).rank() == 0);
    CHECK(checkpoint.get("empty", {3, 0, 2}).numel() == 0);
}

TEST_CASE("missing_tensor_names_the_most_similar_one") {
    const Checkpoint checkpoint = Checkpoint::open(goldens + "/sharded", prefixes);
    CHECK(error_of([&] { return checkpoint.get("language_model.model.layer.3.weight", {1}); }) ==
          goldens +
              "/sharded: has no tensor language_model.model.layer.3.weight; the most similar is "
              "model.language_model.layers.3.weight");
    CHECK(error_of([&] { return checkpoint.info("vision"); }) ==
          goldens + "/sharded: has no tensor vision");
    CHECK(holds_all(error_of([&] { return checkpoint.file(std::string(100000, 'x')); }),
                    {"has no tensor xxx"}));
    const TemporaryDirectory directory;
    write_safetensors(directory / "model.safetensors", {{"norm.weight", floats({1})}});
    CHECK(error_of([&] { return Checkpoint::open(directory.path()).get("norm.bias", {1}); }) ==
          (directory / "model.safetensors") + ": has no tensor norm.bias");
    CHECK(error_of([&] { return Checkpoint::open(directory.path()).get("norms.weight", {1}); }) ==
          (directory / "model.safetensors") +
              ": has no tensor norms.weight; the most similar is norm.weight");
}

TEST_CASE("checkpoint_without_tensors_opens_and_has_none") {
    const TemporaryDirectory directory;
    write_safetensors(directory / "model.safetensors", {});
    const Checkpoint checkpoint = Checkpoint::open(directory.path());
    CHECK(checkpoint.names().empty());
    CHECK(checkpoint.bytes() == 0);
    CHECK(holds_all(error_of([&] { return checkpoint.get("a", {1}); }), {"has no tensor a"}));
}
