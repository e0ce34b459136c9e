// The plan of device memory keeps what it promises: what it has room for is never refused, and nothing
// is taken from the device outside of it. On the emulated device, which counts.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "io/checkpoint.h"
#include "kernels/cuda/counts.h"
#include "kernels/cuda/emulated.h"
#include "mllama/checkpoint_weights.h"
#include "mllama/mllama.h"
#include "mllama/random_weights.h"
#include "tensor/gpu.h"
#include "tests/cuda/pictures.h"
#include "tests/goldens.h"

using namespace mllama;
using namespace mllama::test;

namespace {

/// The emulated device with so much memory left, while this lives.
class FreeBytes {
  public:
    explicit FreeBytes(int64_t bytes) { cuda::emulated::set_free_bytes(bytes); }
    ~FreeBytes() { cuda::emulated::set_free_bytes(before_); }
    FreeBytes(const FreeBytes&) = delete;
    FreeBytes& operator=(const FreeBytes&) = delete;

  private:
    int64_t before_ = gpu_info().free_bytes;
};

struct Shapes {
    const char* what;
    int64_t hidden, heads, kv_heads, intermediate, vocab;  // of the text tower
    int64_t vision_hidden, vision_heads, vision_intermediate, image_size, tiles;
    WeightType weights;
    std::optional<DType> kv_dtype;
    bool reads;  ///< a long prompt: slow
};

const Shapes shapes[] = {
    {"heads of 32", 64, 2, 1, 96, 80, 32, 1, 64, 28, 4, WeightType::bf16, {}, true},
    {"heads of 8, padded", 32, 4, 4, 40, 70, 48, 6, 20, 28, 4, WeightType::f32, {}, false},
    {"heads of 80, padded", 160, 2, 1, 24, 64, 160, 2, 16, 28, 2, WeightType::f32, {}, false},
    {"heads of 128", 256, 2, 1, 64, 64, 64, 2, 32, 42, 3, WeightType::bf16, DType::i8, false},
    {"wide text, narrow vision", 256, 4, 4, 8, 64, 16, 1, 8, 56, 4, WeightType::int8, DType::f32,
     false},
};

ModelConfig config_of(const Shapes& s) {
    ModelConfig config = ModelConfig::load(models_folder() + "/a_published");
    TextConfig& t = config.text;
    t.hidden_size = s.hidden;
    t.num_attention_heads = s.heads;
    t.num_key_value_heads = s.kv_heads;
    t.intermediate_size = s.intermediate;
    t.vocab_size = s.vocab;
    t.max_position_embeddings = 4000;
    t.num_hidden_layers = 4;
    t.cross_attention_layers = {1};
    config.image_token_id = s.vocab;
    VisionConfig& v = config.vision;
    v.hidden_size = s.vision_hidden;
    v.num_attention_heads = s.vision_heads;
    v.intermediate_size = s.vision_intermediate;
    v.num_hidden_layers = 2;
    v.num_global_layers = 1;
    v.intermediate_layers_indices = {0, 1};
    v.image_size = s.image_size;
    v.max_num_tiles = s.tiles;
    std::erase_if(v.supported_aspect_ratios,
                  [&](const auto& ratio) { return ratio.first * ratio.second > s.tiles; });
    const auto kept = static_cast<int64_t>(v.intermediate_layers_indices.size());
    v.vision_output_dim = (1 + kept) * v.hidden_size;
    return config;
}

ModelOptions options_of(const Shapes& s) {
    ModelOptions options;
    options.weights = s.weights;
    options.kv_dtype = s.kv_dtype;
    options.device = Device::cuda;
    return options;
}

/// A picture of grey tiles.
ProcessedImage grey(const VisionConfig& v, int64_t tiles) {
    ProcessedImage image = picture_of_tiles(v, tiles);
    std::fill(image.pixel_values.begin(), image.pixel_values.end(), 0.1f);
    return image;
}

/// Makes a text longer by so many tokens, as a forward would, without computing them.
void lengthen(Sequence& text, int64_t tokens) {
    for (KvCache& cache : text.self_attention) {
        if (cache.width() == 0) continue;
        cache.make_room(tokens);
        cache.advance(tokens);
    }
    text.advance(tokens);
}

int64_t blocks(const Sequence& text) {
    return KvLayout::blocks(text.length());
}

/// Texts that grow in turns, by different steps, until all tokens of the plan are there; then some end
/// and others take their place.
void fill_with_texts(const Model& model) {
    std::mt19937 random(1);
    const int64_t all = model.device_plan()->tokens / KvLayout::block;
    std::vector<Sequence> texts;
    for (int i = 0; i < 4; ++i) texts.push_back(model.new_sequence());
    for (int round = 0; round < 3; ++round) {
        int64_t used = 0;
        for (const Sequence& text : texts) used += blocks(text);
        while (used < all) {
            Sequence& text = texts[random() % texts.size()];
            const auto step = static_cast<int64_t>(random() % 1200 + 1);
            const int64_t room = (all - used + blocks(text)) * KvLayout::block - text.length();
            used -= blocks(text);
            lengthen(text, std::min(step, room));
            used += blocks(text);
        }
        texts[random() % texts.size()] = model.new_sequence();
        texts.erase(texts.begin());
        texts.push_back(model.new_sequence());
    }
}

/// As many pictures as the plan has, in `texts` texts by turns.
void fill_with_pictures(const Model& model, const VisionRows& picture, size_t texts) {
    std::vector<Sequence> sequences;
    for (size_t i = 0; i < texts; ++i) sequences.push_back(model.new_sequence());
    for (int64_t i = 0; i < model.device_plan()->images; ++i)
        model.add_image(sequences[static_cast<size_t>(i) % texts], picture);
}

/// A long prompt behind pictures, of which some rows see none, and a few tokens.
void read_and_answer(const Model& model) {
    Sequence text = model.new_sequence();
    const int64_t images = model.device_plan()->images;
    for (int64_t i = 0; i < images; ++i)
        model.add_image(text, model.encode_image(grey(model.config().vision, 1)));
    std::vector<int64_t> ids(2048, 5);
    std::fill_n(ids.begin() + 2, images, model.config().image_token_id);
    model.prefill(text, ids);
    text.truncate({ids.data(), 2040}, model.config().image_token_id);
    const int64_t id = 7;
    const SequenceInput input{&text, {&id, 1}, 1};
    for (int i = 0; i < 3; ++i) model.most_probable({&input, 1});
    for (int i = 0; i < 3; ++i) model.forward({&input, 1});
}

/// "--gpu-layers 12 would fit": 12; -1 if there is no such advice.
int64_t advised_layers(const std::string& message) {
    const std::string_view option = "--gpu-layers ";
    const size_t at = message.find(option);
    return at == std::string::npos ? -1 : std::stoll(message.substr(at + option.size()));
}

std::string refusal(const ModelConfig& config, const TensorSource& weights,
                    const ModelOptions& options) {
    try {
        Model::plan_gpu(config, weights, options);
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

}  // namespace

TEST_CASE("memory_plan_has_room_for_its_tokens_and_pictures_and_nothing_is_taken_outside") {
    gpu_take_workspace();
    for (const Shapes& s : shapes) {
        CAPTURE(std::string(s.what));
        const ModelConfig config = config_of(s);
        const RandomWeights weights(config, DType::bf16);
        const DevicePlan wished = Model::plan_gpu(config, weights, options_of(s));
        CHECK(wished.tokens == 4032);
        CHECK(wished.images == 4);
        // All that it wishes for, and less: fewer tokens and pictures.
        const int64_t least =
            wished.bytes() - (wished.tokens - 2048) * wished.kv_per_token - 3 * wished.kv_per_image;
        for (const int64_t room : {wished.bytes(), least}) {
            const FreeBytes free(room + gpu_overhead_bytes);
            const Model model = Model::build(config, weights, options_of(s));
            const DevicePlan& plan = *model.device_plan();
            CAPTURE(room);
            CHECK(plan.bytes() <= room);
            cuda::emulated::set_free_bytes(0);
            const int64_t before = cuda::counts.allocations.load();
            for (const int64_t tiles : {int64_t{1}, s.tiles}) {
                const VisionRows picture = model.encode_image(grey(config.vision, tiles));
                for (const size_t texts : {1, 3}) fill_with_pictures(model, picture, texts);
            }
            fill_with_texts(model);
            Sequence longest = model.new_sequence();
            longest.reserve(plan.tokens);
            longest = model.new_sequence();
            if (room == least && s.reads) read_and_answer(model);
            CHECK(cuda::counts.allocations.load() == before);
        }
    }
}

TEST_CASE("memory_plan_texts_beyond_it_take_more_or_say_that_there_is_none") {
    const Shapes& s = shapes[0];
    const ModelConfig config = config_of(s);
    const RandomWeights weights(config, DType::bf16);
    const Model model = Model::build(config, weights, options_of(s));
    Sequence text = model.new_sequence(), other = model.new_sequence();
    lengthen(text, model.device_plan()->tokens);
    {
        const FreeBytes none(0);
        CHECK_THROWS_WITH_AS(lengthen(other, 4000), doctest::Contains("out of device memory"),
                             Error);
    }
    const int64_t before = cuda::counts.allocations.load();
    lengthen(text, 4000);
    CHECK(cuda::counts.allocations.load() > before);
}

TEST_CASE("memory_plan_two_pictures_may_be_kept_at_once") {
    const ModelConfig config = config_of(shapes[0]);
    const RandomWeights weights(config, DType::bf16);
    const Model model = Model::build(config, weights, options_of(shapes[0]));
    const VisionRows first = model.encode_image(grey(config.vision, 1));
    const Tensor before = first.rows.to(Device::cpu);
    const VisionRows second = model.encode_image(grey(config.vision, 4));
    CHECK(compare_exactly(first.rows.to(Device::cpu), before) == "");
}

TEST_CASE("memory_plan_refuses_before_anything_is_quantised") {
    const std::string directory = models_folder() + "/a_published";
    ModelOptions options;
    options.device = Device::cuda;
    options.group_size = 32;
    int quantised = 0;
    options.quantising = [&](int64_t, int64_t) { ++quantised; };
    for (const WeightType type : {WeightType::int8, WeightType::int4}) {
        options.weights = type;
        options.device_or_cpu = false;
        const FreeBytes little(gpu_overhead_bytes);
        quantised = 0;
        CHECK_THROWS_WITH_AS(Model::load(directory, options), doctest::Contains("does not fit"),
                             Error);
        CHECK(quantised == 0);
        options.device_or_cpu = true;
        std::string why;
        options.stays_on_cpu = [&](const std::string& reason) { why = reason; };
        const Model model = Model::load(directory, options);
        CHECK(model.device() == Device::cpu);
        CHECK(why.find("does not fit") != std::string::npos);
        CHECK(quantised > 0);
    }
}

TEST_CASE("memory_plan_of_sizes_alone_is_the_one_that_is_loaded") {
    const std::string directory = models_folder() + "/a_published";
    const ModelConfig config = ModelConfig::load(directory);
    const Checkpoint checkpoint = open_checkpoint(directory);
    const CheckpointWeights weights(checkpoint, config.quantisation);
    for (const WeightType type : {WeightType::as_stored, WeightType::f32, WeightType::bf16,
                                  WeightType::int8, WeightType::int4}) {
        CAPTURE(static_cast<int>(type));
        ModelOptions options;
        options.weights = type;
        options.device = Device::cuda;
        int64_t moved = 0;
        options.uploading = [&](int64_t bytes, int64_t) { moved = bytes; };
        const DevicePlan plan = Model::plan_gpu(config, weights, options);
        const Model model = Model::load(directory, options);
        CHECK(model.device_plan()->bytes() == plan.bytes());
        CHECK(model.device_plan()->kv_per_token == plan.kv_per_token);
        CHECK(moved <= plan.weights);
        CHECK(moved > plan.weights * 9 / 10);  // rounded, each tensor to 256 bytes
    }
}

TEST_CASE("memory_plan_advises_as_many_layers_as_fit") {
    const ModelConfig config = config_of(shapes[0]);
    const RandomWeights weights(config, DType::bf16);
    ModelOptions options = options_of(shapes[0]);
    options.gpu_layers = 0;
    const DevicePlan none = Model::plan_gpu(config, weights, options);
    options.gpu_layers = std::nullopt;
    const DevicePlan all = Model::plan_gpu(config, weights, options);
    const auto least = [](const DevicePlan& plan) {
        return plan.bytes() + plan.overhead - (plan.tokens - 2048) * plan.kv_per_token -
               (plan.images - 1) * plan.kv_per_image;
    };
    int64_t different = 0, last = -1;
    for (int64_t bytes = least(none); bytes < least(all);
         bytes += (least(all) - least(none)) / 41) {
        const FreeBytes free(bytes);
        options.gpu_layers = std::nullopt;
        const int64_t layers = advised_layers(refusal(config, weights, options));
        REQUIRE(layers >= 0);
        options.gpu_layers = layers;
        CHECK(refusal(config, weights, options) == "");
        options.gpu_layers = layers + 1;
        CHECK(refusal(config, weights, options) != "");
        CHECK(layers >= last);
        different += layers != last ? 1 : 0;
        last = layers;
    }
    CHECK(different > 2);
    const FreeBytes little(least(none) - 256);
    options.gpu_layers = std::nullopt;
    CHECK(refusal(config, weights, options).find("has to stay on the CPU") != std::string::npos);
}
