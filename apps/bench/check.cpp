#include "apps/bench/check.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "apps/bench/reference.h"
#include "kernels/error.h"
#include "kernels/reference.h"
#include "mllama/blank_picture.h"
#include "mllama/quantising_source.h"
#include "mllama/random_weights.h"

namespace mllama {
namespace {

/// Sums of many products in float32, against the same in double: the factors are the same.
constexpr double product_tolerance = 1e-4;

/// bfloat16 products may round the probabilities, and an input that differs in its last bit may be
/// rounded to the next bfloat16: errors of 2^-9 of a term, which add up over the layers. The same
/// holds of keys and values that are kept in fewer bits.
double attention_tolerance(Compute compute) {
    return compute == Compute::f32 ? 1e-4 : 3e-2;
}
double towers_tolerance(Compute compute, DType kv_dtype) {
    switch (compute) {
        case Compute::f32:
            return kv_dtype == DType::f32 ? 1e-4 : 6e-2;
        case Compute::bf16:
            return 6e-2;
        case Compute::int8:  // a number on the edge of two steps of 127 goes to either
            return 2e-1;
    }
    return 0;
}

Tensor random_rows(int64_t rows, int64_t width, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Tensor x = Tensor::empty({rows, width}, DType::f32);
    for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] = normal(random);
    return x;
}

/// The first, the last, and some between.
std::vector<int64_t> sample(int64_t n, int64_t wanted, uint32_t seed) {
    std::mt19937_64 random(seed);
    std::set<int64_t> chosen = {0, n - 1};
    for (int64_t i = 2; i < wanted; ++i)
        chosen.insert(static_cast<int64_t>(random() % static_cast<uint64_t>(n)));
    return {chosen.begin(), chosen.end()};
}

/// A linear layer of the model: its name, which says what it is held as, and (out_features,
/// in_features).
struct LinearShape {
    const char* module;
    int64_t out_features, in_features;

