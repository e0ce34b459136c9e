// Everything that can be wrong with quantised layers is an error that names the key or the tensor, and
// nothing ends the program.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "mllama/config.h"
#include "tests/compare.h"
#include "tests/quantised_example.h"

using namespace mllama;
using namespace mllama::test;

namespace {

struct WrongConfig {
    Make make;
    const char* pointer;
    Json value;
    const char* named;
};

struct WrongTensor {
    Make make;
    const char* ending;
    Tensor value;  // undefined: it is not there
    std::vector<std::string> named;
};

std::vector<int32_t> order(int64_t n, int32_t last) {
    std::vector<int32_t> groups(static_cast<size_t>(n), 1);
    groups.back() = last;
    return groups;
}

/// The same numbers (f32) in another type of floats.
Tensor in_type(const Tensor& numbers, DType dtype) {
    if (dtype == DType::f32) return numbers;
    Tensor result = Tensor::zeros(numbers.shape(), dtype);
    for (int64_t i = 0; i < numbers.numel(); ++i) {
        const float number = numbers.data<float>()[i];
        static_cast<uint16_t*>(result.data())[i] =
            dtype == DType::bf16 ? f32_to_bf16(number) : f32_to_f16(number);
    }
    return result;
}

}  // namespace

TEST_CASE("quantised_wrong_config_is_an_error_that_names_the_key") {
    const std::vector<WrongConfig> wrongs = {
        {int4, "/quant_method", "awq", "quant_method"},
        {int4, "/quant_method", nullptr, "quant_method"},
        {int4, "/format", "marlin-24", "config: format: "},
        {int4, "/format", "dense", "config: format: "},
        {int4, "/format", 4, "config: format: "},
        {int4, "/format", nullptr, "config: format: "},
        {int4, "/config_groups/group_0/format", "marlin-24", "group_0: format: "},
        {int4, "/config_groups", nullptr, "config_groups"},
        {int4, "/config_groups/group_0", {"Linear"}, "group_0"},
        {int4, "/config_groups/group_0/targets", "Linear", "targets"},
        {int4, "/config_groups/group_0/targets", {"re:("}, "targets"},
        {int4, "/config_groups/group_0/weights", nullptr, "weights"},
        {int4, "/config_groups/group_0/weights/num_bits", 8, "num_bits"},
        {int4, "/config_groups/group_0/weights/num_bits", 3, "num_bits"},
        {int4, "/config_groups/group_0/weights/type", "float", "type"},
        {int4, "/config_groups/group_0/weights/type", "bf16", "type"},
        {int4, "/config_groups/group_0/weights/strategy", "block", "strategy"},
        {int4, "/config_groups/group_0/weights/strategy", "channel", "group_size"},
        {int4, "/config_groups/group_0/weights/group_size", 0, "group_size"},
        {int4, "/config_groups/group_0/weights/group_size", -1, "group_size"},
        {int4, "/config_groups/group_0/weights/group_size", -2, "group_size"},
        {int4, "/config_groups/group_0/weights/group_size", "128", "group_size"},
        {int4, "/config_groups/group_0/weights/group_size", 1e18, "group_size"},
        {int4, "/config_groups/group_0/weights/symmetric", "yes", "symmetric"},
        {int4, "/config_groups/group_0/weights/actorder", "column", "actorder"},
        {int4, "/config_groups/group_0/weights/actorder", 1, "actorder"},
        {int8, "/config_groups/group_0/weights/actorder", "group", "actorder"},
        {int8, "/config_groups/group_0/input_activations/dynamic", false, "dynamic"},
        {int8, "/config_groups/group_0/input_activations/dynamic", nullptr, "dynamic"},
        {int8, "/config_groups/group_0/input_activations/dynamic", "local", "dynamic"},
        {fp8, "/config_groups/group_0/input_activations", {{"type", "float"}}, "dynamic"},
        {int4,
         "/config_groups/group_0/output_activations",
         {{"num_bits", 8}},
         "output_activations"},
        {int4, "/quantization_status", "frozen", "quantization_status"},
        {int4, "/kv_cache_scheme", {{"num_bits", 8}}, "kv_cache_scheme"},
        {int4, "/transform_config", {{"config_groups", {{"a", 1}}}}, "transform_config"},
        {int4, "/sparsity_config", {{"format", "sparse-bitmask"}}, "sparsity_config"},
        {int4, "/ignore", "lm_head", "ignore"},
        {int4, "/ignore", {"re:[a"}, "ignore"},
        {int4, "/ignore", {3}, "ignore"},
        {int8, "/config_groups/group_0/weights/num_bits", 4, "num_bits"},
        {int8, "/config_groups/group_0/weights/symmetric", false, "symmetric"},
        {fp8, "/config_groups/group_0/weights/type", "int", "type"},
        {fp8, "/config_groups/group_0/weights/num_bits", 4, "num_bits"},
        {gptq, "/bits", 8, "bits"},
        {gptq, "/bits", nullptr, "bits"},
        {gptq, "/group_size", 0, "group_size"},
        {gptq, "/group_size", -7, "group_size"},
        {gptq, "/checkpoint_format", "marlin", "checkpoint_format"},
        {gptq, "/desc_act", 1, "desc_act"},
        {gptq, "/pack_dtype", "int16", "pack_dtype"},
        {gptq, "/dynamic", {{"+:.*down", {{"bits", 8}}}}, "dynamic"},
        {nf4, "/load_in_8bit", true, "load_in_8bit"}};
    for (const WrongConfig& wrong : wrongs) {
        Example e = wrong.make();
        e.config[Json::json_pointer(wrong.pointer)] = wrong.value;
        CAPTURE(wrong.pointer);
        CAPTURE(wrong.value.dump());
        const std::string message = e.error();
        CHECK(message.starts_with("config.json: quantization_config"));
        CHECK(message.find(wrong.named) != std::string::npos);
    }
}

