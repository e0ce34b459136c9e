// Quantised checkpoints written by the formats' own packages, against transformers on the
// dequantised weights (tests/goldens/make_quantised_goldens.py).
#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <set>

#include "mllama/checkpoint_weights.h"
#include "mllama/memory_plan.h"
#include "mllama/model.h"
#include "tensor/quantise.h"
#include "tests/compare.h"
#include "tests/goldens.h"

using namespace mllama;
using namespace mllama::test;

namespace {

constexpr double f32_share = 2e-5;  // of the largest logit

std::string folder(const std::string& format) {
    return std::string(MLLAMA_TEST_DATA) + "/goldens/quantised/" + format;
}

SafetensorsFile golden(const std::string& format) {
    return SafetensorsFile::open(folder(format) + "/golden.safetensors");
}

/// The picture of a golden: its pixels are given.
ProcessedImage picture_of(const SafetensorsFile& golden, const ModelConfig& config) {
    const Tensor pixels = golden.get("pixel_values");  // (1, 1, tiles, channels, side, side)
    ProcessedImage image;
    image.aspect_ratio_id = golden.get("aspect_ratio_ids").data<int64_t>()[0];
    const auto ratio = static_cast<size_t>(image.aspect_ratio_id - 1);
    std::tie(image.tiles_high, image.tiles_wide) = config.vision.supported_aspect_ratios[ratio];
    image.num_tiles = image.tiles_high * image.tiles_wide;
    image.tile_size = config.vision.image_size;
    image.pixel_values.assign(pixels.data<float>(), pixels.data<float>() + pixels.numel());
    return image;
}

/// Logits (1, T, vocab_size) of a golden's ids, with its picture or without.
Tensor logits_of(const Model& model, const SafetensorsFile& golden, bool with_picture) {
    const Tensor stored = golden.get("input_ids");
    std::vector<int64_t> ids(stored.data<int64_t>(), stored.data<int64_t>() + stored.numel());
    Sequence sequence = model.new_sequence();
    if (with_picture) {
        model.add_image(sequence, model.encode_image(picture_of(golden, model.config())));
    } else {
        for (int64_t& id : ids) id = std::min(id, model.config().text.vocab_size - 1);
    }
    const auto count = static_cast<int64_t>(ids.size());
    const SequenceInput input{&sequence, ids, count};
    const Tensor logits = model.forward({&input, 1});
    return logits.clone().view({1, count, logits.cols()});
}

/// The largest difference, as a share of the largest expected magnitude.
double largest_share(const Tensor& found, const Tensor& expected) {
    REQUIRE(found.shape() == expected.shape());
    double difference = 0, largest = 0;
    for (int64_t i = 0; i < expected.numel(); ++i) {
        const double wanted = expected.data<float>()[i];
        difference = std::max(difference, std::abs(found.data<float>()[i] - wanted));
        largest = std::max(largest, std::abs(wanted));
    }
    return difference / largest;
}

const char* const formats[] = {
    "int4_symmetric", "int4_asymmetric", "int8",      "fp8",      "nf4", "nf4_double",
    "gptq",           "gptq_v2",         "int4_wide", "gptq_wide"};

}  // namespace

TEST_CASE("quantised_checkpoints_in_float32_equal_transformers_on_dequantised_weights") {
    for (const char* format : formats) {
        CAPTURE(format);
        const SafetensorsFile expected = golden(format);
        const Model model = Model::load(folder(format), {WeightType::f32, Reference::transformers});
        CHECK(compare_to_largest(logits_of(model, expected, true), expected.get("logits"),
                                 f32_share) == "");
        CHECK(compare_to_largest(logits_of(model, expected, false), expected.get("logits_text"),
                                 f32_share) == "");
    }
}

TEST_CASE("quantised_layers_decode_to_what_their_own_packages_dequantise") {
    for (const char* format : formats) {
        CAPTURE(format);
        const ModelConfig config = ModelConfig::load(folder(format));
        const Checkpoint checkpoint = open_checkpoint(folder(format));
        const CheckpointWeights weights(checkpoint, config.quantisation);
        for (const char* part : {"0.mlp.down_proj", "0.self_attn.k_proj"}) {
            CAPTURE(part);
            const std::string module = std::string("language_model.model.layers.") + part;
            const Tensor expected = golden(format).get("dequantised." + module);
            const Weight weight = weights.weight(module, expected.rows(), expected.cols());
            CHECK(weight.coding != Coding::plain);
            CHECK(compare_to_largest(decoded(weight, DType::f32), expected, 2e-7) == "");
        }
    }
}

TEST_CASE("quantised_checkpoints_in_lower_precision_stay_near_transformers") {
    // Of the largest logit. Measured: 0.2 to 0.5 % with bf16 products; 0.4 to 0.8 % where activations
    // are rounded to int8.
    constexpr double near_bf16 = 0.01, near_stored = 0.016;
    for (const char* format : formats) {
        CAPTURE(format);
        const SafetensorsFile expected = golden(format);
        for (const WeightType type : {WeightType::as_stored, WeightType::bf16}) {
            CAPTURE(static_cast<int>(type));
            const Model model = Model::load(folder(format), {type, Reference::transformers});
            CHECK(model.kv_dtype() == DType::bf16);
            for (const bool picture : {true, false}) {
                const Tensor wanted = expected.get(picture ? "logits" : "logits_text");
                const double share = largest_share(logits_of(model, expected, picture), wanted);
                CHECK(share < (type == WeightType::bf16 ? near_bf16 : near_stored));
                CHECK(share > 0);  // it is rounded, and the comparison sees it
            }
        }
    }
}

