// Quantised directories: that they say what quantisation at load would have held, that they appear
// whole or not at all, and the command.
#include "mllama/quantise_checkpoint.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <limits>

#include "io/checkpoint.h"
#include "io/json.h"
#include "mllama/checkpoint_weights.h"
#include "mllama/config.h"
#include "mllama/mllama.h"
#include "mllama/quantising_source.h"
#include "tests/goldens.h"
#include "tests/program.h"

using namespace mllama;
using namespace mllama::test;

namespace fs = std::filesystem;

namespace {

std::string golden(const std::string& name) {
    return models_folder() + "/" + name;
}

const std::string demo_model = std::string(MLLAMA_TEST_DATA) + "/../apps/demo/model";

QuantisationPlan int8_everywhere() {
    return {int8_rows, int8_rows, int8_rows};
}

QuantisationPlan int4_text(int64_t group_size) {
    QuantisationPlan plan;
    plan.text = QuantisedFormat{Coding::int4, group_size};
    return plan;
}

bool same_bytes(const Tensor& a, const Tensor& b) {
    return a.defined() == b.defined() &&
           (!a.defined() || (a.dtype() == b.dtype() && a.shape() == b.shape() &&
                             std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes())) == 0));
}

/// A directory's weights as they are loaded.
struct Loaded {
    explicit Loaded(const std::string& directory)
        : config(ModelConfig::load(directory)),
          checkpoint(open_checkpoint(directory)),
          weights(checkpoint, config.quantisation) {}
    ModelConfig config;
    Checkpoint checkpoint;
    CheckpointWeights weights;
};

/// Every linear layer that `from` quantised by the plan has is in `written`, bit for bit, and so is
/// every other tensor as it was. Returns the number of quantised layers.
int64_t check_same_weights(const std::string& from, const std::string& written,
                           const QuantisationPlan& plan) {
    const Loaded plain(from), coded(written);
    const QuantisingSource at_load(plain.weights, plan, plain.config, {});
    int64_t quantised_layers = 0;
    for (const std::string& name : plain.checkpoint.names()) {
        CAPTURE(name);
        const TensorInfo& info = plain.checkpoint.info(name);
        const std::string module = name.substr(0, name.rfind('.'));
        if (info.shape.size() != 2 || !plan.of(module, info.shape[1])) {
            CHECK(same_bytes(coded.checkpoint.get(name, info.shape),
                             plain.checkpoint.get(name, info.shape)));
            continue;
        }
        ++quantised_layers;
        const Weight expected = at_load.weight(module, info.shape[0], info.shape[1]);
        const Weight found = coded.weights.weight(module, info.shape[0], info.shape[1]);
        CHECK(found.coding == expected.coding);
        CHECK(found.group_size == expected.group_size);
        CHECK(found.zero_add == expected.zero_add);
        CHECK(!found.weight_only);
        CHECK(same_bytes(found.data, expected.data));
        CHECK(same_bytes(found.scale, expected.scale));
    }
    return quantised_layers;
}

std::string error_of_writing(const std::string& from, const std::string& to,
                             const QuantiseObserver& observer = {}) {
    return error_of([&] { quantise_checkpoint(from, to, int4_text(128), {}, observer); });
}

}  // namespace

TEST_CASE("quantised_directory_holds_what_quantisation_at_load_would") {
    const TemporaryDirectory folder;
    int64_t number = 0;
    for (const std::string& from :
         {golden("a_published"), golden("c_three_tiles"), golden("d_bf16"), demo_model}) {
        CAPTURE(from);
        for (const QuantisationPlan& plan :
             {int8_everywhere(), int4_text(0), int4_text(32), int4_text(128)}) {
            const std::string to = folder.file(std::to_string(number++));
            quantise_checkpoint(from, to, plan, {}, {});
            CHECK(check_same_weights(from, to, plan) >= 7 * 3);
        }
    }
}