TEST_CASE(
    "quantised_config_of_too_many_expression_steps_is_an_error_and_repeated_names_count_once") {
    // What must be a list of many expressions, each of which is in its own bounds.
    const auto copies = [](const std::string& expression, int count) {
        Json list = Json::array();
        for (int i = 0; i < count; ++i) list.push_back(expression + "#" + std::to_string(i));
        return list;
    };
    std::string stars = "re:";
    for (int i = 0; i < 490; ++i) stars += ".*";
    for (const std::string& expression : {std::string("re:(.?){999}z{900}"), stars}) {
        CAPTURE(expression);
        Example ignored = int4();
        ignored.config["ignore"] = copies(expression, 3);
        CHECK(ignored.error() == "");
        ignored.config["ignore"] = copies(expression, 200);
        CHECK(ignored.error() ==
              "config.json: quantization_config: ignore: expected expressions "
              "that compile to at most 10000 steps together, found more");
        // Neither groups nor lists have bounds of their own.
        Example targets = int4();
        Json& groups = targets.config["config_groups"];
        for (int i = 0; i < 12; ++i) {
            const std::string name = "more_" + std::to_string(i);
            groups[name] = groups["group_0"];
            groups[name]["targets"] = {expression + std::to_string(i)};
        }
        CHECK(targets.error().find("targets: expected expressions") != std::string::npos);
    }
    Example repeated = int4();
    repeated.config["ignore"] = std::vector<std::string>(10000, "re:(b{1000}){3}");
    CHECK(repeated.error() == "");
}

