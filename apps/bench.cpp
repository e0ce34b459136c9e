// mllama bench: how long the parts take with a checkpoint: a picture, a prompt, a token.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <random>

#include "apps/cli.h"
#include "io/json.h"

namespace mllama {
namespace {

struct Arguments {
    ModelArguments model;
    int64_t prompt_tokens = 512;
    int64_t new_tokens = 32;
    int64_t images = 0;
    int64_t repeats = 3;
    bool json = false;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The best of several runs: what the machine can do when nothing disturbs it.
template <class Work>
double best_of(int64_t repeats, const Work& work) {
    double best = 1e300;
    for (int64_t i = 0; i < repeats; ++i) {
        const auto start = Clock::now();
        work();
        best = std::min(best, seconds_since(start));
    }
    return best;
}

/// Memory of this process that is not backed by files, in MB.
double anonymous_mb() {
    std::ifstream status("/proc/self/status");
    std::string line;
    while (std::getline(status, line)) {
        long long kb = 0;
        if (std::sscanf(line.c_str(), "RssAnon: %lld kB", &kb) == 1)
            return static_cast<double>(kb) * 1024 / 1e6;
    }
    return 0;
}

/// A picture of noise that is cut into `high` x `wide` tiles, as the processor would give it.
ProcessedImage noise_picture(const VisionConfig& config, size_t aspect_ratio) {
    const auto [high, wide] = config.supported_aspect_ratios[aspect_ratio];
    ProcessedImage image;
    image.tiles_high = high;
    image.tiles_wide = wide;
    image.num_tiles = high * wide;
    image.aspect_ratio_id = static_cast<int64_t>(aspect_ratio) + 1;
    image.tile_size = config.image_size;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    image.pixel_values.resize(
        static_cast<size_t>(image.num_tiles * 3 * config.image_size * config.image_size));
    for (float& value : image.pixel_values) value = normal(random);
    return image;
}

/// The supported shape with the most tiles, the squarest of those, and the one of a single tile.
std::vector<size_t> shapes_to_time(const VisionConfig& config) {
    size_t most = 0;
    size_t one = 0;
    const auto tiles = [&](size_t i) {
        return config.supported_aspect_ratios[i].first * config.supported_aspect_ratios[i].second;
    };
    const auto skew = [&](size_t i) {
        return std::abs(config.supported_aspect_ratios[i].first -
                        config.supported_aspect_ratios[i].second);
    };
    for (size_t i = 0; i < config.supported_aspect_ratios.size(); ++i) {
        if (tiles(i) > tiles(most) || (tiles(i) == tiles(most) && skew(i) < skew(most))) most = i;
        if (tiles(i) == 1) one = i;
    }
    if (tiles(one) != 1 || tiles(most) == 1) return {most};
    return {most, one};
}

std::vector<int64_t> random_tokens(int64_t count, int64_t vocab_size) {
    std::mt19937_64 random(2);
    std::vector<int64_t> ids(static_cast<size_t>(count));
    for (int64_t& id : ids) id = static_cast<int64_t>(random() % static_cast<uint64_t>(vocab_size));
    return ids;
}

class Bench {
  public:
    Bench(const Model& model, const Arguments& arguments) : model_(model), arguments_(arguments) {}

    OrderedJson vision() {
        OrderedJson rows = OrderedJson::array();
        if (arguments_.images == 0) return rows;
        for (const size_t shape : shapes_to_time(model_.config().vision)) {
            const ProcessedImage picture = noise_picture(model_.config().vision, shape);
            VisionRows result;
            const double seconds =
                best_of(arguments_.repeats, [&] { result = model_.encode_image(picture); });
            if (image_.rows.rows() < result.rows.rows()) image_ = result;
            const double flop = 2 * model_.vision().multiply_adds(picture.num_tiles);
            rows.push_back({{"tiles", picture.num_tiles},
                            {"seconds", seconds},
                            {"gflop_s", flop / seconds / 1e9}});
            say("vision, %lld tiles: %.3f s, %.1f GFLOP/s",
                static_cast<long long>(picture.num_tiles), seconds, flop / seconds / 1e9);
        }
        return rows;
    }

    OrderedJson prefill() {
        const auto ids = random_tokens(arguments_.prompt_tokens, model_.config().text.vocab_size);
        const double seconds = best_of(arguments_.repeats, [&] {
            Sequence sequence = start();
            model_.prefill(sequence, ids);
        });
        const auto tokens = static_cast<double>(ids.size());
        const double flop = 2 * prefill_multiply_adds();
        say("prefill, %.0f tokens: %.3f s, %.1f tokens/s, %.1f GFLOP/s", tokens, seconds,
            tokens / seconds, flop / seconds / 1e9);
        return OrderedJson::array({{{"tokens", ids.size()},
                                    {"seconds", seconds},
                                    {"tokens_per_s", tokens / seconds},
                                    {"gflop_s", flop / seconds / 1e9}}});
    }