TEST_CASE("quantised_layers_are_held_as_they_were_stored_and_multiplied_as_their_format_asks") {
    const std::map<std::string, std::pair<std::string, Compute>> expected = {
        {"int4_symmetric", {"int4 (groups of 16, symmetric)", Compute::int8}},
        {"int4_asymmetric", {"int4 (groups of 16, zero points, activation order)", Compute::int8}},
        {"int8", {"int8 (a scale a row)", Compute::int8}},
        {"fp8", {"fp8 (one scale)", Compute::bf16}},
        {"nf4", {"nf4 (blocks of 64)", Compute::bf16}},
        {"nf4_double", {"nf4 (blocks of 64, scales in 8 bits)", Compute::bf16}},
        {"gptq", {"int4 (groups of 16, zero points, activation order)", Compute::bf16}},
        {"gptq_v2", {"int4 (a scale a row, zero points)", Compute::bf16}},
        {"int4_wide", {"int4 (groups of 128, zero points, activation order)", Compute::int8}},
        {"gptq_wide", {"int4 (groups of 64, zero points, activation order)", Compute::bf16}}};
    for (const auto& [format, what] : expected) {
        CAPTURE(format);
        const ModelConfig config = ModelConfig::load(folder(format));
        const Checkpoint checkpoint = open_checkpoint(folder(format));
        const CheckpointWeights source(checkpoint, config.quantisation);
        const std::string module = "language_model.model.layers.0.mlp.down_proj";
        const auto layer = [&](WeightType type) {
            return WeightLoader(source, type)
                .linear(module, config.text.hidden_size, config.text.intermediate_size);
        };
        const Linear stored = layer(WeightType::as_stored);
        CHECK(stored.weight.description() == what.first);
        CHECK(stored.compute == what.second);
        CHECK(!stored.weight.data.writable());  // a view of the file
        CHECK(layer(WeightType::bf16).compute == Compute::bf16);
        CHECK(layer(WeightType::f32).compute == Compute::f32);
        const Weight head = source.weight("language_model.lm_head", config.text.vocab_size,
                                          config.text.hidden_size);
        CHECK(head.description() == "bf16");  // ignored, or holding no quantised tensors
    }
}

TEST_CASE("quantised_checkpoints_are_planned_with_the_bytes_of_their_layers_mapped") {
    for (const char* format : formats) {
        CAPTURE(format);
        const ModelConfig config = ModelConfig::load(folder(format));
        const Checkpoint checkpoint = open_checkpoint(folder(format));
        const CheckpointWeights weights(checkpoint, config.quantisation);
        const MemoryPlan plan = plan_memory(config, weights, 100);
        std::set<std::string> parts;
        for (const auto& layer : weights.quantised_layers())
            parts.insert(layer.tensors.begin(), layer.tensors.end());
        int64_t vectors = 0;  // bf16: norms, biases, gates
        for (const std::string& name : checkpoint.names()) {
            const TensorInfo& info = checkpoint.info(name);
            if (!parts.contains(name) && info.shape.size() == 1) vectors += info.bytes;
        }
        CHECK(plan.weights_mapped == checkpoint.bytes() - vectors);
        CHECK(plan.weights_copied == 2 * vectors);
        CHECK(plan.kv_per_token == 2 * config.text.kv_size() * 2);  // one self-attention layer
    }
}

TEST_CASE("layers_that_are_quantised_at_load_are_planned_as_they_become") {
    const std::string directory = std::string(MLLAMA_TEST_DATA) + "/goldens/models/a_published";
    const ModelConfig config = ModelConfig::load(directory);
    const Checkpoint checkpoint = open_checkpoint(directory);
    const CheckpointWeights weights(checkpoint, config.quantisation);
    const MemoryPlan stored = plan_memory(config, weights, 100);
    CHECK(stored.weights_quantised == 0);
    for (const WeightType type : {WeightType::int8, WeightType::int4}) {
        ModelOptions options;
        options.weights = type;
        options.vision_weights = WeightType::int8;
        const QuantisationPlan quantising = options.quantisation();
        int64_t before = 0, after = 0;
        for (const std::string& name : checkpoint.names()) {
            const TensorInfo& info = checkpoint.info(name);
            if (info.shape.size() != 2) continue;
            const std::string module = name.substr(0, name.rfind('.'));
            const auto format = quantising.of(module, info.shape[1]);
            if (!format) continue;
            before += info.bytes;
            after +=
                quantised(checkpoint.get(name, {info.shape[0], info.shape[1]}), *format).bytes();
        }
        const MemoryPlan plan = plan_memory(config, weights, 100, std::nullopt, quantising);
        CHECK(after > 0);
        CHECK(plan.weights_quantised == after);
        CHECK(plan.weights_mapped == stored.weights_mapped - before);
        // Products are those of bfloat16 then, and so are keys and values.
        CHECK(2 * plan.kv_per_token == stored.kv_per_token);
        CHECK(plan.anonymous(10, 0) ==
              stored.weights_copied + after + 10 * plan.kv_per_token + stored.scratch);
    }
}