TEST_CASE("quantised_directory_loads_and_answers_as_quantisation_at_load_does") {
    const TemporaryDirectory folder;
    const std::string to = folder.file("q");
    quantise_checkpoint(golden("a_published"), to, {int8_rows, int8_rows, std::nullopt}, {}, {});
    const auto logits = [&](const std::string& directory, const std::string& dtype) {
        const std::string out = folder.file("out.safetensors");
        const ProgramResult result =
            run_program(MLLAMA_PROGRAM,
                        {"forward", "-m", directory, "--dtype", dtype, "--out", out, "--batch",
                         golden("a_published") + "/case_image_text.jsonl"},
                        models_folder());
        CHECK_MESSAGE(result.exit_code == 0, result.err);
        return SafetensorsFile::open(out).get("logits").clone();
    };
    const Tensor stored = logits(to, "auto");
    CHECK(same_bytes(stored, logits(golden("a_published"), "int8")));
    CHECK(same_bytes(stored, logits(to, "int8")));
    CHECK(compare_to_largest(stored, logits(golden("a_published"), "f32"), 0.1) == "");
    CHECK(compare_to_largest(stored, logits(golden("a_published"), "f32"), 0.001) != "");
}

TEST_CASE("quantised_directory_has_its_index_and_copies_of_all_that_is_no_weight") {
    const TemporaryDirectory folder;
    const std::string from = copy_of_golden(folder, "c_three_tiles");
    write_bytes(from + "/.hidden", "x");
    write_bytes(from + "/consolidated.00.pth", "x");
    fs::create_directory(from + "/original");
    write_bytes(from + "/LICENSE.txt", "x");
    const std::string to = folder.file("q");
    quantise_checkpoint(from, to + "/", int4_text(128), {}, {});
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "LICENSE.txt",
                             "preprocessor_config.json", "generation_config.json"})
        CHECK(read_bytes(to + "/" + name) == read_bytes(from + "/" + name));
    for (const char* name : {".hidden", "consolidated.00.pth", "original"})
        CHECK(!fs::exists(to + "/" + std::string(name)));
    const Json index = read_json_file(to + "/model.safetensors.index.json");
    const Checkpoint checkpoint = open_checkpoint(to);
    CHECK(index["weight_map"].size() == checkpoint.names().size());
    CHECK(index["metadata"]["total_size"].get<int64_t>() == checkpoint.bytes());
    CHECK(checkpoint.files().size() == 2);
}

TEST_CASE("quantised_directory_of_a_failure_is_not_there") {
    const TemporaryDirectory folder;
    const std::string to = folder.file("q");

    SUBCASE("a tensor is not finite") {
        const std::string from = copy_of_golden(folder, "a_published");
        std::string bytes = read_bytes(from + "/model.safetensors");
        const SafetensorsFile file = SafetensorsFile::open(from + "/model.safetensors");
        const TensorInfo* info = nullptr;
        for (const TensorInfo& tensor : file.tensors())
            if (tensor.name.ends_with("layers.4.mlp.up_proj.weight")) info = &tensor;
        REQUIRE(info != nullptr);
        const float bad = std::numeric_limits<float>::infinity();
        std::memcpy(&bytes[static_cast<size_t>(info->begin + 4 * (2 * info->shape[1] + 5))], &bad,
                    4);
        write_bytes(from + "/spoiled", bytes);
        fs::rename(from + "/spoiled", from + "/model.safetensors");
        const std::string error = error_of_writing(from, to);
        CHECK(holds_all(error, {"model.safetensors", "layers.4.mlp.up_proj.weight", "inf", "row 2",
                                "column 5"}));
        CHECK(folder.entries() == 1);
    }
    SUBCASE("it is ended half way") {
        int calls = 0;
        QuantiseObserver observer;
        observer.cancelled = [&] { return ++calls == 20; };
        CHECK_THROWS_AS(
            quantise_checkpoint(golden("a_published"), to, int4_text(128), {}, observer),
            Interrupted);
        CHECK(folder.entries() == 0);
    }
    SUBCASE("the disk is full") {
        rlimit previous{};
        ::getrlimit(RLIMIT_FSIZE, &previous);
        const rlimit small{100000, previous.rlim_max};
        std::signal(SIGXFSZ, SIG_IGN);
        ::setrlimit(RLIMIT_FSIZE, &small);
        const std::string error = error_of_writing(golden("a_published"), to);
        ::setrlimit(RLIMIT_FSIZE, &previous);
        std::signal(SIGXFSZ, SIG_DFL);
        CHECK(holds_all(error, {"model.safetensors", "cannot be written"}));
        CHECK(folder.entries() == 0);
    }
    SUBCASE("the directory around it does not exist") {
        CHECK(holds_all(error_of_writing(golden("a_published"), folder.file("x/q")),
                        {"x/q", "cannot be written"}));
    }
}

