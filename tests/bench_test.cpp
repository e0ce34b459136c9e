// The bench: what it counts, that it refuses what is wrong, and what it says.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "apps/bench/check.h"
#include "apps/bench/model.h"
#include "apps/bench/report.h"
#include "apps/bench/work.h"
#include "apps/bench/workloads.h"
#include "io/json.h"
#include "mllama/random_weights.h"
#include "tests/compare.h"
#include "tests/goldens.h"
#include "tests/program.h"

using namespace mllama;
using namespace mllama::test;

namespace {

/// The published 11B model.
ModelConfig config_11b() {
    ModelConfig config;
    VisionConfig& v = config.vision;
    v.hidden_size = 1280;
    v.num_hidden_layers = 32;
    v.num_global_layers = 8;
    v.num_attention_heads = 16;
    v.num_channels = 3;
    v.intermediate_size = 5120;
    v.vision_output_dim = 7680;
    v.image_size = 560;
    v.patch_size = 14;
    v.max_num_tiles = 4;
    v.norm_eps = 1e-5f;
    v.intermediate_layers_indices = {3, 7, 15, 23, 30};
    v.supported_aspect_ratios = {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {2, 1}, {2, 2}, {3, 1}, {4, 1}};
    TextConfig& t = config.text;
    t.vocab_size = 128256;
    t.hidden_size = 4096;
    t.num_hidden_layers = 40;
    t.num_attention_heads = 32;
    t.num_key_value_heads = 8;
    t.intermediate_size = 14336;
    t.max_position_embeddings = 131072;
    t.rms_norm_eps = 1e-5f;
    t.rope.theta = 500000;
    t.cross_attention_layers = {3, 8, 13, 18, 23, 28, 33, 38};
    config.image_token_id = 128256;
    return config;
}

/// A model of the 11B one's kind and of small sizes.
Model small_model(const ModelConfig& config, WeightType type) {
    return random_model(config, {type, Reference::transformers}, "config.json");
}

double reads_per_token(const ModelConfig& config) {
    const TextConfig& t = config.text;
    const auto cross = static_cast<int64_t>(t.cross_attention_layers.size());
    const int64_t mlp = 3 * t.hidden_size * t.intermediate_size;
    const int64_t self = 2 * t.hidden_size * (t.hidden_size + t.kv_size()) + mlp;
    const int64_t text = (t.num_hidden_layers - cross) * self + t.vocab_size * t.hidden_size;
    return static_cast<double>(text);
}

ProgramResult bench(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"bench"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(MLLAMA_PROGRAM, arguments, models_folder());
}

std::string demo_model() {
    return std::string(MLLAMA_TEST_DATA) + "/../apps/demo/model";
}

int64_t demo_vocabulary() {
    return ModelConfig::load_file(demo_model() + "/config.json").text.vocab_size;
}

}  // namespace

TEST_CASE("bench_parameters_of_the_published_model_are_counted_exactly") {
    CHECK(parameter_count(config_11b()) == 10670220835);
}

TEST_CASE("bench_first_layers_keeps_what_is_below_and_the_shape_of_the_projector") {
    const ModelConfig four = first_layers(config_11b(), 4);
    CHECK(four.text.num_hidden_layers == 4);
    CHECK(four.text.cross_attention_layers == std::vector<int64_t>{3});
    CHECK(four.vision.num_hidden_layers == 4);
    CHECK(four.vision.num_global_layers == 1);
    CHECK(four.vision.intermediate_layers_indices == std::vector<int64_t>{3, 3, 3, 3, 3});
    CHECK(four.vision.vision_output_dim == 7680);
    const ModelConfig twelve = first_layers(config_11b(), 12);
    CHECK(twelve.text.cross_attention_layers == std::vector<int64_t>{3, 8});
    CHECK(twelve.vision.num_global_layers == 3);
    CHECK(twelve.vision.intermediate_layers_indices == std::vector<int64_t>{3, 7, 11, 11, 11});
    const ModelConfig one = first_layers(config_11b(), 1);
    CHECK(one.text.cross_attention_layers.empty());
    CHECK(one.vision.num_global_layers == 1);
    const ModelConfig most = first_layers(config_11b(), 38);
    CHECK(most.vision.num_hidden_layers == 32);
    CHECK(most.vision.num_global_layers == 8);
    CHECK(most.text.num_hidden_layers == 38);
    CHECK(most.text.cross_attention_layers.size() == 7);
}