TEST_CASE("quantised_wrong_tensor_is_an_error_that_names_it_expected_and_found") {
    const std::vector<WrongTensor> wrongs = {
        {int4, ".weight_packed", words({rows * cols / 8, 1}), {"I32 (24, 8)", "I32 (192, 1)"}},
        {int4, ".weight_zero_point", words({rows / 8, 2}), {"symmetric", "I32 (3, 2)"}},
        {int8, ".weight_zero_point", Tensor::zeros({rows, 1}, DType::i8), {"symmetric", "I8"}},
        {int4, ".weight_packed", words({rows, cols / 8 - 1}), {"I32 (24, 8)", "I32 (24, 7)"}},
        {int4, ".weight_packed", floats({rows, cols / 8}), {"I32 (24, 8)", "F32 (24, 8)"}},
        {int4, ".weight_packed", {}, {}},
        {int4, ".weight_scale", {}, {}},
        {int4, ".weight_scale", floats({rows, 1}), {"(24, 2)", "F32 (24, 1)"}},
        {int4, ".weight_scale", floats({rows + 1, 2}), {"(24, 2)", "F32 (25, 2)"}},
        {int4, ".weight_scale", words({rows, 2}), {"BF16", "I32 (24, 2)"}},
        {int4, ".weight_shape", {}, {}},
        {int4, ".weight_shape", Tensor::from(std::vector<int64_t>{24, 63}), {"24, 64", "24, 63"}},
        {int4, ".weight_shape", Tensor::from(std::vector<int64_t>{24}), {"I64 (2,)", "I64 (1,)"}},
        {int4, ".weight_shape", Tensor::from(std::vector<int64_t>{-1, 64}), {"found -1"}},
        {int4, ".weight_shape", Tensor::from(std::vector<int64_t>{24, INT64_MAX}), {"found 9"}},
        {int4, ".weight_shape", floats({2}), {"I64 (2,)", "F32 (2,)"}},
        {int4, ".weight_g_idx", Tensor::from(order(cols, 2)), {"[0, 1]", "found 2 at column 63"}},
        {int4, ".weight_g_idx", Tensor::from(order(cols, -2)), {"[0, 1]", "found -2"}},
        {int4, ".weight_g_idx", words({cols - 1}, 0), {"I32 (64,)", "I32 (63,)"}},
        {int4_with_zeros, ".weight_zero_point", {}, {}},
        {int4_with_zeros, ".weight_zero_point", words({rows, 2}), {"I32 (3, 2)", "I32 (24, 2)"}},
        {int4_with_zeros, ".weight_zero_point", floats({3, 2}), {"I32 (3, 2)", "F32 (3, 2)"}},
        {int4_with_zeros,
         ".weight_zero_point",
         Tensor::from(std::vector<int8_t>(48, 8), {rows, 2}),
         {"[-8, 7]", "found 8"}},
        {int4_with_zeros,
         ".weight_zero_point",
         Tensor::zeros({rows, 3}, DType::i8),
         {"I8 (24, 2)", "I8 (24, 3)"}},
        {int8, ".weight", floats({rows, cols}), {"I8 (24, 64)", "F32 (24, 64)"}},
        {int8, ".weight", Tensor::zeros({rows, cols + 1}, DType::i8), {"I8 (24, 65)"}},
        {int8, ".weight", Tensor::zeros({rows * cols}, DType::i8), {"a matrix", "I8 (1536,)"}},
        {int8, ".weight_scale", {}, {}},
        {int8, ".weight_scale", floats({rows}), {"(24, 1)", "F32 (24,)"}},
        {fp8, ".weight", Tensor::zeros({rows, cols}, DType::f8_e5m2), {"F8_E4M3", "F8_E5M2"}},
        {fp8, ".weight", Tensor::zeros({rows, cols}, DType::i8), {"F8_E4M3", "I8 (24, 64)"}},
        {fp8, ".weight_scale", {}, {}},
        {fp8, ".weight_scale", floats({rows, 1}), {"(1,)", "F32 (24, 1)"}},
        {gptq, ".qweight", words({cols / 8, rows + 8}), {"I32 (8, 24)", "I32 (8, 32)"}},
        {gptq, ".qweight", words({cols / 8 * rows}), {"I32 (192,)"}},
        {gptq, ".qweight", floats({cols / 8, rows}), {"I32 (8, 24)", "F32 (8, 24)"}},
        {gptq, ".qweight", {}, {}},
        {gptq, ".scales", {}, {}},
        {gptq, ".scales", floats({rows, 2}), {"(2, 24)", "F32 (24, 2)"}},
        {gptq, ".qzeros", {}, {}},
        {gptq, ".qzeros", words({2, rows}), {"I32 (2, 3)", "I32 (2, 24)"}},
        {gptq, ".g_idx", {}, {}},
        {gptq, ".g_idx", Tensor::from(order(cols, -1)), {"[0, 1]", "found -1"}},
        {gptq, ".g_idx", Tensor::from(order(cols, 2)), {"[0, 1]", "found 2"}},
        {int4, ".weight_g_idx", Tensor::from(order(cols, -1)), {"[0, 1]", "found -1"}},
        {nf4, ".weight", Tensor::zeros({rows * cols / 2}, DType::u8), {"(768, 1)", "(768,)"}},
        {nf4, ".weight", Tensor::zeros({rows * cols / 4, 1}, DType::bf16), {"U8", "BF16"}},
        {nf4, ".weight.absmax", {}, {}},
        {nf4, ".weight.absmax", floats({23}), {"F32 (24,)", "F32 (23,)"}},
        {nf4, ".weight.absmax", Tensor::zeros({24}, DType::u8), {"F32 (24,)", "U8 (24,)"}},
        {nf4, ".weight.quant_map", floats({15}), {"F32 (16,)", "F32 (15,)"}},
        {nf4, ".weight.quant_map", {}, {}},
        {nf4_nested, ".weight.absmax", floats({24}), {"U8 (24,)", "F32 (24,)"}},
        {nf4_nested, ".weight.nested_quant_map", floats({255}), {"F32 (256,)", "F32 (255,)"}},
        {nf4_nested, ".weight.nested_quant_map", {}, {}},
        {nf4_nested, ".weight.nested_absmax", floats({3}), {"F32 (2,)", "F32 (3,)"}},
        {nf4, ".weight.quant_state.bitsandbytes__fp4", bytes("{}"), {"nf4", "fp4"}}};
    for (const WrongTensor& wrong : wrongs) {
        Example e = wrong.make();
        if (wrong.value.defined()) {
            e.tensors[wrong.ending] = wrong.value;
        } else {
            e.tensors.erase(wrong.ending);
        }
        CAPTURE(std::string(wrong.ending));
        const std::string message = e.error();
        CAPTURE(message);
        CHECK(message.find("model.safetensors: ") != std::string::npos);
        if (wrong.named.empty()) CHECK(message.find("has no tensor") != std::string::npos);
        CHECK(message.find(layer + wrong.ending) != std::string::npos);
        for (const std::string& part : wrong.named) {
            CAPTURE(part);
            CHECK(message.find(part) != std::string::npos);
        }
    }
}