    auto operator<=>(const LinearShape&) const = default;
};

constexpr const char* text_module = "language_model.model.layers.0.self_attn.q_proj";
constexpr const char* projector_module = "multi_modal_projector";
constexpr const char* lm_head_module = "language_model.lm_head";
constexpr const char* vision_module = "vision_model.transformer.layers.0.mlp.fc1";
/// Of many rows: products with so many rows of w stand for all.
constexpr int64_t most_outputs_of_many = 1024 + 5;

bool is_of_vision(const LinearShape& shape) {
    return std::string_view(shape.module).starts_with("vision_model");
}

/// Of all linear layers. Each row of a matrix is multiplied for itself, so the first ones of lm_head
/// stand for all.
std::vector<LinearShape> linear_shapes(const ModelConfig& config) {
    constexpr int64_t most_logits = 16384 + 5;
    const TextConfig& t = config.text;
    const VisionConfig& v = config.vision;
    return {{text_module, t.hidden_size, t.hidden_size},
            {text_module, t.kv_size(), t.hidden_size},
            {text_module, t.intermediate_size, t.hidden_size},
            {text_module, t.hidden_size, t.intermediate_size},
            {lm_head_module, std::min(t.vocab_size, most_logits), t.hidden_size},
            {"vision_model.patch_embedding", v.hidden_size, v.patch_pixels()},
            {vision_module, v.hidden_size, v.hidden_size},
            {vision_module, v.intermediate_size, v.hidden_size},
            {vision_module, v.hidden_size, v.intermediate_size},
            {projector_module, t.hidden_size, v.vision_output_dim}};
}

Checked check_linear(const LinearShape& shape, const Weight& w, int64_t rows, Compute compute,
                     const CheckedPaths& paths) {
    const Tensor x = random_rows(rows, shape.in_features, 4);
    Tensor out = Tensor::empty({rows, shape.out_features}, DType::f32);
    paths.linear(x, w, compute, out);

    std::vector<float> found, expected;
    for (const int64_t r : sample(rows, 4, 5)) {
        for (const int64_t n : sample(shape.out_features, 32, 6)) {
            expected.push_back(reference::linear_element(x.data<float>() + r * shape.in_features,
                                                         w.matrix(), n, compute));
            found.push_back(out.data<float>()[r * shape.out_features + n]);
        }
    }
    Checked checked;
    checked.what = "linear " + std::to_string(shape.out_features) + " x " +
                   std::to_string(shape.in_features) + " " + std::string(w.type_name()) + ", " +
                   std::to_string(rows) + (rows == 1 ? " row" : " rows");
    checked.tolerance = product_tolerance;
    checked.largest_error = check_close(checked.what, found, expected, checked.tolerance);
    return checked;
}

/// An attention of the model, with random q (queries, heads * head_dim) and k, v (keys, kv_heads *
/// head_dim).
struct AttentionProblem {
    std::string what;
    int64_t queries, keys, heads, kv_heads, head_dim;
    Visibility visible;
    bool of_picture;  ///< keys and values are kept as the products take them
};

/// What the reference makes of one query.
std::vector<float> reference_query(const AttentionProblem& p, const Tensor& q, const KeysValues& kv,
                                   int64_t query, Compute compute) {
    Attention args;
    args.q = q.data<float>() + query * q.cols();
    args.k = kv.k.data();
    args.v = kv.v.data();
    args.kv_dtype = kv.k.dtype();
    args.k_scales = kv.k_scales.defined() ? kv.k_scales.data<float>() : nullptr;
    args.v_scales = kv.v_scales.defined() ? kv.v_scales.data<float>() : nullptr;
    args.queries = 1;
    args.keys = p.keys;
    args.heads = p.heads;
    args.kv_heads = p.kv_heads;
    args.head_dim = p.head_dim;
    args.q_stride = q.cols();
    args.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
    args.visible = p.visible;
    if (args.visible.first) args.visible.first += query;
    if (args.visible.causal_from >= 0) args.visible.causal_from += query;
    std::vector<float> out(static_cast<size_t>(q.cols()));
    reference::attention(args, compute, out.data(), q.cols());
    return out;
}

Checked check_attention(const AttentionProblem& p, DType kv_dtype, Compute compute,
                        const CheckedPaths& paths) {
    const Tensor q = random_rows(p.queries, p.heads * p.head_dim, 7);
    const Tensor k = random_rows(p.keys, p.kv_heads * p.head_dim, 8);
    const Tensor v = random_rows(p.keys, p.kv_heads * p.head_dim, 9);
    Tensor out = Tensor::empty(q.shape(), DType::f32);
    KvCache cache(p.kv_heads, p.head_dim, kv_dtype);
    cache.append(k, v);
    const KeysValues kv = cache.keys_values();
    paths.attention(q, kv, p.head_dim, p.visible, compute, out);

    const std::vector<int64_t> queries = sample(p.queries, 4, 10);
    std::vector<std::vector<float>> of_queries(queries.size());
    ops::parallel_for(static_cast<int64_t>(queries.size()), [&](int64_t i) {
        const auto at = static_cast<size_t>(i);
        of_queries[at] = reference_query(p, q, kv, queries[at], compute);
    });
    std::vector<float> found, expected;
    for (size_t i = 0; i < queries.size(); ++i) {
        const float* row = out.data<float>() + queries[i] * out.cols();
        found.insert(found.end(), row, row + out.cols());
        expected.insert(expected.end(), of_queries[i].begin(), of_queries[i].end());
    }
    Checked checked{p.what, 0, attention_tolerance(compute)};
    checked.largest_error = check_close(p.what, found, expected, checked.tolerance);
    return checked;
}

/// The logits of texts that the model has been given piece by piece: the first in chunks, its last
/// tokens one by one beside the second, which has no picture.
struct PiecewiseLogits {
    std::vector<float> first, second;  ///< (vocab_size) each, behind the last token
};

PiecewiseLogits logits_piece_by_piece(const Model& model, const VisionRows& picture,
                                      std::span<const int64_t> ids) {
    constexpr size_t decoded = 3;
    const size_t prefilled = ids.size() - decoded;
    Sequence first = model.new_sequence();
    model.add_image(first, picture);
    model.prefill(first, ids.first(prefilled), 5);
    Sequence second = model.new_sequence();
    model.prefill(second, ids.subspan(1, prefilled - 1));
    PiecewiseLogits result;
    for (size_t i = prefilled; i < ids.size(); ++i) {
        const SequenceInput inputs[] = {{&second, ids.subspan(i, 1), 1},
                                        {&first, ids.subspan(i, 1), 1}};
        const Tensor logits = model.forward(inputs);
        const float* values = logits.data<float>();
        result.second.assign(values, values + logits.cols());
        result.first.assign(values + logits.cols(), values + 2 * logits.cols());
    }
    return result;
}

std::span<const float> last_row(const Rows& rows) {
    return {rows.row(rows.count - 1), static_cast<size_t>(rows.width)};
}

}  // namespace

