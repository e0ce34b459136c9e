// A model on a GPU (the emulated one where there is none) beside the same model on the CPU.
#include <doctest/doctest.h>

#include <cmath>

#include "kernels/cuda/counts.h"
#include "mllama/mllama.h"
#include "tensor/gpu.h"
#include "tests/cuda/device.h"
#include "tests/cuda/pictures.h"
#include "tests/goldens.h"
#include "tests/sampled_answers.h"

using namespace mllama;
using namespace mllama::test;

namespace {

std::string checkpoint() {
    return models_folder() + "/a_published";
}

ModelOptions options_of(WeightType weights, Device device) {
    ModelOptions options;
    options.weights = weights;
    options.device = device;
    return options;
}

ProcessedImage noise(const ModelConfig& config, int64_t tiles) {
    ProcessedImage image = picture_of_tiles(config.vision, tiles);
    image.pixel_values = Numbers(5).floats(static_cast<int64_t>(image.pixel_values.size()));
    return image;
}

std::vector<float> values_of(const Tensor& x) {
    const Tensor here = x.to(Device::cpu);
    return {here.data<float>(), here.data<float>() + here.numel()};
}

/// The logits behind a picture and a prompt.
std::vector<float> logits_of_prompt(const Model& model, Sequence& sequence) {
    model.add_image(sequence, model.encode_image(noise(model.config(), 1)));
    const std::vector<int64_t> ids = {model.config().image_token_id, 3, 17, 4, 9, 21, 2, 8, 30};
    return values_of(model.prefill(sequence, ids));
}

/// The same, then those behind each of a few tokens.
std::vector<float> logits_of(const Model& model) {
    Sequence sequence = model.new_sequence();
    std::vector<float> all = logits_of_prompt(model, sequence);
    for (const int64_t id : {5, 6, 7, 8, 9}) {
        const SequenceInput input{&sequence, {&id, 1}, 1};
        const std::vector<float> logits = values_of(model.forward({&input, 1}));
        all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
}

/// A text with room for more whose prompt is read: these tokens, or a picture and a few.
Sequence sequence_with(const Model& model, const std::vector<int64_t>& ids, bool with_picture) {
    Sequence sequence = model.new_sequence();
    sequence.reserve(static_cast<int64_t>(ids.size()) + 100);
    if (with_picture) {
        (void)logits_of_prompt(model, sequence);
    } else {
        (void)model.prefill(sequence, ids);
    }
    return sequence;
}

/// Feeds a token to each of these texts, over and over.
void decode(const Model& model, std::span<Sequence> sequences, int steps) {
    const int64_t id = 11;
    std::vector<SequenceInput> inputs;
    for (Sequence& sequence : sequences) inputs.push_back({&sequence, {&id, 1}, 1});
    for (int step = 0; step < steps; ++step) (void)model.most_probable(inputs);
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double largest = 0, difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        largest = std::max(largest, std::abs(double{b[i]}));
        difference = std::max(difference, std::abs(double{a[i]} - double{b[i]}));
        if (std::isnan(a[i]) || std::isnan(b[i])) return INFINITY;
    }
    return a.size() == b.size() ? difference / largest : INFINITY;
}

}  // namespace

TEST_CASE("cuda_model_gives_the_logits_of_the_cpu_in_every_type") {
    if (!has_device()) return;
    const struct {
        WeightType weights;
        std::optional<DType> kv_dtype;
        double share;
    } cases[] = {{WeightType::f32, std::nullopt, 2e-5},
                 {WeightType::bf16, std::nullopt, 2e-2},
                 {WeightType::bf16, DType::i8, 2e-2},
                 {WeightType::int8, std::nullopt, 4e-2},
                 {WeightType::int4, std::nullopt, 4e-2}};
    for (const auto& c : cases) {
        ModelOptions options = options_of(c.weights, Device::cpu);
        options.kv_dtype = c.kv_dtype;
        options.group_size = 32;
        const std::vector<float> expected = logits_of(Model::load(checkpoint(), options));
        options.device = Device::cuda;
        const std::vector<float> found = logits_of(Model::load(checkpoint(), options));
        CAPTURE(static_cast<int>(c.weights));
        CHECK(largest_difference(found, expected) <= c.share);
    }
}