TEST_CASE("quantised_activation_order_without_its_groups_is_an_error_that_names_the_tensor") {
    for (const char* order : {"group", "dynamic"}) {
        Example e = int4();
        e.config["config_groups"]["group_0"]["weights"]["actorder"] = order;
        CHECK(e.error().find("model.safetensors: has no tensor " + layer + ".weight_g_idx") !=
              std::string::npos);
    }
}

TEST_CASE(
    "quantised_sizes_of_more_than_is_stored_are_an_error_that_names_the_tensor_in_a_listing") {
    const auto listing_error = [](const Example& e) {
        return error_of([&] {
            e.with_weights(
                [](const CheckpointWeights& weights) { (void)weights.quantised_layers(); });
        });
    };
    CHECK(listing_error(int4()) == "");
    CHECK(listing_error(nf4()) == "");
    for (const int64_t size : {rows + 1, int64_t{1} << 31}) {
        Example packed = int4();
        packed.tensors[".weight_shape"] = Tensor::from(std::vector<int64_t>{size, size});
        std::string message = listing_error(packed);
        CAPTURE(message);
        CHECK(message.find("model.safetensors: tensor " + layer + ".weight_packed: ") !=
              std::string::npos);
        CHECK(message.find("weight_shape, found I32 (24, 8)") != std::string::npos);
        Example blocks = nf4();
        Json state = nf4_state();
        state["shape"] = {size, size};
        blocks.tensors[".weight.quant_state.bitsandbytes__nf4"] = bytes(state.dump());
        message = listing_error(blocks);
        CHECK(message.find("model.safetensors: tensor " + layer +
                           ".weight.quant_state.bitsandbytes__nf4: shape: ") != std::string::npos);
    }
}