double check_close(const std::string& what, std::span<const float> found,
                   std::span<const float> expected, double tolerance) {
    if (found.size() != expected.size()) {
        fail("bench: ", what, ": expected ", expected.size(), " numbers, found ", found.size());
    }
    double squares = 0;
    for (const float value : expected) squares += double{value} * value;
    const double unit = std::sqrt(squares / static_cast<double>(expected.size()));
    double largest = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        const double error = std::abs(double{found[i]} - double{expected[i]});
        if (!(error <= tolerance * unit)) {  // a NaN is not
            fail("bench: ", what, ": is not timed: differs from the reference: expected ",
                 expected[i], " within ", tolerance * unit, ", found ", found[i]);
        }
        largest = std::max(largest, error);
    }
    return unit > 0 ? largest / unit : 0;
}

namespace {

/// The same rule where a device can read it.
Visibility moved(const Visibility& visible, int64_t queries, Arena& arena) {
    if (!visible.first || arena.device() == Device::cpu) return visible;
    KeyVisibility rule;
    for (int64_t i = 0; i < queries; ++i) {
        rule.add_query({visible.ranges + visible.first[i], visible.ranges + visible.first[i + 1]});
    }
    return rule.on(arena);
}

}  // namespace

CheckedPaths CheckedPaths::ops(Device device) {
    CheckedPaths paths;
    paths.linear = [device](const Tensor& x, const Weight& w, Compute compute, Tensor& out) {
        Linear layer;
        layer.weight = w;
        layer.compute = compute;
        layer.for_each_tensor([&](Tensor& tensor) { tensor = tensor.to(device); });
        Tensor result = Tensor::empty(out.shape(), DType::f32, device);
        layer.forward(x.to(device), result);
        out.copy_from(result);
    };
    paths.attention = [device](const Tensor& q, const KeysValues& kv, int64_t head_dim,
                               Visibility visible, Compute compute, Tensor& out) {
        const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
        const KeysValues there{kv.k.to(device), kv.v.to(device), kv.keys, kv.k_scales.to(device),
                               kv.v_scales.to(device)};
        Arena arena(device);
        Tensor result = Tensor::empty(out.shape(), DType::f32, device);
        ops::attention(q.to(device), there, {head_dim, scale}, Tensor(),
                       moved(visible, q.rows(), arena), compute, result);
        out.copy_from(result);
    };
    return paths;
}

namespace {

/// Random weights of any float type.
class RandomWeightsAs : public TensorSource {
  public:
    RandomWeightsAs(const ModelConfig& config, DType stored)
        : weights_(config, stored == DType::bf16 ? DType::bf16 : DType::f32), stored_(stored) {}

    [[nodiscard]] Tensor tensor(const std::string& name,
                                const std::vector<int64_t>& shape) const override {
        return ops::to_dtype(weights_.tensor(name, shape), stored_);
    }

  private:
    RandomWeights weights_;
    DType stored_;
};

}  // namespace

