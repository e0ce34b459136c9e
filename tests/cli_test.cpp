// The command line as a contract: exit codes, one line of error that names the file and the thing,
// and the small commands.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <csignal>
#include <filesystem>
#include <sstream>

#include "io/json.h"
#include "io/safetensors.h"
#include "tensor/gpu.h"
#include "tests/goldens.h"
#include "tests/program.h"

using namespace mllama;
using namespace mllama::test;
namespace fs = std::filesystem;

namespace {

ProgramResult mllama_program(const std::vector<std::string>& arguments,
                             const std::string& input = "") {
    return run_program(MLLAMA_PROGRAM, arguments, models_folder(), input);
}

/// A copy of a golden checkpoint that a test may spoil.
class SpoiledCheckpoint {
  public:
    explicit SpoiledCheckpoint(const std::string& name = "a_published") {
        for (const auto& entry : fs::directory_iterator(models_folder() + "/" + name)) {
            const std::string file = entry.path().filename().string();
            if (file.compare(0, 5, "case_") != 0) fs::copy(entry.path(), folder_.file(file));
        }
    }
    [[nodiscard]] const std::string& path() const { return folder_.path(); }
    [[nodiscard]] std::string file(const std::string& name) const { return folder_.file(name); }
    void write(const std::string& name, const std::string& content) const {
        (void)folder_.write(name, content);
    }
    /// Sets one value of a JSON file; a null removes it.
    void set(const std::string& name, const std::string& pointer, const Json& value) const {
        Json json = read_json_file(file(name));
        json[Json::json_pointer(pointer)] = value;
        write(name, json.dump());
    }

  private:
    TemporaryDirectory folder_;
};

/// Exit code 1 and exactly one line, which begins as all errors do and holds all of `parts`.
void check_one_line_error(const ProgramResult& result, const std::vector<std::string>& parts) {
    CAPTURE(result.err);
    CHECK(result.exit_code == 1);
    CHECK(result.out.empty());
    CHECK(result.err.compare(0, 15, "mllama: error: ") == 0);
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    for (const std::string& part : parts) {
        CAPTURE(part);
        CHECK(result.err.find(part) != std::string::npos);
    }
}

ProgramResult generate(const std::string& directory, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"generate",
                                          "-m",
                                          directory,
                                          "-p",
                                          "<|image|>What is it?",
                                          "--image",
                                          "pictures/square.png",
                                          "--greedy",
                                          "-n",
                                          "4",
                                          "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return mllama_program(arguments);
}

}  // namespace

TEST_CASE("cli_unspoiled_checkpoint_answers") {
    const SpoiledCheckpoint checkpoint;
    const ProgramResult result = generate(checkpoint.path());
    CAPTURE(result.err);
    CHECK(result.exit_code == 0);
    const Json answer = Json::parse(result.out);
    CHECK(answer.at("tokens").size() == 4);
    for (const char* key : {"text", "tokens", "prompt_tokens", "finish_reason", "timings"})
        CHECK(answer.contains(key));
    for (const char* key : {"load_s", "preprocess_s", "vision_s", "prefill_s", "prefill_tokens",
                            "decode_s", "decode_tokens"}) {
        CHECK(answer.at("timings").contains(key));
    }
}

TEST_CASE("cli_wrong_command_lines_exit_with_2") {
    const std::vector<std::vector<std::string>> wrong = {
        {},
        {"nonsense"},
        {"generate"},
        {"generate", "-m", "a_published"},
        {"generate", "-m", "a_published", "-p", "x", "--no-such-option"},
        {"generate", "-m", "a_published", "-p", "x", "--messages", "y"},
        {"generate", "-m", "a_published", "--batch", "y", "--image", "pictures/square.png"},
        {"generate", "-m", "a_published", "-p", "x", "--dtype", "f64"},
        {"generate", "-m", "a_published", "-p", "x", "-n", "many"},
        {"generate", "-m", "a_published", "-p", "x", "-t", "0"},
        {"generate", "-m", "a_published", "-p", "x", "--device", "abacus"},
        {"tokenize", "-m", "a_published"},
        {"tokenize", "-m", "a_published", "--jsonl", "x", "--skip-special"},
        {"forward", "-m", "a_published", "-p", "x"},
        {"preprocess", "-m", "a_published"},
    };
    for (const auto& arguments : wrong) {
        const ProgramResult result = mllama_program(arguments);
        CAPTURE(arguments.size());
        CAPTURE(result.err);
        CHECK(result.exit_code == 2);
        CHECK(!result.err.empty());
        CHECK(result.out.empty());
    }
}