TEST_CASE("quantised_layer_that_the_config_does_not_name_is_an_error_that_names_its_tensor") {
    const std::pair<Make, const char*> formats[] = {{int4, ".weight_packed"},
                                                    {gptq, ".qweight"},
                                                    {int8, ".weight"},
                                                    {fp8, ".weight"},
                                                    {nf4, ".weight"}};
    for (const auto& [make, tensor] : formats) {
        const Example example = make();
        const auto check = [&](const Example& of) {
            const std::string expected =
                "tensor " + layer + tensor + ": expected a quantization_config";
            CHECK(of.error().find(expected) != std::string::npos);
            of.with_weights([&](const CheckpointWeights& weights) {
                const std::string error = error_of([&] { (void)weights.quantised_layers(); });
                CHECK(error.find(expected) != std::string::npos);
            });
        };
        Example none = example;
        none.config = nullptr;
        check(none);
        if (make != nf4) {  // what another method's layers are made of
            Example other = example;
            other.config = nf4().config;
            check(other);
        }
        example.with_weights([&](const CheckpointWeights& weights) {
            CHECK(weights.quantised_layers().size() == 1);
        });
    }
    Example ignored = int4();
    ignored.config["ignore"] = {"re:.*up_proj"};
    CHECK(ignored.error().find("expected a quantization_config") != std::string::npos);
}

TEST_CASE("quantised_scales_that_are_not_finite_are_an_error_that_names_tensor_and_element") {
    const float infinity = std::numeric_limits<float>::infinity();
    const float largest = std::numeric_limits<float>::max();
    const std::vector<std::pair<Make, const char*>> scales = {
        {int4, ".weight_scale"},
        {int8, ".weight_scale"},
        {fp8, ".weight_scale"},
        {gptq, ".scales"},
        {nf4, ".weight.absmax"},
        {nf4, ".weight.quant_map"},
        {nf4_nested, ".weight.nested_absmax"}};
    for (const auto& [make, ending] : scales) {
        for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
            Example e = make();
            if (dtype != DType::f32 && e.config["quant_method"] == "bitsandbytes") continue;
            CAPTURE(ending);
            CAPTURE(static_cast<int>(dtype));
            const int64_t last = e.tensors[ending].numel() - 1;
            const auto error = [&](float value) {
                Tensor spoiled = e.tensors[ending].clone();
                spoiled.data<float>()[last] = value;
                Example other = e;
                other.tensors[ending] = in_type(spoiled, dtype);
                return other.error();
            };
            for (const float fine : {0.0f, -2.0f, 60000.0f, 1e-30f}) CHECK(error(fine) == "");
            if (dtype == DType::f32) CHECK(error(-largest) == "");
            for (const float wrong : {infinity, -infinity, std::nanf("")}) {
                CHECK(error(wrong).find("model.safetensors: tensor " + layer + ending +
                                        ": expected finite numbers, found another as element " +
                                        std::to_string(last)) != std::string::npos);
            }
        }
    }
}