TEST_CASE("quantised_directory_of_a_large_layer_is_written_in_parts") {
    const TemporaryDirectory folder;
    const std::string from = copy_of_golden(folder, "a_published");
    const std::string module = "language_model.model.layers.99.large_proj";
    const std::string name = module + ".weight";
    constexpr int64_t rows = 40000, cols = 2048;  // 160 MB, of which 64 MB are 16384 rows
    Tensor large = Tensor::zeros({rows, cols}, DType::bf16);
    auto* numbers = large.data<uint16_t>();
    for (int64_t row = 0; row < rows; ++row)
        numbers[row * cols + row % cols] = static_cast<uint16_t>(0x3F80 + row % 64);
    replace_in_golden(from, name, large);

    constexpr int64_t part = int64_t{64} << 20;
    int64_t before = 0, longest = 0;
    QuantiseObserver observer;
    observer.progress = [&](int64_t done, int64_t) {
        longest = std::max(longest, done - before);
        before = done;
    };
    const std::string to = folder.file("q");
    for (const QuantisationPlan& plan : {int8_everywhere(), int4_text(128)}) {
        before = 0;
        quantise_checkpoint(from, to, plan, {}, observer);
        CHECK(longest == part);
        const Loaded coded(to);
        const Weight found = coded.weights.weight(module, rows, cols);
        const Weight expected = quantised(large, *plan.of(module, cols));
        CHECK(same_bytes(found.data, expected.data));
        CHECK(same_bytes(found.scale, expected.scale));
        fs::remove_all(to);
    }

    numbers[35000 * cols + 7] = 0x7F80;  // inf, in the third part
    replace_in_golden(from, name, large);
    CHECK(holds_all(error_of_writing(from, to), {name, "inf in row 35000, column 7"}));
    CHECK(folder.entries() == 1);
}

TEST_CASE("quantised_directory_replaces_nothing") {
    const TemporaryDirectory folder;
    fs::create_directory(folder.file("directory"));
    write_bytes(folder.file("file"), "kept");
    fs::create_symlink("nowhere", folder.file("link"));
    for (const char* name : {"directory", "directory/", "file", "link"}) {
        CHECK(holds_all(error_of_writing(golden("a_published"), folder.file(name)),
                        {"cannot be written", "expected nothing there"}));
    }
    CHECK(folder.entries() == 3);
    CHECK(read_bytes(folder.file("file")) == "kept");
}

TEST_CASE("quantised_directory_is_not_quantised_again") {
    const TemporaryDirectory folder;
    quantise_checkpoint(golden("a_published"), folder.file("q"), int4_text(128), {}, {});
    CHECK(holds_all(error_of_writing(folder.file("q"), folder.file("again")),
                    {"q/config.json", "quantization_config"}));
    CHECK(folder.entries() == 1);
}

TEST_CASE("quantised_directory_of_a_checkpoint_that_does_not_load_is_refused") {
    const TemporaryDirectory folder;
    const std::string from = copy_of_golden(folder, "a_published");
    const std::string name = "language_model.model.layers.1.self_attn.q_proj.weight";
    const Shape shape = SafetensorsFile::open(from + "/model.safetensors").get(name).shape();
    const int64_t rows = shape[0], cols = shape[1];
    for (const Tensor& wrong :
         {Tensor(), Tensor::zeros({rows, 0}, DType::f32),
          Tensor::zeros({rows * cols, 1}, DType::f32), Tensor::zeros({rows * cols}, DType::f32),
          Tensor::zeros({1, rows, cols}, DType::f32), Tensor::zeros({rows, cols}, DType::i32),
          Tensor::zeros(Shape{}, DType::f32)}) {
        replace_in_golden(from, name, wrong);
        CHECK(holds_all(error_of_writing(from, folder.file("q")), {from, name}));
        CHECK(folder.entries() == 1);
    }
}