TEST_CASE("bench_random_weights_are_the_same_every_time_and_normal") {
    const ModelConfig config = small_config(config_11b());
    const RandomWeights weights(config, DType::f32);
    const std::vector<int64_t> shape = {700, 611};
    const Tensor w = weights.tensor("a.weight", shape);
    const Tensor again = RandomWeights(config, DType::f32).tensor("a.weight", shape);
    const Tensor other = weights.tensor("b.weight", shape);
    const Tensor other_seed = RandomWeights(config, DType::f32, 2).tensor("a.weight", shape);
    int64_t as_other = 0, as_other_seed = 0;
    double sum = 0, squares = 0, neighbours = 0, beyond_two = 0;
    for (int64_t i = 0; i < w.numel(); ++i) {
        const float value = w.data<float>()[i];
        REQUIRE(value == again.data<float>()[i]);
        as_other += value == other.data<float>()[i];
        as_other_seed += value == other_seed.data<float>()[i];
        const double x = double{value} * std::sqrt(611.0);
        sum += x;
        squares += x * x;
        beyond_two += std::abs(x) > 2;
        if (i > 0) neighbours += x * double{w.data<float>()[i - 1]} * std::sqrt(611.0);
    }
    const auto n = static_cast<double>(w.numel());  // standard error of a mean: 1.5e-3
    CHECK(std::abs(sum / n) < 0.01);
    CHECK(std::abs(squares / n - 1) < 0.02);
    CHECK(std::abs(neighbours / n) < 0.01);
    CHECK(std::abs(beyond_two / n - 0.0455) < 0.002);
    CHECK(as_other < w.numel() / 500);
    CHECK(as_other_seed < w.numel() / 500);
    const Tensor bf16 = RandomWeights(config, DType::bf16).tensor("a.weight", shape);
    for (int64_t i = 0; i < w.numel(); ++i)
        REQUIRE(bf16.data<uint16_t>()[i] == f32_to_bf16(w.data<float>()[i]));
}

TEST_CASE("bench_random_weights_leave_unused_tiles_zero_and_gates_open") {
    const ModelConfig config = small_config(config_11b());
    const RandomWeights weights(config, DType::bf16);
    const Model model = small_model(config, WeightType::as_stored);
    for (int64_t id = 1; id < config.vision.num_aspect_ratio_ids(); ++id)
        CHECK(model.vision().padding_tiles_equal(id));
    const int64_t hidden = config.vision.hidden_size;
    const Tensor table = weights.tensor(
        "vision_model.pre_tile_positional_embedding.embedding.weight",
        {config.vision.num_aspect_ratio_ids(), config.vision.max_num_tiles * hidden});
    const auto zeros = [&](int64_t id, int64_t tile) {
        const uint16_t* from = table.data<uint16_t>() + id * table.cols() + tile * hidden;
        return std::count(from, from + hidden, uint16_t{0});
    };
    CHECK(zeros(1, 0) < hidden / 10);  // one tile
    CHECK(zeros(1, 1) == hidden);
    CHECK(zeros(1, 3) == hidden);
    CHECK(zeros(6, 3) < hidden / 10);  // 2 x 2
    for (const char* gate : {"x.gate", "y.gate_attn", "z.cross_attn_attn_gate"}) {
        const float value = bf16_to_f32(weights.tensor(gate, {1}).data<uint16_t>()[0]);
        CHECK(value >= 0.25f);
        CHECK(value <= 0.75f);
    }
}

