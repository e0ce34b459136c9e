// Goldens of transformers against the program as its users run it, on whatever device.
#include "tests/golden_checks.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <sstream>

#include "io/json.h"
#include "tests/program.h"

namespace mllama::test {
namespace {

constexpr double attention_share = 5e-5;  // probabilities
constexpr double loss_tolerance = 1e-4;

/// The part of a batch's tensor (B, T, width) that belongs to a sample of `rows` tokens: (1, rows,
/// width).
Tensor sample_rows(const Tensor& batch, size_t sample, int64_t rows) {
    const int64_t width = batch.cols();
    const auto place = static_cast<int64_t>(sample);
    return batch.rows(place, place + 1)
        .view({batch.dim(1), width})
        .rows(0, rows)
        .view({1, rows, width});
}

bool begins_with(const std::string& text, const std::string& beginning) {
    return text.compare(0, beginning.size(), beginning) == 0;
}

void check_inputs(const SafetensorsFile& found, const SafetensorsFile& expected) {
    for (const char* name : {"input_ids", "attention_mask", "aspect_ratio_ids", "aspect_ratio_mask",
                             "cross_attention_mask", "pixel_values"}) {
        CAPTURE(name);
        REQUIRE((found.find(name) != nullptr) == (expected.find(name) != nullptr));
        if (expected.find(name)) CHECK(compare_exactly(found.get(name), expected.get(name)) == "");
    }
}

void check_logits(const GoldenCase& golden, const SafetensorsFile& found,
                  const SafetensorsFile& expected) {
    const Tensor logits = found.get("logits");
    for (size_t sample = 0; sample < golden.samples(); ++sample) {
        CAPTURE(sample);
        const std::string name = golden.prefix(sample) + "logits";
        if (expected.find(name)) {
            const Tensor wanted = expected.get(name);
            CHECK(compare_to_largest(sample_rows(logits, sample, wanted.dim(1)), wanted,
                                     state_share) == "");
        } else {
            const Tensor tail =
                expected.get(name + "_tail");  // (1, rows, vocab_size), the last rows
            REQUIRE(golden.samples() == 1);
            const Tensor all = logits.view({logits.dim(1), logits.dim(2)});
            const Tensor last = all.rows(all.rows() - tail.dim(1), all.rows()).view(tail.shape());
            CHECK(compare_to_largest(last, tail, state_share) == "");
        }
    }
}

void check_layers(const SafetensorsFile& found, const SafetensorsFile& expected) {
    for (const TensorInfo& info : expected.tensors()) {
        CAPTURE(info.name);
        if (begins_with(info.name, "hidden_states.")) {
            CHECK(compare_to_largest(found.get(info.name), expected.get(info.name), state_share) ==
                  "");
        } else if (begins_with(info.name, "attentions.")) {
            CHECK(compare_to_largest(found.get(info.name), expected.get(info.name),
                                     attention_share) == "");
        }
    }
    for (const TensorInfo& info : found.tensors()) {  // no layer more than the reference ran
        const bool layer =
            begins_with(info.name, "hidden_states.") || begins_with(info.name, "attentions.");
        const bool any = expected.find(info.name.substr(0, info.name.find('.')) + ".0") != nullptr;
        if (layer && any) CHECK_MESSAGE(expected.find(info.name) != nullptr, info.name);
    }
}

void check_forward(const Engine& engine, const GoldenCase& golden) {
    const TemporaryDirectory folder;
    const SafetensorsFile expected = golden.expected();
    const SafetensorsFile found = engine.forward(
        golden, folder, {"--dtype", "f32", "--hidden-states", "--attentions", "--loss"});
    check_inputs(found, expected);
    check_logits(golden, found, expected);
    check_layers(found, expected);
    const float loss = found.get("loss").data<float>()[0];
    CHECK(std::abs(loss - expected.get("loss").data<float>()[0]) <= loss_tolerance);
    if (expected.find("logits_meta")) {
        const SafetensorsFile meta =
            engine.forward(golden, folder, {"--dtype", "f32", "--reference", "meta"});
        CHECK(compare_to_largest(meta.get("logits"), expected.get("logits_meta"), state_share) ==
              "");
    }
}

void check_generate(const Engine& engine, const GoldenCase& golden) {
    std::vector<std::string> arguments = {"generate",
                                          "-m",
                                          golden.directory(),
                                          "--batch",
                                          golden.requests(),
                                          "--date",
                                          golden.date,
                                          "--dtype",
                                          "f32",
                                          "--greedy",
                                          "--json",
                                          "-n",
                                          std::to_string(golden.max_new_tokens)};
    arguments.insert(arguments.end(), engine.options.begin(), engine.options.end());
    const ProgramResult result = run_program(engine.program, arguments, models_folder());
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    const SafetensorsFile expected = golden.expected();
    std::istringstream lines(result.out);
    std::string line;
    for (size_t sample = 0; sample < golden.samples(); ++sample) {
        CAPTURE(sample);
        REQUIRE(std::getline(lines, line));
        const Json answer = Json::parse(line);
        const Tensor wanted = expected.get(golden.prefix(sample) + "tokens");
        const std::vector<int64_t> tokens(wanted.data<int64_t>(),
                                          wanted.data<int64_t>() + wanted.numel());
        CHECK(answer.at("tokens").get<std::vector<int64_t>>() == tokens);
        CHECK(answer.at("text").get<std::string>() == golden.texts[sample]);
        CHECK(answer.at("finish_reason").get<std::string>() == golden.finish_reasons[sample]);
    }
    CHECK(!std::getline(lines, line));
}

}  // namespace

SafetensorsFile Engine::forward(const GoldenCase& golden, const TemporaryDirectory& folder,
                                const std::vector<std::string>& more) const {
    const std::string out = folder.file("out.safetensors");
    std::vector<std::string> arguments = {
        "forward", "-m", golden.directory(), "--batch", golden.requests(), "--date", golden.date,
        "--out",   out};
    arguments.insert(arguments.end(), options.begin(), options.end());
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramResult result = run_program(program, arguments, models_folder());
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    return SafetensorsFile::open(out);
}

void check_checkpoint(const Engine& engine, const std::string& checkpoint) {
    const std::vector<GoldenCase> cases = golden_cases(checkpoint);
    REQUIRE(!cases.empty());
    for (const GoldenCase& golden : cases) {
        CAPTURE(golden.name);
        check_forward(engine, golden);
        check_generate(engine, golden);
    }
}

}  // namespace mllama::test