TEST_CASE("cli_unknown_command_is_named") {
    const ProgramResult result = mllama_program({"genrate\x1b[2J", "-m", "a_published"});
    CHECK(result.exit_code == 2);
    CHECK(result.err == "mllama: there is no command genrate\\x1B[2J; mllama --help lists them\n");
}

TEST_CASE("cli_help_exits_with_0_and_names_the_options") {
    CHECK(mllama_program({"--help"}).exit_code == 0);
    for (const char* command :
         {"generate", "chat", "forward", "preprocess", "tokenize", "inspect", "bench", "demo"}) {
        const ProgramResult result = mllama_program({command, "--help"});
        CAPTURE(command);
        CHECK(result.exit_code == 0);
        CHECK(result.out.find("--") != std::string::npos);
    }
    const std::string help = mllama_program({"generate", "--help"}).out;
    for (const char* option :
         {"--model", "--device", "--dtype", "--threads", "--date", "--prompt", "--messages",
          "--image", "--batch", "--max-new-tokens", "--greedy", "--temperature", "--top-p",
          "--top-k", "--min-p", "--repetition-penalty", "--seed", "--stop", "--json"}) {
        CAPTURE(option);
        CHECK(help.find(option) != std::string::npos);
    }
}

TEST_CASE("cli_missing_files_of_a_checkpoint_are_named") {
    for (const char* file :
         {"config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"}) {
        const SpoiledCheckpoint checkpoint;
        fs::remove(checkpoint.file(file));
        check_one_line_error(generate(checkpoint.path()), {file});
    }
    check_one_line_error(generate("/no/such/directory"), {"/no/such/directory"});
}

TEST_CASE("cli_broken_json_is_named_with_its_place") {
    for (const char* file :
         {"config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json"}) {
        const SpoiledCheckpoint checkpoint;
        checkpoint.write(file, "{\n  \"a\": ,\n}");
        check_one_line_error(generate(checkpoint.path()), {file, "line 2"});
    }
}

TEST_CASE("cli_pipe_in_place_of_a_checkpoint_file_is_refused_at_once") {
    for (const char* file : {"config.json", "tokenizer.json", "preprocessor_config.json",
                             "generation_config.json", "tokenizer_config.json"}) {
        const SpoiledCheckpoint checkpoint;
        fs::remove(checkpoint.file(file));
        REQUIRE(mkfifo(checkpoint.file(file).c_str(), 0600) == 0);
        check_one_line_error(generate(checkpoint.path()), {file, "expected a regular file"});
    }
}

TEST_CASE("cli_requests_may_come_through_a_pipe") {
    const auto text_of = [](const std::string& command) {
        const ProgramResult result =
            run_program("/bin/sh",
                        {"-c", command + " | \"$0\" generate -m a_published --greedy -n 4 \"$@\"",
                         MLLAMA_PROGRAM, "--messages", "/dev/stdin"},
                        models_folder());
        CAPTURE(result.err);
        CHECK(result.exit_code == 0);
        return result.out;
    };
    CHECK(!text_of("echo '[{\"role\": \"user\", \"content\": \"Hi\"}]'").empty());

    const std::string request = "{\"prompt\": \"What is it?\"}\n";
    const auto batch = [&](const std::string& path, const std::string& input) {
        return mllama_program(
            {"generate", "-m", "a_published", "--greedy", "-n", "4", "--batch", path}, input);
    };
    const TemporaryDirectory folder;
    const ProgramResult piped = batch("/dev/stdin", request);
    CHECK(piped.exit_code == 0);
    CHECK(piped.out == batch(folder.write("requests.jsonl", request), "").out);

    const ProgramResult tokens = mllama_program(
        {"tokenize", "-m", "a_published", "--jsonl", "/dev/stdin"}, "\"What is it?\"\n");
    CHECK(tokens.exit_code == 0);
    CHECK(tokens.out.size() > 4);
}

TEST_CASE("cli_truncated_weights_are_named") {
    const SpoiledCheckpoint checkpoint;
    const auto size = fs::file_size(checkpoint.file("model.safetensors"));
    for (const auto left :
         {size - 1, size / 2, uintmax_t{100}, uintmax_t{8}, uintmax_t{3}, uintmax_t{0}}) {
        fs::resize_file(checkpoint.file("model.safetensors"), left);
        check_one_line_error(generate(checkpoint.path()), {"model.safetensors"});
    }
}