    OrderedJson decode() {
        const auto ids = random_tokens(arguments_.prompt_tokens, model_.config().text.vocab_size);
        Sequence sequence = start();
        sequence.reserve(arguments_.prompt_tokens + arguments_.new_tokens);
        model_.prefill(sequence, ids);
        const int64_t token = ids.back();
        const SequenceInput input{&sequence, {&token, 1}, 1};
        double bytes = 0;
        const auto start_time = Clock::now();
        for (int64_t i = 0; i < arguments_.new_tokens; ++i) {
            model_.forward({&input, 1});
            bytes += static_cast<double>(model_.text().bytes_per_token(sequence.has_images()) +
                                         sequence.cache_bytes());
        }
        const double seconds = seconds_since(start_time);
        const auto tokens = static_cast<double>(arguments_.new_tokens);
        say("decode at %lld tokens: %.2f tokens/s, %.1f GB/s",
            static_cast<long long>(arguments_.prompt_tokens), tokens / seconds,
            bytes / seconds / 1e9);
        return OrderedJson::array({{{"context", arguments_.prompt_tokens},
                                    {"batch", 1},
                                    {"tokens_per_s", tokens / seconds},
                                    {"gb_s", bytes / seconds / 1e9}}});
    }

  private:
    /// An empty text, with the picture if pictures are timed. Random tokens then see no picture,
    /// which costs the same.
    Sequence start() {
        Sequence sequence = model_.new_sequence();
        for (int64_t i = 0; i < arguments_.images; ++i) model_.add_image(sequence, image_);
        return sequence;
    }

    /// Linear layers of all rows, causal self-attention, attention to pictures, keys and values of
    /// pictures, lm_head of one row.
    [[nodiscard]] double prefill_multiply_adds() const {
        const TextConfig& t = model_.config().text;
        const auto rows = static_cast<double>(arguments_.prompt_tokens);
        const auto hidden = static_cast<double>(t.hidden_size);
        const auto cross = static_cast<double>(t.cross_attention_layers.size());
        const double self_attention =
            (static_cast<double>(t.num_hidden_layers) - cross) * rows * (rows + 1) * hidden;
        const double head = hidden * static_cast<double>(t.vocab_size);
        double images = 0;
        if (arguments_.images > 0) {
            const auto keys = static_cast<double>(arguments_.images * image_.rows.rows());
            images = cross * (rows * keys * 2 * hidden +
                              keys * 2 * hidden * static_cast<double>(t.kv_size()));
        }
        return rows * model_.text().multiply_adds_per_row(arguments_.images > 0) + self_attention +
               head + images;
    }

    template <class... Values>
    void say(const char* format, Values... values) const {
        if (arguments_.json) return;
        std::printf(format, values...);
        std::printf("\n");
        std::fflush(stdout);
    }

    const Model& model_;
    const Arguments& arguments_;
    VisionRows image_;
};

void run(const Arguments& arguments) {
    const ModelOptions options = arguments.model.apply();
    const auto start = Clock::now();
    const Model model = Model::load(arguments.model.model, options);
    const double load_s = seconds_since(start);
    if (!arguments.json) {
        std::printf("%s, %d threads, %s weights, loaded in %.3f s\n",
                    std::string(ops::isa_name()).c_str(), ops::threads(),
                    model.weight_type_name().c_str(), load_s);
    }
    Bench bench(model, arguments);
    OrderedJson report = {{"isa", ops::isa_name()},
                          {"threads", ops::threads()},
                          {"dtype", model.weight_type_name()},
                          {"load_s", load_s}};
    report["vision"] = bench.vision();
    report["prefill"] = bench.prefill();
    report["decode"] = bench.decode();
    report["anonymous_mb"] = anonymous_mb();
    if (arguments.json) std::cout << report.dump() << "\n";
}

}  // namespace

void add_bench(CLI::App& app) {
    auto* command = app.add_subcommand("bench", "How long a picture, a prompt and a token take");
    auto arguments = std::make_shared<Arguments>();
    arguments->model.add_to(*command);
    command->add_option("--prompt-tokens", arguments->prompt_tokens, "Tokens of the prompt")
        ->check(CLI::Range(1, 1 << 20))
        ->type_name("P")
        ->capture_default_str();
    command->add_option("--new-tokens", arguments->new_tokens, "Tokens to decode")
        ->check(CLI::Range(1, 1 << 20))
        ->type_name("N")
        ->capture_default_str();
    command
        ->add_option("--images", arguments->images,
                     "Pictures in front of the prompt; 0: no pictures are timed")
        ->check(CLI::Range(0, 64))
        ->type_name("K")
        ->capture_default_str();
    command->add_option("--repeats", arguments->repeats, "Runs of which the best counts")
        ->check(CLI::Range(1, 1000))
        ->type_name("N")
        ->capture_default_str();
    command->add_flag("--json", arguments->json, "One JSON object");
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