TEST_CASE("bench_check_holds_with_every_table_and_type") {
    ModelConfig config = small_config(config_11b());
    config.text.hidden_size = 24 * config.text.num_attention_heads;  // the reference is slow
    const auto check = [&](DType stored, WeightType type, std::optional<DType> kv_dtype = {},
                           std::optional<WeightType> vision = {}) {
        CAPTURE(std::string(dtype_name(stored)));
        ModelOptions options;
        options.weights = type;
        options.kv_dtype = kv_dtype;
        options.vision_weights = vision;
        if (type == WeightType::int8) options.vision_weights = WeightType::int8;
        std::vector<Checked> all = check_towers(config, stored, options);
        const std::vector<Checked> operations = check_operations(
            config, stored, options, TimedSizes{}, CheckedPaths::ops(), [](const std::string&) {});
        all.insert(all.end(), operations.begin(), operations.end());
        CHECK(all.size() > 20);
        for (const Checked& checked : all) {
            CAPTURE(checked.what);
            CHECK(checked.largest_error <= checked.tolerance / 2);
        }
    };
    for_each_table([&] {
        check(DType::bf16, WeightType::as_stored);
        check(DType::f32, WeightType::as_stored);
        check(DType::bf16, WeightType::int8);
        check(DType::bf16, WeightType::int4);
        check(DType::bf16, WeightType::as_stored, DType::i8);
        check(DType::f32, WeightType::as_stored, DType::i8);
    });
    check(DType::bf16, WeightType::f32);
    check(DType::f16, WeightType::as_stored);
    check(DType::f32, WeightType::bf16);
    for (const WeightType text : {WeightType::f32, WeightType::bf16, WeightType::int4}) {
        for (const WeightType vision : {WeightType::f32, WeightType::bf16, WeightType::int8})
            check(DType::bf16, text, {}, vision);
    }
}

TEST_CASE("bench_check_holds_each_tower_to_its_own_type") {
    ModelConfig config = small_config(config_11b());
    const auto tolerance_of = [&](WeightType text, WeightType vision, const std::string& what) {
        ModelOptions options;
        options.weights = text;
        options.vision_weights = vision;
        std::vector<Checked> all = check_towers(config, DType::bf16, options);
        for (const Checked& checked :
             check_operations(config, DType::bf16, options, TimedSizes{}, CheckedPaths::ops(),
                              [](const std::string&) {}))
            all.push_back(checked);
        for (const Checked& checked : all) {
            if (checked.what == what) return checked.tolerance;
        }
        FAIL("not checked: ", what);
        return 0.0;
    };
    constexpr WeightType f32 = WeightType::f32, bf16 = WeightType::bf16;
    CHECK(tolerance_of(f32, bf16, "text tower, with a picture of 1 tile") == 1e-4);
    CHECK(tolerance_of(f32, bf16, "text tower, without a picture") == 1e-4);
    CHECK(tolerance_of(f32, bf16, "vision tower, a picture of 1 tile") > 1e-2);
    CHECK(tolerance_of(f32, bf16, "attention of tiles") > 1e-2);
    CHECK(tolerance_of(f32, bf16, "attention of a prompt") == 1e-4);
    CHECK(tolerance_of(bf16, f32, "attention of tiles") == 1e-4);
    CHECK(tolerance_of(f32, f32, "vision tower, a picture of 4 tiles") == 1e-4);
}

TEST_CASE("bench_check_names_the_towers_that_it_compared") {
    std::string names;
    for (const Checked& checked :
         check_towers(small_config(config_11b()), DType::bf16, ModelOptions{}))
        names += checked.what + "; ";
    CHECK(names ==
          "vision tower, a picture of 1 tile; text tower, with a picture of 1 tile; "
          "text tower, without a picture; vision tower, a picture of 4 tiles; "
          "text tower, with a picture of 4 tiles; most probable token of 150; "
          "most probable token of 150; most probable token of 150; most probable token of 150; ");
}