TEST_CASE("cuda_model_has_the_bits_that_float32_between_its_layers_gives") {
    if (!has_device()) return;
    for (const WeightType weights : {WeightType::bf16, WeightType::int8, WeightType::int4}) {
        ModelOptions options = options_of(weights, Device::cuda);
        options.group_size = 32;
        const Model model = Model::load(checkpoint(), options);
        // A layer that looks at what goes into it is given float32.
        options.statistics = [](const std::string&) { return std::make_shared<InputStatistic>(); };
        const Model in_f32 = Model::load(checkpoint(), options);
        CAPTURE(static_cast<int>(weights));
        Sequence sequence = model.new_sequence(), sequence_in_f32 = in_f32.new_sequence();
        CHECK(compare_bits(logits_of_prompt(model, sequence),
                           logits_of_prompt(in_f32, sequence_in_f32)) == "");
        const ProcessedImage image = noise(model.config(), 2);
        CHECK(compare_bits(values_of(model.encode_image(image).rows),
                           values_of(in_f32.encode_image(image).rows)) == "");
    }
}

TEST_CASE("cuda_model_with_layers_on_both_devices_gives_the_same_logits") {
    if (!has_device()) return;
    const std::vector<float> expected =
        logits_of(Model::load(checkpoint(), options_of(WeightType::f32, Device::cpu)));
    for (const int64_t layers : {0, 1, 3, 100}) {
        ModelOptions options = options_of(WeightType::f32, Device::cuda);
        options.gpu_layers = layers;
        const Model model = Model::load(checkpoint(), options);
        CAPTURE(layers);
        CHECK(model.device_plan()->layers == std::min(layers, model.device_plan()->all_layers));
        CHECK(largest_difference(logits_of(model), expected) <= 2e-5);
    }
}

TEST_CASE("cuda_batch_of_decoded_sequences_equals_each_alone_to_the_bit") {
    if (!has_device()) return;
    const Model model = Model::load(checkpoint(), options_of(WeightType::bf16, Device::cuda));
    const std::vector<std::vector<int64_t>> texts = {{1, 5, 9, 2}, {1, 7}, {1, 3, 3, 4, 6, 8, 2}};
    std::vector<std::vector<float>> alone;
    for (const auto& text : texts) {
        Sequence sequence = model.new_sequence();
        model.prefill(sequence, text);
        const int64_t id = 11;
        const SequenceInput input{&sequence, {&id, 1}, 1};
        for (int step = 0; step < 3; ++step) {
            const Tensor logits = model.forward({&input, 1});
            if (step == 2)
                alone.emplace_back(logits.data<float>(), logits.data<float>() + logits.cols());
        }
    }
    std::vector<Sequence> sequences;
    for (const auto& text : texts) {
        sequences.push_back(model.new_sequence());
        model.prefill(sequences.back(), text);
    }
    const int64_t id = 11;
    std::vector<SequenceInput> inputs;
    for (Sequence& sequence : sequences) inputs.push_back({&sequence, {&id, 1}, 1});
    for (int step = 0; step < 3; ++step) {
        const Tensor logits = model.forward(inputs);
        if (step < 2) continue;
        for (size_t i = 0; i < texts.size(); ++i) {
            const float* row = logits.data<float>() + static_cast<int64_t>(i) * logits.cols();
            CHECK(compare_bits({row, static_cast<size_t>(logits.cols())}, alone[i]) == "");
        }
    }
}

TEST_CASE("cuda_decoding_records_a_step_once_and_repeats_it_from_then_on") {
    if (!has_device()) return;
    ModelOptions options = options_of(WeightType::bf16, Device::cuda);
    for (const DType kv_dtype : {DType::bf16, DType::i8}) {
        options.kv_dtype = kv_dtype;
        const Model model = Model::load(checkpoint(), options);
        std::vector<Sequence> batch;
        batch.push_back(sequence_with(model, {1, 5, 9, 2}, false));
        batch.push_back(sequence_with(model, {}, true));
        batch.push_back(sequence_with(model, {1, 3, 4, 6, 8}, false));
        const Recording& recording = model.recording();
        CHECK(recording.repeats() == 0);  // prompts are not

        // The first step of a batch runs as it is; the second is recorded.
        decode(model, batch, 9);
        CHECK(recording.records() == 1);
        CHECK(recording.repeats() == 8);

        // A sample ends: its rows are gone.
        const std::span<Sequence> left = std::span<Sequence>(batch).first(2);
        decode(model, left, 5);
        CHECK(recording.records() == 2);
        CHECK(recording.repeats() == 8 + 4);

        // Another text's prompt and a picture in between change nothing.
        std::vector<Sequence> second;
        second.push_back(sequence_with(model, {1, 7, 7, 2}, false));
        (void)sequence_with(model, {}, true);
        decode(model, left, 2);
        CHECK(recording.records() == 2);
        CHECK(recording.repeats() == 12 + 2);

        // Its answer is another batch.
        decode(model, second, 4);
        CHECK(recording.records() == 3);
        CHECK(recording.repeats() == 14 + 3);
    }
}