TEST_CASE("quantised_state_of_nf4_that_is_wrong_is_an_error_that_names_its_tensor") {
    const auto error = [](Example e, const std::string& state) {
        e.tensors[".weight.quant_state.bitsandbytes__nf4"] = bytes(state);
        return e.error();
    };
    const std::string good = nf4_state().dump();
    CHECK(error(nf4(), good) == "");
    const std::vector<std::pair<std::string, Json>> changes = {{"quant_type", "fp4"},
                                                               {"quant_type", 4},
                                                               {"quant_type", nullptr},
                                                               {"blocksize", 0},
                                                               {"blocksize", -64},
                                                               {"blocksize", "64"},
                                                               {"blocksize", 1e300},
                                                               {"blocksize", 1u << 31},
                                                               {"blocksize", nullptr},
                                                               {"shape", nullptr},
                                                               {"shape", {rows}},
                                                               {"shape", {rows, cols, 1}},
                                                               {"shape", {rows, cols + 2}},
                                                               {"shape", {cols, rows}},
                                                               {"shape", {-rows, -cols}},
                                                               {"shape", {uint64_t{1} << 63, 1}},
                                                               {"shape", {1LL << 31, 1LL << 31}},
                                                               {"shape", "24, 64"}};
    for (const auto& [key, value] : changes) {
        Json state = nf4_state();
        state[key] = value;
        CAPTURE(state.dump());
        const std::string message = error(nf4(), state.dump());
        CHECK(message.find(layer + ".weight.quant_state.bitsandbytes__nf4: " + key) !=
              std::string::npos);
    }
    for (const Json& offset : {Json(nullptr), Json("0"), Json(1e38)}) {
        Json state = nf4_state();
        state.update({{"nested_blocksize", 16}, {"nested_offset", offset}});
        CHECK(error(nf4_nested(), state.dump()).find("nested_offset") != std::string::npos);
    }
    Json state = nf4_state();
    state.update({{"nested_blocksize", 0}, {"nested_offset", 0}});
    CHECK(error(nf4_nested(), state.dump()).find("nested_blocksize") != std::string::npos);
    CHECK(error(nf4(), std::string(100'000, ' ')).find("at most") != std::string::npos);
    CHECK(error(nf4(), std::string(60'000, '[')).find("nested deeper") != std::string::npos);
    for (size_t length = 0; length < good.size(); length += 5)
        CHECK(error(nf4(), good.substr(0, length)).find("bitsandbytes__nf4") != std::string::npos);
}

TEST_CASE("quantised_states_with_flipped_bits_never_crash") {
    const std::string good = nf4_state().dump();
    Numbers random(3);
    int errors = 0;
    for (int round = 0; round < 100; ++round) {
        std::string state = good;
        for (int64_t i = random.below(3); i >= 0; --i) {
            const auto place = static_cast<size_t>(random.below(static_cast<int64_t>(good.size())));
            state[place] = static_cast<char>(state[place] ^ (1 << random.below(8)));
        }
        Example e = nf4();
        e.tensors[".weight.quant_state.bitsandbytes__nf4"] = bytes(state);
        errors += e.error().empty() ? 0 : 1;
    }
    CHECK(errors > 30);
    CHECK(errors < 100);  // where the dtype's name is spoiled, nothing is lost
}

TEST_CASE("quantised_checkpoints_with_flipped_bits_or_cut_off_never_crash") {
    for (const char* format : {"int4_asymmetric", "gptq", "nf4_double", "fp8"}) {
        CAPTURE(format);
        const std::string folder = std::string(MLLAMA_TEST_DATA) + "/goldens/quantised/" + format;
        const std::string good = read_file(folder + "/model.safetensors");
        const QuantisationConfig config = ModelConfig::load(folder).quantisation;
        size_t header = 8;
        for (size_t i = 0; i < 4; ++i)
            header += static_cast<size_t>(static_cast<uint8_t>(good[i])) << (8 * i);
        const TemporaryDirectory spoiled;
        Numbers random(5);
        int errors = 0;
        for (int round = 0; round < 60; ++round) {
            std::string file = good;
            if (round % 10 == 0) file.resize(static_cast<size_t>(random.below(1 + header)));
            for (int64_t i = random.below(4); i >= 0 && !file.empty(); --i) {
                // In the header as often as in what follows: shapes, orders and states stand there.
                const size_t end = i % 2 == 0 ? std::min(header, file.size()) : file.size();
                const auto place = static_cast<size_t>(random.below(static_cast<int64_t>(end)));
                file[place] = static_cast<char>(file[place] ^ (1 << random.below(8)));
            }
            write_bytes(spoiled / "model.safetensors", file);
            try {
                const Checkpoint checkpoint = open_checkpoint(spoiled.path());
                for (const auto& l : CheckpointWeights(checkpoint, config).quantised_layers()) {
                    if (l.weight.numel() < 10'000) (void)decoded(l.weight, DType::f32);
                }
            } catch (const Error&) {
                ++errors;
            }
        }
        CHECK(errors > 10);
        CHECK(errors < 60);
    }
}

TEST_CASE("quantised_gptq_sizes_that_are_no_multiples_of_8_are_an_error") {
    gptq().with_weights([](const CheckpointWeights& weights) {
        for (const auto& [out, in] : {std::pair<int64_t, int64_t>{rows, 63}, {23, cols}}) {
            const std::string message =
                error_of([&, n = out, k = in] { (void)weights.weight(layer, n, k); });
            CHECK(message.find(layer + ".qweight: expected in_features and out_features that are "
                                       "multiples of 8") != std::string::npos);
        }
    });
}