TEST_CASE("bench_check_refuses_a_token_that_is_not_the_most_probable") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> logits = {1, 5, 5, -2};
    CHECK(check_most_probable("a token", logits, 1).what == "a token");
    CHECK(holds_all(error_of([&] { return check_most_probable("a token", logits, 2); }),
                    {"a token", "not timed", "expected 1", "found 2"}));
    CHECK(error_of([&] { return check_most_probable("x", logits, -1); }) != "");
    CHECK(error_of([&] { return check_most_probable("x", std::vector<float>{1, nan}, -1); }) == "");
    CHECK(error_of([&] { return check_most_probable("x", std::vector<float>{1, nan}, 0); }) != "");
}

TEST_CASE("bench_check_refuses_wrong_results") {
    const std::vector<float> right = {1, -2, 3, -4};
    CHECK(check_close("x", right, right, 0) == 0);
    std::vector<float> found = right;
    found[2] = 3.1f;
    CHECK(holds_all(error_of([&] { return check_close("a thing", found, right, 1e-2); }),
                    {"a thing", "not timed", "expected 3", "found 3.1"}));
    found[2] = std::numeric_limits<float>::quiet_NaN();
    CHECK(error_of([&] { return check_close("x", found, right, 1e9); }) != "");
    CHECK(error_of([&] { return check_close("x", found, std::span(right).first(3), 1); }) != "");
    const std::vector<float> zeros(4, 0.0f);
    CHECK(check_close("x", zeros, zeros, 1e-3) == 0);
    CHECK(error_of([&] { return check_close("x", right, zeros, 1e-3); }) != "");
}

TEST_CASE("bench_check_refuses_operations_that_are_wrong_somewhere") {
    const ModelConfig config = small_config(config_11b());
    TimedSizes timed;
    const auto error_with = [&](const CheckedPaths& paths) {
        return error_of([&] {
            return check_operations(config, DType::bf16, ModelOptions{}, timed, paths,
                                    [](const std::string&) {});
        });
    };
    const CheckedPaths right = CheckedPaths::ops();
    CHECK(error_with(right) == "");

    CheckedPaths wrong = right;  // the last row of every product of more than 8
    wrong.linear = [&](const Tensor& x, const Weight& w, Compute compute, Tensor& out) {
        right.linear(x, w, compute, out);
        if (out.rows() > 8) out.data<float>()[out.numel() - 1] *= 1.01f;
    };
    CHECK(error_with(wrong).find("67 rows") != std::string::npos);

    wrong = right;  // a mask that is one key off
    wrong.attention = [&](const Tensor& q, const KeysValues& kv, int64_t head_dim,
                          Visibility visible, Compute compute, Tensor& out) {
        if (visible.causal_from >= 0) visible.causal_from -= 300;
        right.attention(q, kv, head_dim, visible, compute, out);
    };
    CHECK(error_with(wrong).find("attention of a prompt") != std::string::npos);

    wrong = right;  // a picture that sees everything is not told from a right one, zeros are
    wrong.attention = [&](const Tensor& q, const KeysValues& kv, int64_t head_dim,
                          Visibility visible, Compute compute, Tensor& out) {
        right.attention(q, kv, head_dim, visible, compute, out);
        if (visible.first) out.fill_zero();
    };
    CHECK(error_with(wrong).find("attention of tiles") != std::string::npos);

    wrong = right;  // what lies behind five chunks of keys is forgotten
    wrong.attention = [&](const Tensor& q, const KeysValues& kv, int64_t head_dim,
                          Visibility visible, Compute compute, Tensor& out) {
        KeysValues first = kv;
        if (!visible.first) first.keys = std::min<int64_t>(kv.keys, 2560);
        right.attention(q, first, head_dim, visible, compute, out);
    };
    CHECK(error_with(wrong) == "");
    timed.prompt = timed.context = 2560;
    CHECK(error_with(wrong) == "");
    timed.context = 2900;
    CHECK(error_with(wrong).find("attention of a token behind 2900") != std::string::npos);
    timed.context = 0;
    timed.prompt = 2900;
    CHECK(error_with(wrong).find("attention of a prompt of 2900") != std::string::npos);
    CHECK(error_with(right) == "");

    wrong = right;  // products of more than 100 rows
    wrong.linear = [&](const Tensor& x, const Weight& w, Compute compute, Tensor& out) {
        right.linear(x, w, compute, out);
        if (out.rows() > 100) out.fill_zero();
    };
    timed = {};
    CHECK(error_with(wrong) == "");
    timed.text_rows = 130;
    CHECK(error_with(wrong).find("130 rows") != std::string::npos);
    timed = {};
    timed.picture_rows = 140;
    CHECK(error_with(wrong).find("140 rows") != std::string::npos);

    wrong = right;  // pictures of more than two tiles
    wrong.attention = [&](const Tensor& q, const KeysValues& kv, int64_t head_dim,
                          Visibility visible, Compute compute, Tensor& out) {
        right.attention(q, kv, head_dim, visible, compute, out);
        if (visible.first && q.rows() > 2 * config.vision.padded_patches()) out.fill_zero();
    };
    CHECK(error_with(wrong).find("attention of all tiles") != std::string::npos);
    CHECK(error_with(right) == "");
}