TEST_CASE("cuda_recording_is_made_again_when_keys_and_values_move") {
    if (!has_device()) return;
    const Model model = Model::load(checkpoint(), options_of(WeightType::f32, Device::cuda));
    std::vector<Sequence> text;
    text.push_back(sequence_with(model, {1, 5, 9, 2}, false));
    decode(model, text, 4);
    CHECK(model.recording().records() == 1);
    text.front().reserve(1000);
    decode(model, text, 4);
    CHECK(model.recording().records() == 2);
    CHECK(model.recording().repeats() == 3 + 3);
}

TEST_CASE("cuda_decoding_takes_no_memory_and_brings_a_step_in_one_copy") {
    if (!has_device()) return;
    for (const int64_t gpu_layers : {100, 3}) {
        ModelOptions options = options_of(WeightType::bf16, Device::cuda);
        options.gpu_layers = gpu_layers;
        const Model model = Model::load(checkpoint(), options);
        model.reserve_tokens(2);
        model.reserve_logits(2);
        model.reserve_top_logits(2, 5);
        std::vector<Sequence> batch;
        batch.push_back(sequence_with(model, {}, true));
        batch.push_back(sequence_with(model, {1, 5, 9, 2}, false));
        const int64_t allocations = cuda::counts.allocations;
        const int64_t pinned = cuda::counts.pinned_allocations;
        const int64_t uploads = cuda::counts.uploads;
        const int steps = 6;
        decode(model, batch, steps);
        const int64_t id = 11;
        const std::vector<SequenceInput> inputs = {{&batch[0], {&id, 1}, 1},
                                                   {&batch[1], {&id, 1}, 1}};
        for (int step = 0; step < steps; ++step) (void)model.forward(inputs);
        for (int step = 0; step < steps; ++step) (void)model.top_logits(inputs, 5);
        CAPTURE(gpu_layers);
        CHECK(cuda::counts.allocations.load() == allocations);
        CHECK(cuda::counts.pinned_allocations.load() == pinned);
        // What the layers on the CPU give is a second copy.
        const int copies = model.device_plan()->layers == model.device_plan()->all_layers ? 1 : 2;
        CHECK(cuda::counts.uploads.load() == uploads + 3 * steps * copies);
    }
}

TEST_CASE("cuda_answers_are_drawn_from_few_logits_as_from_all") {
    if (!has_device()) return;
    const TemporaryDirectory folder;
    for (const std::string& from : {checkpoint(), checkpoint_with_ties(folder)}) {
        CAPTURE(from);
        const Mllama mllama = Mllama::load(from, options_of(WeightType::f32, Device::cuda));
        for (const int64_t top_k : {2, 50})
            check_drawn_answers(mllama, {.greedy = false, .top_k = top_k, .seed = 7}, 4);
    }
}

TEST_CASE("cuda_device_plan_refuses_with_figures_what_does_not_fit") {
    TextConfig config = ModelConfig::load(checkpoint()).text;
    DevicePlan plan;
    plan.device = "a GPU";
    plan.memory_bytes = 8000000000;
    plan.free_bytes = 7000000000;
    plan.overhead = 500000000;
    plan.layers = plan.all_layers = 40;
    plan.weights = 20000000000;
    plan.kv_per_token = 131072;
    // The layers at the front are the large ones.
    const auto with_layers = [&](int64_t layers) {
        DevicePlan fewer = plan;
        fewer.layers = layers;
        for (int64_t layer = 0; layer < plan.all_layers - layers; ++layer)
            fewer.weights -= layer < 10 ? 800000000 : 300000000;
        return fewer;
    };
    std::string message;
    try {
        fit_device_plan(config, plan, with_layers);
    } catch (const Error& error) {
        message = error.what();
    }
    CHECK(message.find("7.00 GB") != std::string::npos);
    CHECK(message.find("20.00 GB of weights") != std::string::npos);
    CHECK(message.find("--gpu-layers ") != std::string::npos);
    // What it advises fits, and one layer more does not.
    const int64_t layers = std::stoll(message.substr(message.find("--gpu-layers ") + 13));
    CHECK(layers < 40);
    CHECK(layers > 0);
    DevicePlan more = with_layers(layers + 1);
    CHECK_THROWS_AS(fit_device_plan(config, more, with_layers), Error);
    DevicePlan advised = with_layers(layers);
    fit_device_plan(config, advised, with_layers);
    CHECK(advised.bytes() + advised.overhead <= advised.free_bytes);
    CHECK(advised.tokens >= 2048);
}
