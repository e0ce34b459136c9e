// Quantised layers of checkpoints: which of them are read, and as what.
#include <doctest/doctest.h>

#include "tests/quantised_example.h"

using namespace mllama;
using namespace mllama::test;

TEST_CASE("quantised_examples_are_good") {
    for (const Make make : {int4, int4_with_zeros, int8, fp8, gptq, nf4, nf4_nested}) {
        const Example e = make();
        CAPTURE(e.config.dump());
        CHECK(e.error() == "");
        CHECK(e.weight().coding != Coding::plain);
        CHECK(e.weight().rows == rows);
        CHECK(e.weight().cols == cols);
    }
}

TEST_CASE("quantised_layers_are_found_by_their_tensors_and_left_where_they_are_ignored") {
    // Without quantised tensors a layer is plain, whatever the config says of it.
    for (const Make make : {int4, int8, gptq, nf4}) {
        Example e = make();
        e.tensors = {{".weight", floats({rows, cols})}};
        CHECK(e.weight().coding == Coding::plain);
    }
    // A layer that is ignored is plain: quantised tensors of it are not looked at.
    for (const char* name :
         {"language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj",
          "re:.*up_proj", "re:model\\.language_model.*", "re:language_model", "Linear"}) {
        CAPTURE(name);
        Example e = int4();
        e.config["ignore"] = {"lm_head", name};
        CHECK(e.error().find(layer + ".weight_packed: expected a quantization_config") !=
              std::string::npos);
        e.tensors[".weight"] = floats({rows, cols});
        CHECK(e.weight().coding == Coding::plain);
        Example of_int8 = int8();
        of_int8.config["ignore"] = {name};
        CHECK(of_int8.error().find(layer + ".weight: expected a quantization_config") !=
              std::string::npos);
    }
    for (const char* name : {"up_proj", "language_model.model.layers.0.mlp", "re:up_proj"}) {
        CAPTURE(name);
        Example e = int4();
        e.config["ignore"] = {name};
        CHECK(e.weight().coding == Coding::int4);
    }
    Example e = int4();
    e.config.erase("ignore");
    CHECK(e.weight().coding == Coding::int4);
    e.config["config_groups"]["group_0"]["targets"] = {"re:.*self_attn.*"};
    CHECK(e.error().find(layer + ".weight_packed: expected a quantization_config") !=
          std::string::npos);
    CHECK(Example{Json(), int8().tensors}.error().find(
              layer + ".weight: expected a quantization_config") != std::string::npos);
}

TEST_CASE("quantised_scheme_is_that_of_the_exact_name_then_the_expression_then_the_class") {
    Example e = int4();
    Json& groups = e.config["config_groups"];
    const auto add = [&](const char* name, const char* target, int64_t group_size) {
        groups[name] = groups["group_0"];
        groups[name]["targets"] = {target};
        groups[name]["weights"]["group_size"] = group_size;
    };
    const auto group_size = [&] {
        e.tensors[".weight_scale"] = floats({rows, cols / 32});
        for (const int64_t size : {8, 16, 32, 64}) {
            e.tensors[".weight_scale"] = floats({rows, cols / size});
            if (e.error().empty()) return size;
        }
        return int64_t{0};
    };
    CHECK(group_size() == 32);
    add("group_1", "re:.*up_proj", 16);
    CHECK(group_size() == 16);
    add("group_2", "re:.*mlp.*", 8);  // before the other by its text
    CHECK(group_size() == 8);
    add("group_3", "model.language_model.layers.0.mlp.up_proj", 64);
    CHECK(group_size() == 64);
    add("group_4", "re:.*down_proj", 8);
    CHECK(group_size() == 64);
}