TEST_CASE("bench_work_of_a_picture_counts_equal_padding_tiles_once") {
    const ModelConfig config = small_config(config_11b());
    const Model model = small_model(config, WeightType::as_stored);
    const VisionConfig& v = config.vision;
    const auto hidden = static_cast<double>(v.hidden_size);
    const auto work = [&](double real_tiles, double computed_tiles) {
        const double rows = computed_tiles * static_cast<double>(v.padded_patches());
        const double real = real_tiles * static_cast<double>(v.num_patches());
        const double linear =
            rows * (4 * hidden * hidden + 2 * hidden * static_cast<double>(v.intermediate_size));
        const double attention = 2 * hidden * (real * rows + (rows - real) * real);
        return static_cast<double>(v.num_hidden_layers + v.num_global_layers) *
                   (linear + attention) +
               real * hidden * static_cast<double>(v.patch_pixels());
    };
    CHECK(model.vision().multiply_adds(1) == doctest::Approx(work(1, 2)));
    CHECK(model.vision().multiply_adds(2) == doctest::Approx(work(2, 3)));
    CHECK(model.vision().multiply_adds(4) == doctest::Approx(work(4, 4)));
}

TEST_CASE("bench_share_is_the_rate_by_the_limit_of_its_kind") {
    BenchReport report;
    report.compute = Compute::bf16;
    report.vision_compute = Compute::int8;
    report.last_level_cache = 1000;
    const auto share = [&](Workload::Kind kind, double bytes_touched) {
        Workload workload;
        workload.kind = kind;
        workload.bytes_touched = bytes_touched;
        BenchRow row;
        row.workload = &workload;
        row.run.work = 30e9;
        row.run.seconds = 2;
        row.limits = {20, 1, 100, 60, 150};
        return share_of_limit(row, report);
    };
    CHECK(share(Workload::Kind::decode, 8000).value() == doctest::Approx(0.75));  // of 20 GB/s
    CHECK(share(Workload::Kind::prefill, 0).value() == doctest::Approx(0.25));    // of 60 GFLOP/s
    CHECK(share(Workload::Kind::vision, 0).value() == doctest::Approx(0.1));      // of 150 GOP/s
    CHECK(!share(Workload::Kind::decode, 7999).has_value());                      // in the caches
    CHECK(!share(Workload::Kind::first_token, 0).has_value());                    // bf16 and int8
}

