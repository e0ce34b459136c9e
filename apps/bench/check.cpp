#include "apps/bench/check.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <utility>

#include "apps/bench/reference.h"
#include "kernels/error.h"
#include "kernels/reference.h"
#include "mllama/random_weights.h"

namespace mllama {
namespace {

/// Sums of many products in float32, against the same in double: the factors are the same.
constexpr double product_tolerance = 1e-4;

/// bfloat16 products may round the probabilities, and an input that differs in its last bit may be
/// rounded to the next bfloat16: errors of 2^-9 of a term, which add up over the layers.
double attention_tolerance(Compute compute) {
    return compute == Compute::bf16 ? 3e-2 : 1e-4;
}
double towers_tolerance(Compute compute) {
    return compute == Compute::bf16 ? 6e-2 : 1e-4;
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

using MatrixShape = std::pair<int64_t, int64_t>;  // (out_features, in_features)

/// Of all linear layers. Each row of a matrix is multiplied for itself, so the first ones of lm_head
/// stand for all.
std::set<MatrixShape> matrix_shapes(const ModelConfig& config) {
    constexpr int64_t most_logits = 16384 + 5;
    const TextConfig& t = config.text;
    const VisionConfig& v = config.vision;
    return {{t.hidden_size, t.hidden_size},
            {t.kv_size(), t.hidden_size},
            {t.intermediate_size, t.hidden_size},
            {t.hidden_size, t.intermediate_size},
            {std::min(t.vocab_size, most_logits), t.hidden_size},
            {v.hidden_size, v.patch_pixels()},
            {v.hidden_size, v.hidden_size},
            {v.intermediate_size, v.hidden_size},
            {v.hidden_size, v.intermediate_size},
            {t.hidden_size, v.vision_output_dim}};
}

Checked check_linear(const MatrixShape& shape, const Tensor& w, int64_t rows, Compute compute,
                     const CheckedPaths& paths) {
    const auto [out_features, in_features] = shape;
    const Tensor x = random_rows(rows, in_features, 4);
    Tensor out = Tensor::empty({rows, out_features}, DType::f32);
    paths.linear(x, w, compute, out);

    std::vector<float> found, expected;
    for (const int64_t r : sample(rows, 4, 5)) {
        for (const int64_t n : sample(out_features, 32, 6)) {
            const Tensor row = w.rows(n, n + 1);
            float sum = 0;
            reference::linear(x.data<float>() + r * in_features, 1, in_features,
                              {row.data(), row.dtype(), 1, in_features, in_features}, {}, compute,
                              &sum, 1);
            expected.push_back(sum);
            found.push_back(out.data<float>()[r * out_features + n]);
        }
    }
    Checked checked;
    checked.what = "linear " + std::to_string(out_features) + " x " + std::to_string(in_features) +
                   ", " + std::to_string(rows) + (rows == 1 ? " row" : " rows");
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
    cpu::Attention args;
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

CheckedPaths CheckedPaths::ops() {
    CheckedPaths paths;
    paths.linear = [](const Tensor& x, const Tensor& w, Compute compute, Tensor& out) {
        Linear{w, {}, compute}.forward(x, out);
    };
    paths.attention = [](const Tensor& q, const KeysValues& kv, int64_t head_dim,
                         Visibility visible, Compute compute, Tensor& out) {
        const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
        ops::attention(q, kv, {head_dim, scale}, Tensor(), visible, compute, out);
    };
    return paths;
}

std::vector<Checked> check_operations(const ModelConfig& config, DType stored, Compute compute,
                                      DType kv_dtype, const CheckedPaths& paths,
                                      const std::function<void(const std::string&)>& progress) {
    std::vector<Checked> all;
    const RandomWeights weights(config, stored == DType::bf16 ? DType::bf16 : DType::f32);
    for (const MatrixShape& shape : matrix_shapes(config)) {
        progress("linear " + std::to_string(shape.first) + " x " + std::to_string(shape.second));
        const Tensor made = weights.tensor("check.weight", {shape.first, shape.second});
        const Tensor w = ops::to_dtype(made, stored);
        for (const int64_t rows : {1, 8, 67})
            all.push_back(check_linear(shape, w, rows, compute, paths));
    }

    const TextConfig& t = config.text;
    const VisionConfig& v = config.vision;
    const TileLayout tiles = TileLayout::of(1, std::min<int64_t>(2, v.max_num_tiles), false);
    const KeyVisibility in_tiles = tile_visibility(tiles, v.num_patches(), v.padded_patches());
    const int64_t positions = tiles.tiles() * v.padded_patches();
    const DType picture_dtype = compute == Compute::f32 ? DType::f32 : DType::bf16;
    const AttentionProblem problems[] = {
        {"attention of a prompt", 300, 700, t.num_attention_heads, t.num_key_value_heads,
         t.head_dim(), causal(400), false},
        {"attention of a token", 1, 2050, t.num_attention_heads, t.num_key_value_heads,
         t.head_dim(), causal(2049), false},
        {"attention of tiles", positions, positions, v.num_attention_heads, v.num_attention_heads,
         v.head_dim(), in_tiles.of_all(), true}};
    for (const AttentionProblem& problem : problems) {
        progress(problem.what);
        all.push_back(check_attention(problem, problem.of_picture ? picture_dtype : kv_dtype,
                                      compute, paths));
    }
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

std::vector<Checked> check_towers(const ModelConfig& config, DType stored, WeightType type) {
    const ModelConfig small = small_config(config);
    const RandomWeightsAs source(small, stored);
    const Model model = Model::build(small, source, {type, Reference::transformers});
    const Compute compute = model.text().compute();
    const ReferenceModel reference(small, source, compute);
    const double tolerance = towers_tolerance(compute);

    std::vector<int64_t> ids = {small.image_token_id};
    for (int64_t i = 0; i < 9; ++i) ids.push_back(i * 37 % small.text.vocab_size);

    std::vector<Checked> all;
    const auto& ratios = small.vision.supported_aspect_ratios;
    const auto tiles = [](const auto& ratio) { return ratio.first * ratio.second; };
    const auto [fewest, most] =
        std::minmax_element(ratios.begin(), ratios.end(),
                            [&](const auto& a, const auto& b) { return tiles(a) < tiles(b); });
    for (const auto& shape : {fewest, most}) {
        ProcessedImage image;
        image.tiles_high = shape->first;
        image.tiles_wide = shape->second;
        image.num_tiles = tiles(*shape);
        image.aspect_ratio_id = shape - ratios.begin() + 1;
        image.tile_size = small.vision.image_size;
        const Tensor pixels =
            random_rows(image.num_tiles * small.vision.num_channels * small.vision.image_size,
                        small.vision.image_size, 11);
        image.pixel_values.assign(pixels.data<float>(), pixels.data<float>() + pixels.numel());
        const std::string of_tiles =
            " of " + std::to_string(image.num_tiles) + (image.num_tiles == 1 ? " tile" : " tiles");

        const VisionRows found = model.encode_image(image);
        const Rows expected = reference.encode_image(image);
        // Equal padding tiles are computed once: the model's rows are the first of the reference's.
        const auto count = static_cast<size_t>(found.rows.numel());
        Checked picture{"vision tower, a picture" + of_tiles, 0, tolerance};
        picture.largest_error = check_close(
            picture.what, {found.rows.data<float>(), count},
            {expected.values.data(), std::min(count, expected.values.size())}, tolerance);
        all.push_back(picture);

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
    return all;
}

}  // namespace mllama