std::vector<Checked> check_operations(const ModelConfig& config, DType stored,
                                      const ModelOptions& options, const TimedSizes& timed,
                                      const CheckedPaths& paths,
                                      const std::function<void(const std::string&)>& progress) {
    std::vector<Checked> all;
    const RandomWeightsAs random(config, stored);
    const QuantisingSource source(random, options.quantisation(), config, {});
    Compute text_compute = Compute::f32, vision_compute = Compute::f32;  // of attention
    for (const LinearShape& shape : linear_shapes(config)) {
        progress("linear " + std::to_string(shape.out_features) + " x " +
                 std::to_string(shape.in_features));
        const bool of_vision = is_of_vision(shape);
        const WeightLoader loader(source, of_vision ? options.vision() : options.weights);
        const Linear layer = loader.linear(shape.module, shape.out_features, shape.in_features);
        if (shape.module == text_module) text_compute = layer.compute;
        if (shape.module == vision_module) vision_compute = layer.compute;
        for (const int64_t rows : {1, 8, 67})
            all.push_back(check_linear(shape, layer.weight, rows, layer.compute, paths));
        const bool of_pictures = of_vision || shape.module == projector_module;
        const int64_t rows = of_pictures ? timed.picture_rows : timed.text_rows;
        if (rows <= 67 || shape.module == lm_head_module) continue;  // lm_head: of last rows
        const LinearShape first{shape.module, std::min(shape.out_features, most_outputs_of_many),
                                shape.in_features};
        const Linear few = loader.linear(first.module, first.out_features, first.in_features);
        all.push_back(check_linear(first, few.weight, rows, few.compute, paths));
    }

    const TextConfig& t = config.text;
    const VisionConfig& v = config.vision;
    const TileLayout tiles = TileLayout::of(1, std::min<int64_t>(2, v.max_num_tiles), false);
    const KeyVisibility in_tiles = tile_visibility(tiles, v.num_patches(), v.padded_patches());
    const int64_t positions = tiles.tiles() * v.padded_patches();
    const auto kept_as = [](Compute compute) {
        return compute == Compute::f32 ? DType::f32 : DType::bf16;
    };
    const auto of_text = [&](const std::string& what, int64_t queries, int64_t keys,
                             int64_t kv_heads) {
        const int64_t group = t.num_attention_heads / t.num_key_value_heads;
        return AttentionProblem{
            what, queries, keys, kv_heads * group, kv_heads, t.head_dim(), causal(keys - queries),
            false};
    };
    std::vector<AttentionProblem> problems = {
        of_text("attention of a prompt", 300, 700, t.num_key_value_heads),
        of_text("attention of a token", 1, 2050, t.num_key_value_heads),
        {"attention of tiles", positions, positions, v.num_attention_heads, v.num_attention_heads,
         v.head_dim(), in_tiles.of_all(), true}};
    const KeyVisibility in_most_tiles =
        tile_visibility(TileLayout::of(v.max_num_tiles, v.max_num_tiles, false), v.num_patches(),
                        v.padded_patches());
    const int64_t most_positions = v.max_num_tiles * v.padded_patches();
    if (timed.picture_rows >= most_positions && most_positions > positions) {
        problems.push_back({"attention of all tiles", most_positions, most_positions, 1, 1,
                            v.head_dim(), in_most_tiles.of_all(), true});
    }
    const int64_t few_heads = std::min<int64_t>(2, t.num_key_value_heads);
    if (timed.prompt > 700) {
        problems.push_back(of_text("attention of a prompt of " + std::to_string(timed.prompt), 67,
                                   timed.prompt, few_heads));
    }
    if (timed.context > 2050) {
        problems.push_back(of_text("attention of a token behind " + std::to_string(timed.context),
                                   1, timed.context, few_heads));
    }
    const DType kv_dtype = options.kv_dtype.value_or(kept_as(text_compute));
    for (const AttentionProblem& problem : problems) {
        progress(problem.what);
        all.push_back(problem.of_picture
                          ? check_attention(problem, kept_as(vision_compute), vision_compute, paths)
                          : check_attention(problem, kv_dtype, text_compute, paths));
    }
    return all;
}