TEST_CASE("quantised_variants_that_mean_the_same_are_read") {
    Example e = int4();
    e.tensors[".weight_shape"] = Tensor::from(std::vector<int32_t>{rows, cols});
    CHECK(e.weight().coding == Coding::int4);
    e.tensors[".weight_scale"] = Tensor::zeros({rows, 2}, DType::bf16);
    CHECK(e.weight().scale.dtype() == DType::bf16);
    // Zeros in bytes: -8 ... 7 of the rows are the nibbles 0 ... 15.
    Example zeros = int4_with_zeros();
    std::vector<int8_t> values;
    for (int64_t i = 0; i < rows * 2; ++i) values.push_back(static_cast<int8_t>(i % 16 - 8));
    zeros.tensors[".weight_zero_point"] = Tensor::from(values, {rows, 2});
    const Tensor packed = zeros.weight().zero;
    CHECK(packed.shape() == Shape{rows / 8, 2});
    CHECK(packed.data<int32_t>()[0] == static_cast<int32_t>(0xECA86420u));
    CHECK(packed.data<int32_t>()[5] == static_cast<int32_t>(0xFDB97531u));
    // An order that is none is dropped; one that was never set too; others are kept.
    std::vector<int32_t> in_order;
    for (int32_t i = 0; i < cols; ++i) in_order.push_back(i / 32);
    e.tensors[".weight_g_idx"] = Tensor::from(in_order);
    CHECK(!e.weight().of_column.defined());
    e.tensors[".weight_g_idx"] = words({cols}, -1);
    CHECK(!e.weight().of_column.defined());
    for (const Json& order : {Json(nullptr), Json(false), Json("weight"), Json("static")}) {
        e.config["config_groups"]["group_0"]["weights"]["actorder"] = order;
        Example without = e;
        without.tensors.erase(".weight_g_idx");
        CHECK(without.error() == "");
    }
    std::swap(in_order[3], in_order[60]);
    e.tensors[".weight_g_idx"] = Tensor::from(in_order);
    CHECK(e.weight().of_column.defined());
    for (const Json& order : {Json("group"), Json("dynamic"), Json(true), Json(nullptr)}) {
        e.config["config_groups"]["group_0"]["weights"]["actorder"] = order;
        CHECK(e.weight().description() == "int4 (groups of 32, symmetric, activation order)");
    }

    for (const Shape& one : {Shape{}, Shape{1}, Shape{1, 1}}) {
        Example f = fp8();
        f.tensors[".weight_scale"] = floats(one);
        CHECK(f.weight().description() == "fp8 (one scale)");
        CHECK(decoded(f.weight(), DType::f32).data<float>()[5] == 0.0f);
    }
    Example named = fp8();
    named.config["format"] = "mixed-precision";
    CHECK(named.error().find("format") != std::string::npos);
    named.config["config_groups"]["group_0"]["format"] = "float-quantized";
    CHECK(named.weight().coding == Coding::fp8);
    named.config["sparsity_config"] = Json::object();
    named.config["kv_cache_scheme"] = nullptr;
    named.config["transform_config"] = Json::object();
    CHECK(named.weight().coding == Coding::fp8);

    Example whole = gptq();
    whole.config.update(
        {{"group_size", -1}, {"desc_act", false}, {"checkpoint_format", "gptq_v2"}});
    whole.tensors[".scales"] = floats({1, rows});
    whole.tensors[".qzeros"] = words({1, rows / 8});
    whole.tensors.erase(".g_idx");
    whole.config["dynamic"] = {{"-:.*cross_attn", Json::object()}};
    CHECK(whole.weight().group_size == cols);
    CHECK(whole.weight().zero_add == 0);
    CHECK(gptq().weight().zero_add == 1);
}

TEST_CASE("quantised_int8_multiplies_integers_only_if_activations_are_meant_to_be_rounded") {
    CHECK(!int8().weight().weight_only);
    const char* const activations = "/config_groups/group_0/input_activations";
    const std::vector<std::pair<std::string, Json>> others = {
        {activations, nullptr},
        {std::string(activations) + "/symmetric", false},
        {std::string(activations) + "/strategy", "tensor"},
        {std::string(activations) + "/type", "float"},
        {std::string(activations) + "/num_bits", 4}};
    for (const auto& [pointer, value] : others) {
        CAPTURE(pointer);
        Example e = int8();
        e.config[Json::json_pointer(pointer)] = value;
        CHECK(e.weight().weight_only);
    }
}

TEST_CASE("quantised_layers_are_listed_with_all_their_tensors_and_bytes") {
    for (const Make make : {int4, int4_with_zeros, int8, fp8, gptq, nf4, nf4_nested}) {
        const Example e = make();
        CAPTURE(e.config.dump());
        e.with_weights([&](const CheckpointWeights& weights) {
            const std::vector<CheckpointWeights::Layer> layers = weights.quantised_layers();
            REQUIRE(layers.size() == 1);
            CHECK(layers[0].module == layer);
            CHECK(layers[0].tensors.size() == e.tensors.size());
            CHECK(layers[0].bytes == weights.checkpoint().bytes());
            CHECK(layers[0].weight.rows == rows);
            CHECK(layers[0].weight.cols == cols);
        });
    }
}