TEST_CASE("bench_leaves_decoding_out_only_where_memory_is_short_of_what_it_still_takes") {
    const ModelConfig config = small_config(config_11b());
    const Model made = small_model(config, WeightType::as_stored);
    const auto decodes = [](const Model& model, int64_t available,
                            std::vector<std::string>& left_out) {
        Workloads workloads(model, {0, {20}, 4, {60}, {1, 8}});
        left_out.clear();
        int64_t count = 0;
        for (const Workload& workload : workloads.list(available, left_out))
            count += workload.kind == Workload::Kind::decode;
        return count;
    };
    std::vector<std::string> left_out;
    const int64_t caches = 2 * 64 * 2 * config.text.kv_size() * 2;  // 2 layers, 60 + 4 tokens
    CHECK(decodes(made, 0, left_out) == 2);                         // unknown
    CHECK(decodes(made, 10 * caches, left_out) == 2);               // whatever the weights take
    CHECK(10 * caches < made.text().bytes_per_token(false));
    CHECK(left_out.empty());
    CHECK(decodes(made, 2 * caches, left_out) == 1);
    REQUIRE(left_out.size() == 1);
    CHECK(holds_all(left_out[0], {"decode at 60, 8 together", "not enough memory", "keys and"}));
    CHECK(decodes(made, 1, left_out) == 0);
    CHECK(left_out.size() == 2);

    // Weights of a file are to stay in memory beside that.
    const Model mapped = Model::load(demo_model(), ModelOptions{});
    const int64_t weights = mapped.text().bytes_per_token(false);
    CHECK(decodes(mapped, weights, left_out) == 0);
    CHECK(holds_all(left_out.at(0), {"mapped from files"}));
    CHECK(decodes(mapped, 4 * weights, left_out) == 2);
}

TEST_CASE("bench_work_of_a_prompt_is_the_sum_over_its_rows") {
    ModelConfig config = small_config(config_11b());
    config.text.num_hidden_layers = 4;
    config.text.cross_attention_layers = {1};
    const Model model = small_model(config, WeightType::as_stored);
    const TextConfig& t = config.text;
    const auto hidden = static_cast<double>(t.hidden_size);
    const double per_row = reads_per_token(config) - static_cast<double>(t.vocab_size) * hidden;
    double expected = static_cast<double>(t.vocab_size) * hidden;
    for (int64_t i = 0; i < 9; ++i)
        expected += per_row + 3 * 2 * hidden * static_cast<double>(i + 1);
    CHECK(prefill_multiply_adds(model, 9, {}) == doctest::Approx(expected));

    // Two pictures of 30 rows, 20 of them seen: the first row sees one of them.
    const double cross_per_row =
        2 * hidden * hidden + 3 * hidden * static_cast<double>(t.intermediate_size);
    for (int64_t i = 0; i < 9; ++i)
        expected += cross_per_row + 2 * hidden * 20 * (i == 0 ? 1.0 : 2.0);
    expected += 2 * 30 * 2 * hidden * static_cast<double>(t.kv_size());
    CHECK(prefill_multiply_adds(model, 9, {2, 30, 20}) == doctest::Approx(expected));
}

TEST_CASE("bench_workloads_count_what_they_do") {
    const ModelConfig config = small_config(config_11b());
    const Model model = small_model(config, WeightType::as_stored);
    Workloads workloads(model, {2, {20}, 3, {7, 40}, {1, 2}});
    std::vector<std::string> left_out;
    const std::vector<Workload> list = workloads.list(0, left_out);
    CHECK(left_out.empty());
    REQUIRE(list.size() == 7);  // 2 pictures, a prompt, both, 7 x 1, 7 x 2, 40 x 1
    CHECK(list[4].batch == 1);
    CHECK(list[5].batch == 2);
    CHECK(list[6].size == 40);
    for (const Workload& workload : list) {
        CAPTURE(workload.label);
        const BenchRun run = workload.run();
        CHECK(run.seconds > 0);
        CHECK(run.work > 0);
        CHECK(std::isfinite(run.busy));  // a matter of the clocks: how much is no test
    }

    // Three tokens behind 7: weights of all layers, keys and values of 8, 9 and 10 tokens in the
    // two layers of self-attention, and in the other those of two pictures.
    const TextConfig& t = config.text;
    const double weights = 2 * (reads_per_token(config) +
                                static_cast<double>(2 * t.hidden_size * t.hidden_size +
                                                    3 * t.hidden_size * t.intermediate_size));
    const double row = static_cast<double>(2 * t.kv_size() * 2);
    const double pictures = 2 * static_cast<double>(4 * config.vision.num_patches()) * row;
    const double caches = 2 * row * (8 + 9 + 10) + 3 * pictures;
    CHECK(list[4].run().work == doctest::Approx(3 * weights + caches));
    CHECK(list[5].run().work == doctest::Approx(3 * weights + 2 * caches));
    CHECK(list[4].run().tokens == 3);
    CHECK(list[5].run().tokens == 6);
    // The first token: two of the largest pictures, and the prompt behind them.
    CHECK(list[3].run().work == doctest::Approx(2 * list[0].run().work + list[2].run().work));
}