TEST_CASE("quantised_directory_of_layers_that_are_no_matrices_is_refused") {
    const TemporaryDirectory folder;
    const std::string from = copy_of_golden(folder, "a_published");
    // The model has no such layer, so its loader does not look at it.
    const std::string name = "language_model.model.layers.99.mlp.up_proj.weight";
    for (const Tensor& wrong :
         {Tensor::zeros({4}, DType::f32), Tensor::zeros({2, 2, 2}, DType::f32),
          Tensor::zeros({2, 2}, DType::i32), Tensor::zeros(Shape{}, DType::f32)}) {
        replace_in_golden(from, name, wrong);
        CHECK(holds_all(error_of_writing(from, folder.file("q")),
                        {"model.safetensors", name, "a matrix of F32, BF16 or F16"}));
    }
    CHECK(folder.entries() == 1);
}

TEST_CASE("quantisation_at_load_of_another_format_names_the_layer") {
    const TemporaryDirectory folder;
    quantise_checkpoint(golden("a_published"), folder.file("q"), int4_text(128), {}, {});
    ModelOptions options;
    options.weights = WeightType::int8;
    CHECK(holds_all(error_of([&] { return Model::load(folder.file("q"), options); }),
                    {"layers.0.cross_attn.q_proj", "int8", "int4"}));
    options.weights = WeightType::int4;
    CHECK(Model::load(folder.file("q"), options).weight_type_name() == "int4");
}

TEST_CASE("quantisation_at_load_tells_how_far_it_is") {
    for (const bool vision : {false, true}) {
        ModelOptions options;
        options.weights = WeightType::int4;
        if (vision) options.vision_weights = WeightType::int8;
        int64_t calls = 0, last = 0, all = 0;
        options.quantising = [&](int64_t done, int64_t of) {
            CHECK(done == ++calls);
            last = done;
            all = of;
        };
        static_cast<void>(Model::load(golden("a_published"), options));
        CHECK(last == all);
        CHECK(all == 6 * 7 + 1 + (vision ? 5 * 6 : 0));
    }
}

TEST_CASE("quantize_command_refuses_what_it_cannot_do") {
    const TemporaryDirectory folder;
    const auto quantize = [&](const std::vector<std::string>& options) {
        std::vector<std::string> arguments = {"quantize", "-m", golden("a_published"), "--out",
                                              folder.file("q")};
        arguments.insert(arguments.end(), options.begin(), options.end());
        return run_program(MLLAMA_PROGRAM, arguments).exit_code;
    };
    CHECK(quantize({}) == 2);
    CHECK(quantize({"--dtype", "bf16"}) == 2);
    for (const char* size : {"0", "-1", "17", "129", "1e3", ""})
        CHECK(quantize({"--dtype", "int4", "--group-size", size}) == 2);
    CHECK(quantize({"--dtype", "int4", "--vision-dtype", "int8"}) == 2);
    CHECK(quantize({"--dtype", "int8", "--group-size", "32"}) == 2);
    CHECK(folder.entries() == 0);
    CHECK(quantize({"--dtype", "int4", "--group-size", "channel"}) == 0);
    CHECK(folder.entries() == 1);
    CHECK(quantize({"--dtype", "int4"}) == 1);
}

TEST_CASE("quantize_command_that_is_told_to_end_leaves_nothing") {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
        CAPTURE(signal);
        const TemporaryDirectory folder;
        const std::string pipe = folder.file("calibration.json");
        const std::vector<std::string> arguments = {
            "quantize", "-m",   golden("a_published"), "--out", folder.file("q"),
            "--dtype",  "int8", "--calibration",       pipe};
        const ProgramResult result = run_until_signal(MLLAMA_PROGRAM, arguments, ".", pipe, signal);
        CHECK(result.exit_code == 1);
        CHECK(result.err == "mllama: error: interrupted\n");
        CHECK(folder.entries() == 1);  // the pipe
    }
}