std::vector<Checked> check_layers(const Model& model) {
    std::vector<Checked> all;
    std::set<std::tuple<std::string_view, int64_t, int64_t>> seen;
    model.text().for_each_linear(true, [&](const Linear& layer) {
        const Device device = layer.weight.data.device();
        if (layer.weight.coding == Coding::plain) return;
        if (!seen.insert({layer.weight.type_name(), layer.weight.rows, layer.weight.cols}).second)
            return;
        Weight w = layer.weight;  // where the reference can read it
        w.for_each_tensor([](Tensor& tensor) { tensor = tensor.to(Device::cpu); });
        const LinearShape shape{"", w.rows, w.cols};
        for (const int64_t rows : {1, 8, 67})
            all.push_back(check_linear(shape, w, rows, layer.compute, CheckedPaths::ops(device)));
    });
    return all;
}

ModelConfig small_config(const ModelConfig& config) {
    ModelConfig small = config;
    TextConfig& t = small.text;
    const int64_t head_dim = t.head_dim();
    const int64_t group = t.num_attention_heads / t.num_key_value_heads;
    const bool wide = 2 * group * head_dim > 512;  // the reference is slow
    t.num_key_value_heads = std::min<int64_t>(wide ? 1 : 2, t.num_key_value_heads);
    t.num_attention_heads = group * t.num_key_value_heads;
    t.hidden_size = t.num_attention_heads * head_dim;
    t.intermediate_size = std::min<int64_t>(t.intermediate_size, 200);
    t.vocab_size = std::min<int64_t>(t.vocab_size, 150);
    t.num_hidden_layers = 3;
    t.cross_attention_layers.clear();
    if (!config.text.cross_attention_layers.empty()) t.cross_attention_layers = {1};
    small.image_token_id = t.vocab_size;

    VisionConfig& v = small.vision;
    const int64_t vision_head_dim = v.head_dim();
    v.num_attention_heads = std::min<int64_t>(2, v.num_attention_heads);
    v.hidden_size = v.num_attention_heads * vision_head_dim;
    v.intermediate_size = std::min<int64_t>(v.intermediate_size, 200);
    v.num_hidden_layers = std::min<int64_t>(v.num_hidden_layers, 2);
    v.num_global_layers = std::min<int64_t>(v.num_global_layers, 1);
    v.image_size = std::min<int64_t>(v.patches_per_side(), 3) * v.patch_size;
    v.intermediate_layers_indices = {0, v.num_hidden_layers - 1};
    v.vision_output_dim = 3 * v.hidden_size;
    return small;
}