TEST_CASE("bench_prints_every_key_and_sensible_shares") {
    const ProgramResult result =
        bench({"-m", demo_model(), "--json", "--images", "1", "--repeats", "1", "--prompt-tokens",
               "64", "--new-tokens", "8", "-t", "1"});
    CAPTURE(result.err);
    REQUIRE(result.exit_code == 0);
    CHECK(result.err.find("checked: ") != std::string::npos);
    const Json report = Json::parse(result.out);
    for (const char* key :
         {"isa", "threads", "dtype", "load_s", "anonymous_mb", "limits", "limits_measured",
          "vision", "prefill", "first_token", "decode", "ratios", "checked"})
        CHECK(report.contains(key));
    for (const char* key : {"read_gb_s", "f32_gflop_s", "bf16_gflop_s", "int8_gop_s"}) {
        CHECK(report.at("limits").at(key).get<double>() > 0);
        for (const Json& limits : report.at("limits_measured"))
            CHECK(limits.at(key).get<double>() <= report.at("limits").at(key).get<double>());
    }
    CHECK(report.at("limits_measured").size() == 7);
    CHECK(report.at("vision").size() == 2);
    CHECK(report.at("vision").at(0).at("tiles") == 4);
    CHECK(report.at("vision").at(1).at("tiles") == 1);
    CHECK(report.at("prefill").at(0).at("tokens") == 64);
    CHECK(report.at("decode").at(0).at("context") == 64);
    CHECK(report.at("decode").at(0).at("batch") == 1);
    CHECK(report.at("decode").at(1).at("batch") == 8);
    CHECK(report.at("first_token").at(0).at("tiles") == 4);
    CHECK(report.at("first_token").at(0).at("tokens") == 64);
    for (const char* kind : {"vision", "prefill", "first_token", "decode"}) {
        for (const Json& row : report.at(kind)) {
            CHECK(row.at("seconds").get<double>() > 0);
            const char* rate = std::string(kind) == "decode" ? "gb_s" : "gflop_s";
            CHECK(row.at(rate).get<double>() > 0);
            if (row.at("share").is_null()) continue;
            CHECK(row.at("share").get<double>() > 0);
            CHECK(row.at("share").get<double>() < 1.2);
        }
    }
    CHECK(report.at("decode").at(0).at("share").is_null());  // it fits into the caches
    CHECK(report.at("ratios").size() == 2);
    CHECK(report.at("checked").size() > 20);
    std::string checked;
    for (const Json& one : report.at("checked")) checked += one.at("what").get<std::string>() + ";";
    CHECK(holds_all(
        checked,
        {"linear ", "attention of a prompt;", "attention of a token;", "attention of tiles;",
         "attention of all tiles;", "vision tower, a picture of 1 tile;",
         "vision tower, a picture of 4 tiles;", "text tower, with a picture of 4 tiles;",
         "text tower, without a picture;", "most probable token of 150;",
         "most probable token of " + std::to_string(demo_vocabulary()) + ";"}));
}

TEST_CASE("bench_takes_other_types_for_pictures_and_says_what_is_computed_in") {
    for (const char* vision : {"int8", "bf16"}) {
        CAPTURE(vision);
        const ProgramResult result =
            bench({"-m", demo_model(), "--dtype", "f32", "--vision-dtype", vision, "--json",
                   "--images", "1", "--repeats", "1", "--prompt-tokens", "4", "--new-tokens", "2"});
        CAPTURE(result.err);
        REQUIRE(result.exit_code == 0);
        CHECK(result.err.find("bf16 weights, computed in f32, pictures in ") != std::string::npos);
        const Json report = Json::parse(result.out);
        CHECK(report.at("dtype") == "bf16");
        CHECK(report.at("compute") == "f32");
        CHECK(report.at("vision_compute") == vision);
    }
    const ProgramResult f32 = bench({"-m", "a_published", "--vision-dtype", "bf16", "--repeats",
                                     "1", "--prompt-tokens", "4", "--new-tokens", "2"});
    CAPTURE(f32.err);
    REQUIRE(f32.exit_code == 0);
    CHECK(f32.out.find("f32 weights, computed in f32, pictures in bf16") != std::string::npos);
}