TEST_CASE("calibration_weighs_the_columns_by_what_goes_into_a_layer") {
    const std::vector<Request> requests =
        read_batch_file(golden("a_published") + "/case_text_only.jsonl");
    int64_t calls = 0;
    const ColumnImportance importance =
        column_importance(golden("a_published"), requests, [&](int64_t, int64_t) { ++calls; }, {});
    CHECK(calls == static_cast<int64_t>(requests.size()));
    // Layers 0, 2 and 5 look at pictures, of which there are none.
    CHECK(importance.contains("language_model.model.layers.1.mlp.down_proj"));
    CHECK(!importance.contains("language_model.model.layers.2.mlp.down_proj"));
    CHECK(!importance.contains("vision_model.transformer.layers.0.mlp.fc1"));

    // q, k and v see the same: the embeddings, normed.
    const std::string layer = "language_model.model.layers.1.";
    const std::vector<float>& seen = importance.at(layer + "self_attn.q_proj");
    CHECK(seen == importance.at(layer + "self_attn.v_proj"));
    const Mllama mllama = Mllama::load(golden("a_published"), {});
    const Prompt prompt = mllama.prepare(requests[0], {});
    const Loaded loaded(golden("a_published"));
    const TextConfig& config = loaded.config.text;
    const Tensor table = loaded.weights.tensor("language_model.model.embed_tokens.weight",
                                               {config.embedding_rows(), config.hidden_size});
    const Tensor norm =
        loaded.weights.tensor(layer + "input_layernorm.weight", {config.hidden_size});
    Tensor rows =
        Tensor::empty({static_cast<int64_t>(prompt.ids.size()), config.hidden_size}, DType::f32);
    ops::embedding(Tensor::from(prompt.ids), table, rows);
    ops::rms_norm(rows, norm, config.rms_norm_eps, rows);
    for (int64_t col = 0; col < config.hidden_size; ++col) {
        double sum = 0;
        for (int64_t row = 0; row < rows.rows(); ++row) {
            const double x = rows.data<float>()[row * config.hidden_size + col];
            sum += x * x;
        }
        CHECK(seen[static_cast<size_t>(col)] ==
              doctest::Approx(sum / static_cast<double>(rows.rows())).epsilon(1e-5));
    }
}

TEST_CASE("quantize_command_with_calibration_writes_other_weights") {
    const TemporaryDirectory folder;
    const auto quantize = [&](const std::string& name, std::vector<std::string> more) {
        std::vector<std::string> arguments = {"quantize", "-m",    "a_published",    "--dtype",
                                              "int4",     "--out", folder.file(name)};
        arguments.insert(arguments.end(), more.begin(), more.end());
        const ProgramResult result = run_program(MLLAMA_PROGRAM, arguments, models_folder());
        CHECK_MESSAGE(result.exit_code == 0, result.err);
        return read_bytes(folder.file(name) + "/model.safetensors");
    };
    const std::string requests = "a_published/case_image_text.jsonl";
    const std::string with = quantize("with", {"--calibration", requests});
    CHECK(with == quantize("again", {"--calibration", requests, "-t", "1"}));
    CHECK(with != quantize("without", {}));
    const auto without_requests = [&](const std::string& name) {
        return run_program(MLLAMA_PROGRAM,
                           {"quantize", "-m", "a_published", "--dtype", "int4", "--out",
                            folder.file(name), "--calibration", "no_such.jsonl"},
                           models_folder());
    };
    const ProgramResult missing = without_requests("none");
    CHECK(missing.exit_code == 1);
    CHECK(holds_all(missing.err, {"no_such.jsonl"}));
    // What stands in the way of the directory is found before the requests are looked at.
    const ProgramResult taken = without_requests("with");
    CHECK(taken.exit_code == 1);
    CHECK(holds_all(taken.err, {folder.file("with"), "expected nothing there"}));
    CHECK(!fs::exists(folder.file("none")));
}