TEST_CASE("cli_tensors_of_wrong_shape_or_type_are_named") {
    const SpoiledCheckpoint wrong_shape;
    wrong_shape.set("config.json", "/text_config/intermediate_size", 96);
    check_one_line_error(generate(wrong_shape.path()),
                         {"model.safetensors", "language_model.model.layers.0.mlp.gate_proj.weight",
                          "expected", "found"});

    const SpoiledCheckpoint wrong_type;
    const SafetensorsFile file = SafetensorsFile::open(wrong_type.file("model.safetensors"));
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const TensorInfo& info : file.tensors()) {
        const Tensor tensor = file.get(info);
        if (info.name == "language_model.model.norm.weight") {
            tensors.emplace_back(info.name, Tensor::zeros(tensor.shape(), DType::i32));
        } else if (info.name != "language_model.lm_head.weight") {
            tensors.emplace_back(info.name, tensor);
        }
    }
    write_safetensors(wrong_type.file("other.safetensors"), tensors);
    fs::rename(wrong_type.file("other.safetensors"), wrong_type.file("model.safetensors"));
    check_one_line_error(generate(wrong_type.path()), {"language_model.model.norm.weight", "I32"});
}

TEST_CASE("cli_unknown_values_of_the_config_are_named") {
    const SpoiledCheckpoint rope;
    rope.set("config.json", "/text_config/rope_scaling/rope_type", "yarn");
    check_one_line_error(generate(rope.path()), {"config.json", "rope_type", "yarn"});
    const SpoiledCheckpoint activation;
    activation.set("config.json", "/vision_config/hidden_act", "swooosh");
    check_one_line_error(generate(activation.path()), {"config.json", "hidden_act", "swooosh"});
    const SpoiledCheckpoint filter;
    filter.set("preprocessor_config.json", "/resample", 7);
    check_one_line_error(generate(filter.path()), {"preprocessor_config.json", "resample"});
}

TEST_CASE("cli_begin_of_text_and_image_tokens_that_are_none_are_named") {
    const SpoiledCheckpoint checkpoint;
    const auto error_with_bos = [&](const Json& token) {
        checkpoint.set("tokenizer_config.json", "/bos_token", token);
        return generate(checkpoint.path());
    };
    check_one_line_error(error_with_bos(5), {"tokenizer_config.json", "bos_token", "number"});
    check_one_line_error(error_with_bos(""), {"tokenizer_config.json", "bos_token", "\"\""});
    check_one_line_error(error_with_bos({{"content", 3}}), {"tokenizer_config.json", "bos_token"});
    check_one_line_error(error_with_bos("<|nothing|>"),
                         {"tokenizer_config.json", "bos_token", "<|nothing|>", "tokenizer.json"});
    CHECK(error_with_bos(nullptr).exit_code == 0);  // then it is config.json's
    checkpoint.set("config.json", "/image_token_index", 3);
    check_one_line_error(generate(checkpoint.path()),
                         {"config.json", "image_token_index", "tokenizer.json", "found 3"});
}