std::vector<Checked> check_towers(const ModelConfig& config, DType stored,
                                  const ModelOptions& options) {
    const ModelConfig small = small_config(config);
    const RandomWeightsAs random(small, stored);
    const Model model = Model::build(small, random, options);
    const Compute compute = model.text().compute();
    const QuantisingSource source(random, options.quantisation(), small, {});
    const Compute vision_compute = model.vision().compute();
    const ReferenceModel reference(small, source, options,
                                   {compute, vision_compute, model.kv_dtype()});
    const double tolerance = towers_tolerance(compute, model.kv_dtype());
    // Behind the vision tower stands the projector, which is computed as the text tower is.
    const double picture_tolerance = std::max(towers_tolerance(vision_compute, DType::f32),
                                              towers_tolerance(compute, DType::f32));

    std::vector<int64_t> ids = {small.image_token_id};
    for (int64_t i = 0; i < 9; ++i) ids.push_back(i * 37 % small.text.vocab_size);

    std::vector<Checked> all;
    const auto& ratios = small.vision.supported_aspect_ratios;
    const auto tiles = [](const auto& ratio) { return ratio.first * ratio.second; };
    const auto [fewest, most] =
        std::minmax_element(ratios.begin(), ratios.end(),
                            [&](const auto& a, const auto& b) { return tiles(a) < tiles(b); });
    for (const auto& shape : {fewest, most}) {
        ProcessedImage image =
            blank_picture(small.vision, static_cast<size_t>(shape - ratios.begin()));
        const Tensor pixels =
            random_rows(image.num_tiles * small.vision.num_channels * small.vision.image_size,
                        small.vision.image_size, 11);
        image.pixel_values.assign(pixels.data<float>(), pixels.data<float>() + pixels.numel());
        const std::string of_tiles =
            " of " + std::to_string(image.num_tiles) + (image.num_tiles == 1 ? " tile" : " tiles");

        const VisionRows found = model.encode_image(image);
        const Tensor rows = found.rows.to(Device::cpu);
        Rows expected = reference.encode_image(image);
        // Equal padding tiles are computed once: the model's rows are the first of the reference's.
        const auto count = static_cast<size_t>(found.rows.numel());
        Checked picture{"vision tower, a picture" + of_tiles, 0, picture_tolerance};
        picture.largest_error = check_close(
            picture.what, {rows.data<float>(), count},
            {expected.values.data(), std::min(count, expected.values.size())}, picture_tolerance);
        all.push_back(picture);
        // The text tower is held to its own errors, not to those of the picture.
        std::copy_n(rows.data<float>(), count, expected.values.begin());

        const PiecewiseLogits logits = logits_piece_by_piece(model, found, ids);
        Checked with_picture{"text tower, with a picture" + of_tiles, 0, tolerance};
        with_picture.largest_error =
            check_close(with_picture.what, logits.first,
                        last_row(reference.logits(ids, &expected, image.num_tiles)), tolerance);
        all.push_back(with_picture);
        if (shape != fewest) continue;
        Checked without{"text tower, without a picture", 0, tolerance};
        without.largest_error = check_close(
            without.what, logits.second,
            last_row(reference.logits(std::span(ids).subspan(1), nullptr, 0)), tolerance);
        all.push_back(without);
    }
    for (const Checked& decoding : check_decoding(model)) all.push_back(decoding);
    return all;
}

Checked check_most_probable(const std::string& what, std::span<const float> logits, int64_t found) {
    int64_t expected = -1;
    reference::argmax(logits.data(), 1, static_cast<int64_t>(logits.size()), &expected);
    if (found != expected) {
        fail("bench: ", what, ": is not timed: expected ", expected, ", found ", found);
    }
    return {what, 0, product_tolerance};
}

std::vector<Checked> check_decoding(const Model& model) {
    const int64_t vocab_size = model.config().text.vocab_size;
    const int64_t ids[] = {vocab_size / 3, vocab_size / 2, vocab_size - 1};
    // Twins: what one is asked for, the other has already been told.
    Sequence by_logits[] = {model.new_sequence(), model.new_sequence()};
    Sequence by_token[] = {model.new_sequence(), model.new_sequence()};
    const auto inputs = [&](Sequence(&of)[2], size_t step) {
        const std::span<const int64_t> all(ids);
        return std::vector<SequenceInput>{{&of[0], all.subspan(step, 1), 1},
                                          {&of[1], all.subspan(step + 1, 1), 1}};
    };
    std::vector<Checked> checked;
    for (size_t step = 0; step < 2; ++step) {
        const std::vector<SequenceInput> told = inputs(by_logits, step);
        const Tensor forward = model.forward(told);
        const Tensor logits = forward.clone();
        const std::vector<SequenceInput> asked = inputs(by_token, step);
        const std::span<const int64_t> found = model.most_probable(asked);
        for (size_t i = 0; i < 2; ++i) {
            const float* row = logits.data<float>() + static_cast<int64_t>(i) * logits.cols();
            checked.push_back(
                check_most_probable("most probable token of " + std::to_string(logits.cols()),
                                    {row, static_cast<size_t>(logits.cols())}, found[i]));
        }
    }
    return checked;
}

}  // namespace mllama