TEST_CASE("bench_compares_at_the_lengths_that_it_times") {
    const ProgramResult result = bench({"-m", demo_model(), "--json", "--repeats", "1",
                                        "--prompt-tokens", "3000", "--new-tokens", "5"});
    CAPTURE(result.err);
    REQUIRE(result.exit_code == 0);
    std::string checked;
    const Json report = Json::parse(result.out);
    for (const Json& one : report.at("checked")) checked += one.at("what").get<std::string>() + ";";
    CHECK(holds_all(checked, {"attention of a prompt of 3000;", "attention of a token behind 3005;",
                              ", 512 rows;"}));
}

TEST_CASE("bench_makes_weights_for_a_config") {
    const std::string config = demo_model() + "/config.json";
    const ProgramResult table =
        bench({"--config", config, "--random-weights", "--layers", "2", "--images", "1",
               "--repeats", "1", "--prompt-tokens", "16", "--new-tokens", "2", "--full"});
    CAPTURE(table.err);
    CHECK(table.exit_code == 0);
    for (const char* text : {"vision, 4 tiles", "vision, 1 tile", "prefill, 16 tokens",
                             "prefill, 2048 tokens", "decode at 16", "decode at 16, 8 together",
                             "GB/s", "GFLOP/s", "limits", "decode at 32768: more than"}) {
        CAPTURE(text);
        CHECK(table.out.find(text) != std::string::npos);
    }
    const ProgramResult f32 =
        bench({"--config", config, "--random-weights", "--dtype", "f32", "--repeats", "1",
               "--prompt-tokens", "4", "--new-tokens", "2", "--json"});
    REQUIRE(f32.exit_code == 0);
    const Json report = Json::parse(f32.out);
    CHECK(report.at("dtype") == "f32");
    CHECK(report.at("compute") == "f32");
    CHECK(report.at("vision").empty());
}

TEST_CASE("bench_command_lines_that_ask_for_too_much_are_errors") {
    const std::string config = demo_model() + "/config.json";
    const auto error = [](const std::vector<std::string>& more) {
        const ProgramResult result = bench(more);
        CHECK(result.exit_code == 1);
        CHECK(result.out.empty());
        return result.err;
    };
    CHECK(holds_all(error({"-m", demo_model(), "--prompt-tokens", "5000"}),
                    {"--prompt-tokens 5000", "4096", "max_position_embeddings"}));
    CHECK(
        holds_all(error({"-m", demo_model(), "--prompt-tokens", "4090", "--new-tokens", "10"}),
                  {"--prompt-tokens 4090", "--new-tokens 10", "4096", "max_position_embeddings"}));
    CHECK(holds_all(error({"-m", demo_model(), "--prompt-tokens", "2", "--images", "2"}),
                    {"--images 2", "--prompt-tokens 2"}));
    CHECK(holds_all(error({"--config", "/no/such.json", "--random-weights"}), {"/no/such.json"}));
    CHECK(holds_all(error({"--config", demo_model(), "--random-weights"}), {demo_model()}));

    CHECK(bench({}).exit_code == 2);
    CHECK(bench({"--random-weights"}).exit_code == 2);
    CHECK(bench({"--config", config}).exit_code == 2);
    CHECK(bench({"-m", demo_model(), "--config", config, "--random-weights"}).exit_code == 2);
    CHECK(bench({"-m", demo_model(), "--layers", "2"}).exit_code == 2);
    CHECK(bench({"--config", config, "--random-weights", "--layers", "0"}).exit_code == 2);
}