TEST_CASE("cli_stop_strings_and_max_length_of_the_checkpoint_end_answers") {
    const SpoiledCheckpoint checkpoint;
    const auto answer = [&](const std::vector<std::string>& more) {
        std::vector<std::string> arguments = {
            "generate", "-m", checkpoint.path(), "-p", "The second image is", "--greedy", "--json"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        const ProgramResult result = mllama_program(arguments);
        CAPTURE(result.err);
        REQUIRE(result.exit_code == 0);
        return Json::parse(result.out);
    };
    const Json whole = answer({"-n", "12"});
    const auto text = whole.at("text").get<std::string>();
    const auto prompt_tokens = whole.at("prompt_tokens").get<int64_t>();
    const auto letter = std::find_if(text.begin(), text.end(),
                                     [](unsigned char c) { return c < 0x80 && std::isalnum(c); });
    REQUIRE(letter != text.end());
    const std::string stop(1, *letter);
    const std::string before = text.substr(0, text.find(stop));
    checkpoint.set("generation_config.json", "/stop_strings", stop);
    CHECK(answer({"-n", "12"}).at("text") == before);
    CHECK(answer({"-n", "12"}).at("finish_reason") == "stop");
    CHECK(answer({"-n", "12", "--stop", "no such text"}).at("text") == text);

    checkpoint.set("generation_config.json", "/stop_strings", nullptr);
    checkpoint.set("generation_config.json", "/max_length", prompt_tokens + 5);
    CHECK(answer({}).at("tokens").size() == 5);
    CHECK(answer({}).at("finish_reason") == "length");
    CHECK(answer({"-n", "7"}).at("tokens").size() == 7);
    checkpoint.set("generation_config.json", "/max_length", prompt_tokens);
    check_one_line_error(
        mllama_program({"generate", "-m", checkpoint.path(), "-p", "The second image is"}),
        {"max_length", "generation_config.json"});
}

TEST_CASE("cli_pictures_that_are_none_and_wrong_numbers_of_them_are_errors") {
    const TemporaryDirectory folder;
    const std::string text = folder.write("text.png", "this is no picture");
    const auto ask = [](const std::string& prompt, const std::vector<std::string>& images) {
        std::vector<std::string> arguments = {"generate", "-m", "a_published", "-p", prompt,
                                              "-n",       "2"};
        for (const std::string& image : images)
            arguments.insert(arguments.end(), {"--image", image});
        return mllama_program(arguments);
    };
    check_one_line_error(ask("<|image|>x", {text}), {"text.png"});
    check_one_line_error(ask("<|image|>x", {"no_such.png"}), {"no_such.png"});
    check_one_line_error(ask("<|image|>x", {folder.path()}), {folder.path()});
    check_one_line_error(ask("<|image|>x", {}), {"1 places", "0 images"});
    check_one_line_error(ask("x", {"pictures/square.png"}), {"0 places", "1 images"});
    check_one_line_error(ask("<|image|><|image|>x", {"pictures/square.png"}),
                         {"2 places", "1 images"});
}

TEST_CASE("cli_requests_that_are_none_name_their_line") {
    const TemporaryDirectory folder;
    const auto batch = [&](const std::string& content) {
        return mllama_program({"generate", "-m", "a_published", "-n", "2", "--json", "--batch",
                               folder.write("requests.jsonl", content)});
    };
    check_one_line_error(batch("{\"prompt\": \"a\"}\n{\"prompt\": \n"), {"requests.jsonl line 2"});
    check_one_line_error(batch("{\"prompt\": \"a\"}\n[]\n"), {"requests.jsonl line 2"});
    check_one_line_error(batch("{\"prompt\": 3}\n"), {"requests.jsonl line 1", "prompt"});
    check_one_line_error(batch("{}\n"), {"requests.jsonl line 1"});
    check_one_line_error(batch("{\"prompt\": \"a\", \"images\": [3]}\n"),
                         {"requests.jsonl line 1", "images"});
    check_one_line_error(batch("{\"prompt\": \"a\"}\n{\"prompt\": \"<|image|>\"}\n"),
                         {"requests.jsonl line 2", "1 places"});
    check_one_line_error(batch("{\"prompt\": \"a\", \"image\": []}\n"),
                         {"requests.jsonl line 1", "image"});
    check_one_line_error(
        batch("{\"messages\": [{\"role\": \"user\", \"content\": {\"type\": \"image\"}}]}\n"),
        {"content"});
    check_one_line_error(batch("\n\n"), {"requests.jsonl"});
    check_one_line_error(batch("{\"messages\": []}\n"), {"requests.jsonl line 1"});
    check_one_line_error(batch("{\"messages\": [{\"content\": \"x\"}]}\n"),
                         {"requests.jsonl line 1", "role"});
    check_one_line_error(
        batch("{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}\n"),
        {"path"});
    check_one_line_error(batch("{\"messages\": [{\"role\": \"user\"}]}\n"),
                         {"requests.jsonl line 1", "message 1", "content"});
    check_one_line_error(batch("{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": "
                               "\"image_url\", \"image_url\": {\"url\": \"a.png\"}}]}]}\n"),
                         {"requests.jsonl line 1", "message 1", "image_url"});
}

TEST_CASE("cli_answer_in_a_terminal_is_whole_beside_its_progress") {
    const std::string demo = std::string(MLLAMA_TEST_DATA) + "/../apps/demo/";
    const std::vector<std::string> arguments = {"generate",
                                                "-m",
                                                demo + "model",
                                                "--image",
                                                demo + "pictures/scene.png",
                                                "-p",
                                                "<|image|>What does the image show?",
                                                "--greedy",
                                                "-n",
                                                "8"};
    const std::string answer = mllama_program(arguments).out;
    REQUIRE(answer.find_first_not_of(" \n") != std::string::npos);
    const std::string shown = terminal_of(MLLAMA_PROGRAM, arguments, models_folder());
    CHECK(shown.find("encoding image 1, layer") == std::string::npos);  // overwritten
    CHECK(shown.find(answer) != std::string::npos);
}

TEST_CASE("cli_demo_draws_its_pictures_in_a_terminal_alone") {
    const std::string folder = std::string(MLLAMA_TEST_DATA) + "/../apps/demo";
    const ProgramResult piped = mllama_program({"demo", "--folder", folder});
    CHECK(piped.exit_code == 0);
    CHECK(piped.out.find(" right. Loaded in") != std::string::npos);
    CHECK(piped.out.find("second.png") != std::string::npos);
    CHECK(piped.out.find('\x1b') == std::string::npos);
    const std::string shown = terminal_of(MLLAMA_PROGRAM, {"demo", "--folder", folder}, ".");
    CHECK(shown.find("second.png") != std::string::npos);
    CHECK(shown.find("\x1b[38;2;") != std::string::npos);
    const std::string plain =
        terminal_of(MLLAMA_PROGRAM, {"demo", "--folder", folder, "--no-pictures"}, ".");
    CHECK(plain.find("second.png") != std::string::npos);
    CHECK(plain.find('\x1b') == std::string::npos);
}

TEST_CASE("cli_without_a_gpu_the_cpu_computes_and_device_cuda_says_what_is_missing") {
    const std::string missing = gpu_unavailable();
    if (missing.empty()) {
        MESSAGE("case skipped: there is a GPU");
        return;
    }
    check_one_line_error(generate("a_published", {"--device", "cuda"}), {"cuda", missing});
    CHECK(generate("a_published", {"--device", "auto"}).exit_code == 0);
    const ProgramResult inspected = mllama_program({"inspect", "-m", "a_published"});
    CHECK(inspected.exit_code == 0);
    CHECK(inspected.out.find(missing) != std::string::npos);
}

TEST_CASE("cli_sampling_options_out_of_range_are_wrong_command_lines") {
    for (const auto& [option, value] :
         std::vector<std::pair<std::string, std::string>>{{"--temperature", "-1"},
                                                          {"--temperature", "nan"},
                                                          {"--temperature", "1e400"},
                                                          {"--top-p", "half"},
                                                          {"--top-p", "0"},
                                                          {"--top-p", "2"},
                                                          {"--min-p", "3"},
                                                          {"--repetition-penalty", "0"},
                                                          {"--seed", "-1"},
                                                          {"--seed", "18446744073709551616"},
                                                          {"--top-k", "1.5"},
                                                          {"--top-k", "-3"}}) {
        CAPTURE(option);
        const ProgramResult result =
            mllama_program({"generate", "-m", "a_published", "-p", "x", option, value});
        CHECK(result.exit_code == 2);
        CHECK(result.err.find(option) != std::string::npos);
        CHECK(result.err.find(value) != std::string::npos);
        CHECK(result.err.size() < 200);
    }
}

TEST_CASE("cli_output_that_cannot_be_written_is_an_error_and_leaves_nothing") {
    const TemporaryDirectory folder;
    check_one_line_error(mllama_program({"forward", "-m", "a_published", "-p", "x", "--out",
                                         folder.file("no/such/out.safetensors")}),
                         {"out.safetensors"});
    CHECK(fs::is_empty(folder.path()));
}

TEST_CASE("cli_forward_keeps_the_last_logits") {
    const TemporaryDirectory folder;
    const auto logits = [&](const std::string& keep) {
        const std::string out = folder.file("out" + keep + ".safetensors");
        const ProgramResult result =
            mllama_program({"forward", "-m", "a_published", "-p", "What is in this image?",
                            "--logits-to-keep", keep, "--out", out});
        REQUIRE(result.exit_code == 0);
        return SafetensorsFile::open(out).get("logits");
    };
    const Tensor all = logits("0");
    const Tensor two = logits("2");
    REQUIRE(two.dim(1) == 2);
    const Tensor rows = all.view({all.dim(1), all.dim(2)});
    CHECK(compare_exactly(two, rows.rows(rows.rows() - 2, rows.rows()).view(two.shape())) == "");
}

TEST_CASE("cli_tokenize_encodes_and_decodes_line_by_line") {
    const TemporaryDirectory folder;
    const std::string texts = folder.write(
        "texts.jsonl", "\"What is it?\"\n\"<|image|>What\"\n\"\"\n\"caf\\u00e9 <|eot_id|>\"\n");
    const ProgramResult encoded =
        mllama_program({"tokenize", "-m", "a_published", "--jsonl", texts});
    REQUIRE(encoded.exit_code == 0);
    std::istringstream lines(encoded.out);
    std::string line;
    std::vector<std::vector<int64_t>> ids;
    while (std::getline(lines, line)) ids.push_back(Json::parse(line).get<std::vector<int64_t>>());
    REQUIRE(ids.size() == 4);
    const int64_t bos = ids[2].at(0);
    CHECK(ids[2].size() == 1);
    CHECK(ids[0][0] == bos);
    CHECK(ids[1][1] == bos);  // behind the leading image
    const std::string list = folder.write("ids.jsonl", encoded.out);
    const ProgramResult decoded = mllama_program(
        {"tokenize", "-m", "a_published", "--jsonl", list, "--decode", "--skip-special"});
    CHECK(decoded.exit_code == 0);
    CHECK(decoded.out == "\"What is it?\"\n\"What\"\n\"\"\n\"caf\xc3\xa9 \"\n");
    const ProgramResult as_text = mllama_program(
        {"tokenize", "-m", "a_published", "--jsonl", texts, "--no-special", "--no-bos"});
    CHECK(as_text.exit_code == 0);
    CHECK(as_text.out.size() > encoded.out.size());
    check_one_line_error(mllama_program({"tokenize", "-m", "a_published", "--jsonl",
                                         folder.write("bad.jsonl", "[1]\n")}),
                         {"bad.jsonl line 1"});
    check_one_line_error(mllama_program({"tokenize", "-m", "a_published", "--decode", "--jsonl",
                                         folder.write("bad2.jsonl", "[99999]\n")}),
                         {"bad2.jsonl line 1", "99999"});
    check_one_line_error(mllama_program({"tokenize", "-m", "a_published", "--decode", "--jsonl",
                                         folder.write("bad3.jsonl", "\n[-1]\n")}),
                         {"bad3.jsonl line 2", "-1"});
    check_one_line_error(
        mllama_program({"tokenize", "-m", "a_published", "--jsonl", folder.path()}),
        {folder.path()});
}

TEST_CASE("cli_tokenize_begin_of_text_stands_once_and_behind_leading_images") {
    const auto ids_of = [](const std::string& text, const std::vector<std::string>& more) {
        std::vector<std::string> arguments = {"tokenize", "-m", "a_published", "--jsonl",
                                              "/dev/stdin"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return Json::parse(mllama_program(arguments, Json(text).dump() + "\n").out)
            .get<std::vector<int64_t>>();
    };
    const int64_t bos = ids_of("", {}).at(0);
    const int64_t image = ids_of("<|image|>", {"--no-bos"}).at(0);
    const std::vector<int64_t> word = ids_of("What", {"--no-bos"});
    const auto with = [&](std::vector<int64_t> front) {
        front.insert(front.end(), word.begin(), word.end());
        return front;
    };
    CHECK(ids_of("What", {}) == with({bos}));
    CHECK(ids_of("<|begin_of_text|>What", {}) == with({bos}));
    CHECK(ids_of("<|image|><|image|>What", {}) == with({image, image, bos}));
    CHECK(ids_of("<|image|><|begin_of_text|>What", {}) == with({image, bos}));
    CHECK(ids_of("<|begin_of_text|><|image|>What", {}) == with({bos, image}));
    CHECK(ids_of("<|begin_of_text|>What", {"--no-bos"}) == with({bos}));
    // Special tokens as text: none of them is found, begin-of-text stands in front.
    const std::vector<int64_t> text = ids_of("<|image|>What", {"--no-special"});
    CHECK(text.at(0) == bos);
    CHECK(std::count(text.begin(), text.end(), image) == 0);
    const std::vector<int64_t> bos_text = ids_of("<|begin_of_text|>", {"--no-special"});
    CHECK(bos_text.size() > 2);
    CHECK(std::count(bos_text.begin(), bos_text.end(), bos) == 1);
}

TEST_CASE("cli_preprocess_writes_what_forward_uses") {
    const TemporaryDirectory folder;
    const std::string out = folder.file("pixels.safetensors");
    const ProgramResult result =
        mllama_program({"preprocess", "-m", "a_published", "--image", "pictures/wide.png",
                        "pictures/dot.png", "--out", out});
    CAPTURE(result.err);
    REQUIRE(result.exit_code == 0);
    const SafetensorsFile file = SafetensorsFile::open(out);
    CHECK(file.get("pixel_values").dim(1) == 2);
    CHECK(file.get("aspect_ratio_ids").numel() == 2);
    CHECK(file.get("aspect_ratio_mask").dim(2) == 4);
}

TEST_CASE("cli_inspect_lists_every_tensor") {
    const ProgramResult text = mllama_program({"inspect", "-m", "c_three_tiles", "--tensors"});
    CHECK(text.exit_code == 0);
    const ProgramResult json = mllama_program({"inspect", "-m", "c_three_tiles", "--json"});
    REQUIRE(json.exit_code == 0);
    const Json report = Json::parse(json.out);
    CHECK(report.at("tensor_count").get<size_t>() == report.at("tensors").size());
    CHECK(report.at("memory").at("anonymous_bytes").get<int64_t>() > 0);
    for (const Json& tensor : report.at("tensors"))
        CHECK(text.out.find(tensor.at("name").get<std::string>()) != std::string::npos);
}

TEST_CASE("cli_inspect_plans_for_weights_that_are_quantised_while_they_are_loaded") {
    const auto memory = [](std::vector<std::string> options) {
        options.insert(options.begin(), {"inspect", "-m", "c_three_tiles", "--json"});
        const ProgramResult result = mllama_program(options);
        REQUIRE(result.exit_code == 0);
        return Json::parse(result.out).at("memory");
    };
    const auto of = [](const Json& plan, const char* key) { return plan.at(key).get<int64_t>(); };
    const Json stored = memory({});
    const Json int8 = memory({"--dtype", "int8"});
    const Json int4 = memory({"--dtype", "int4", "--vision-dtype", "int8"});
    CHECK(of(stored, "weights_quantised_bytes") == 0);
    CHECK(of(int8, "weights_quantised_bytes") > 0);
    CHECK(of(int8, "weights_mapped_bytes") < of(stored, "weights_mapped_bytes"));
    CHECK(of(int4, "weights_mapped_bytes") < of(int8, "weights_mapped_bytes"));
    CHECK(mllama_program({"inspect", "-m", "c_three_tiles", "--dtype", "int4"})
              .out.find("quantised ") != std::string::npos);
    CHECK(mllama_program({"inspect", "-m", "c_three_tiles", "--dtype", "f64"}).exit_code == 2);
    // As loading would: what is quantised already can only stay so.
    for (const char* folder : {"../quantised/int4_symmetric", "../quantised/nf4"}) {
        const ProgramResult other = mllama_program({"inspect", "-m", folder, "--dtype", "int8"});
        CHECK(other.exit_code == 1);
        CHECK(other.err.find("expected weights that are plain or of int8") != std::string::npos);
    }
    CHECK(mllama_program({"inspect", "-m", "../quantised/int4_symmetric", "--dtype", "int4"})
              .exit_code == 0);
}

TEST_CASE("cli_inspect_shows_the_format_and_bytes_of_quantised_layers") {
    const ProgramResult text = mllama_program({"inspect", "-m", "../quantised/int4_symmetric"});
    CHECK(text.exit_code == 0);
    CHECK(text.out.find("2 x language_model.model.layers.*.mlp.up_proj ") != std::string::npos);
    CHECK(text.out.find("int4 (groups of 16, symmetric) 48 x 32") != std::string::npos);
    CHECK(text.out.find("weight_packed") == std::string::npos);
    const ProgramResult json =
        mllama_program({"inspect", "-m", "../quantised/int4_symmetric", "--json"});
    REQUIRE(json.exit_code == 0);
    const Json report = Json::parse(json.out);
    CHECK(report.at("quantised_layers").size() == 14);
    CHECK(report.at("tensor_count") == report.at("tensors").size());
    int64_t bytes = 0;
    for (const auto& [type, of_type] : report.at("bytes_by_dtype").items())
        bytes += of_type.get<int64_t>();
    CHECK(report.at("bytes") == bytes);
    int64_t of_layers = 0;
    for (const Json& layer : report.at("quantised_layers")) {
        CHECK(layer.at("type") == "int4");
        CHECK(layer.at("format") == "int4 (groups of 16, symmetric)");
        of_layers += layer.at("bytes").get<int64_t>();
    }
    CHECK(report.at("bytes_by_dtype").at("int4") == of_layers);
    // The parameters are those of the model, however they are stored.
    const Json other =
        Json::parse(mllama_program({"inspect", "-m", "../quantised/nf4_double", "--json"}).out);
    CHECK(report.at("parameters") == other.at("parameters"));
}

TEST_CASE("cli_bench_prints_its_keys") {
    const ProgramResult result =
        mllama_program({"bench", "-m", "d_bf16", "--prompt-tokens", "16", "--new-tokens", "4",
                        "--images", "1", "--repeats", "1", "--json"});
    CAPTURE(result.err);
    REQUIRE(result.exit_code == 0);
    const Json report = Json::parse(result.out);
    for (const char* key :
         {"isa", "threads", "dtype", "load_s", "anonymous_mb", "vision", "prefill", "decode"})
        CHECK(report.contains(key));
    CHECK(report.at("vision").size() == 2);
    CHECK(report.at("prefill").at(0).at("tokens") == 16);
    CHECK(report.at("decode").at(0).at("tokens_per_s").get<double>() > 0);
}

TEST_CASE("cli_chat_answers_several_turns_with_pictures") {
    const ProgramResult result = mllama_program(
        {"chat", "-m", "a_published", "--greedy", "-n", "6", "--date", "26 Jul 2024"},
        "Hello\n/image pictures/square.png\nWhat is in this image?\nAnd on the left?\n/exit\n");
    CAPTURE(result.err);
    CHECK(result.exit_code == 0);
    CHECK(std::count(result.out.begin(), result.out.end(), '\n') >= 3);
    CHECK(result.err.find("pictures/square.png") != std::string::npos);
}

TEST_CASE("cli_chat_wrong_commands_are_errors") {
    check_one_line_error(mllama_program({"chat", "-m", "a_published"}, "/nonsense\n"),
                         {"/nonsense"});
    check_one_line_error(mllama_program({"chat", "-m", "a_published"}, "/image no_such.png\n"),
                         {"no_such.png"});
}

TEST_CASE("cli_same_seed_same_answer") {
    const auto ask = [](const std::string& seed) {
        return mllama_program({"generate", "-m", "a_published", "-p", "The second image is", "-n",
                               "16", "--temperature", "1.5", "--seed", seed})
            .out;
    };
    CHECK(ask("5") == ask("5"));
    CHECK(ask("5") != ask("6"));
}

TEST_CASE("cli_isa_override_is_checked") {
    const ProgramResult result =
        run_program(MLLAMA_PROGRAM, {"generate", "-m", "a_published", "-p", "x", "-n", "1"},
                    models_folder(), "", {"MLLAMA_ISA=quantum"});
    check_one_line_error(result, {"MLLAMA_ISA", "quantum"});
    const ProgramResult portable =
        run_program(MLLAMA_PROGRAM, {"generate", "-m", "a_published", "-p", "x", "-n", "1"},
                    models_folder(), "", {"MLLAMA_ISA=portable"});
    CHECK(portable.exit_code == 0);
}

TEST_CASE("cli_output_that_nobody_reads_is_an_error_and_no_signal") {
    const std::string command =
        std::string(MLLAMA_PROGRAM) + " inspect -m a_published --json > /dev/full";
    const ProgramResult result = run_program("/bin/sh", {"-c", command}, models_folder());
    check_one_line_error(result, {"standard output"});
}

TEST_CASE("cli_errors_show_no_control_characters") {
    const ProgramResult result = mllama_program({"inspect", "-m", "no\nsuch\x1b[31m\xff"});
    check_one_line_error(result, {"no\\x0Asuch\\x1B[31m\\xFF"});
    CHECK(std::all_of(result.err.begin(), result.err.end() - 1,
                      [](char c) { return c >= 0x20 && c < 0x7F; }));
}

TEST_CASE("cli_interrupt_ends_with_one_line_and_leaves_no_file") {
    for (const char* const command : {"generate", "forward"}) {
        CAPTURE(command);
        const TemporaryDirectory folder;
        const std::string pipe = folder.file("messages.json");
        std::vector<std::string> arguments = {command, "-m", "a_published", "--messages", pipe};
        if (arguments[0] == "forward")
            arguments.insert(arguments.end(), {"--out", folder.file("out.safetensors")});
        const ProgramResult result =
            run_until_signal(MLLAMA_PROGRAM, arguments, models_folder(), pipe, SIGINT);
        check_one_line_error(result, {"mllama: error: interrupted\n"});
        CHECK(folder.entries() == 1);  // the pipe
    }
}
