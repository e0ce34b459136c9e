#include "apps/bench/workloads.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <random>

#include "mllama/blank_picture.h"
#include "mllama/stopwatch.h"
#include "tensor/gpu.h"

namespace mllama {
namespace {

/// What may be taken of the memory that is free: the estimate is the system's, and others run too.
constexpr double most_of_memory = 0.9;

/// Wall time, and the processor time of all threads.
class RunClock {
  public:
    void stop(BenchRun& run, const Model& model) const {
        if (model.device() == Device::cuda) gpu_synchronise();
        run.seconds = watch_.seconds();
        const double processor =
            static_cast<double>(std::clock() - start_) / static_cast<double>(CLOCKS_PER_SEC);
        run.busy = processor / (run.seconds * ops::threads());
    }

  private:
    Stopwatch watch_;
    std::clock_t start_ = std::clock();
};

/// A picture of noise that is cut into tiles, as the processor would give it.
ProcessedImage noise_picture(const VisionConfig& config, size_t aspect_ratio) {
    ProcessedImage image = blank_picture(config, aspect_ratio);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
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

/// Fills a cache with random rows up to `length`; few different ones, since nothing looks at them.
void fill_cache(KvCache& cache, int64_t length) {
    constexpr int64_t different = 64;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    const auto random_rows = [&] {
        Tensor rows = Tensor::empty({different, cache.width()}, DType::f32);
        for (int64_t i = 0; i < rows.numel(); ++i) rows.data<float>()[i] = normal(random);
        return rows.to(cache.device());
    };
    const Tensor k = random_rows();
    const Tensor v = random_rows();
    while (cache.length() < length) {
        const int64_t rows = std::min(different, length - cache.length());
        cache.append(k.rows(0, rows), v.rows(0, rows));
    }
}

std::string in_mb(int64_t bytes) {
    return std::to_string((bytes + 999'999) / 1'000'000) + " MB";
}

/// Why a workload is left out.
std::string memory_text(const Workload& workload, int64_t mapped, int64_t available) {
    std::string text = workload.label + ": not enough memory: needs " +
                       in_mb(workload.cache_bytes) + " for keys and values";
    if (mapped > 0) text += ", and " + in_mb(mapped) + " for weights that are mapped from files";
    return text + "; " + in_mb(available) + " are free";
}

/// Pictures as the text tower's layers see them.
PicturesSeen pictures_seen(int64_t images, const VisionRows& picture) {
    if (images == 0) return {};
    const int64_t rows = picture.rows.rows();
    return {images, rows, rows / picture.layout.tiles() * picture.layout.real_tiles};
}

}  // namespace

/// Bytes of a token's weights that are pages of files.
int64_t Workloads::mapped_weights() const {
    int64_t bytes = 0;
    const auto add = [&](const Linear& layer) {
        const std::shared_ptr<Storage>& storage = layer.weight.data.storage();
        if (storage && storage->kind() == Storage::Kind::mapped) bytes += layer.weight.data.bytes();
    };
    model_.text().for_each_linear(plan_.images > 0, add);
    add(model_.text().lm_head());
    return bytes;
}

std::vector<Workload> Workloads::list(int64_t available, std::vector<std::string>& left_out) {
    std::vector<Workload> all;
    if (plan_.images > 0) add_vision(all);
    for (const int64_t tokens : plan_.prefill_tokens) all.push_back(prefill(tokens));
    if (plan_.images > 0) all.push_back(first_token(plan_.prefill_tokens.front()));
    const int64_t mapped = mapped_weights();
    for (const int64_t context : plan_.decode_contexts) {
        const bool first = context == plan_.decode_contexts.front();
        for (const int64_t batch : plan_.decode_batches) {
            if (!first && batch != plan_.decode_batches.front()) continue;
            Workload workload = decode(context, batch);
            const int64_t needed = workload.cache_bytes + mapped;
            if (model_.device() == Device::cpu && available > 0 &&
                static_cast<double>(needed) > most_of_memory * static_cast<double>(available)) {
                left_out.push_back(memory_text(workload, mapped, available));
            } else {
                all.push_back(std::move(workload));
            }
        }
    }
    return all;
}

void Workloads::add_vision(std::vector<Workload>& list) {
    for (const size_t shape : shapes_to_time(model_.config().vision)) {
        const ProcessedImage picture = noise_picture(model_.config().vision, shape);
        Workload workload;
        workload.kind = Workload::Kind::vision;
        workload.label = "vision, " + std::to_string(picture.num_tiles) +
                         (picture.num_tiles == 1 ? " tile" : " tiles");
        workload.size = picture.num_tiles;
        workload.run = [this, picture] {
            // A GPU has a place for the rows of one picture.
            const bool on_cpu = model_.device() == Device::cpu;
            if (!on_cpu) picture_ = {};
            const RunClock clock;
            const VisionRows result = model_.encode_image(picture);
            BenchRun run;
            clock.stop(run, model_);
            const int64_t rows = result.rows.rows();
            run.work = 2 * picture_multiply_adds(model_, picture.num_tiles, rows);
            if (on_cpu && picture_.rows.numel() < result.rows.numel()) picture_ = result;
            return run;
        };
        list.push_back(std::move(workload));
    }
}

const VisionRows& Workloads::picture_rows() {
    if (!picture_.rows.defined()) {
        const VisionConfig& config = model_.config().vision;
        picture_ = model_.encode_image(noise_picture(config, shapes_to_time(config).front()));
    }
    return picture_;
}

std::vector<int64_t> Workloads::prompt(int64_t tokens) const {
    const int64_t image_token = model_.config().image_token_id;
    std::mt19937_64 random(2);
    std::vector<int64_t> ids(static_cast<size_t>(tokens), image_token);
    for (int64_t i = plan_.images; i < tokens; ++i) {
        const auto id =
            static_cast<int64_t>(random() % static_cast<uint64_t>(model_.config().text.vocab_size));
        // Any other id: there are at least 8 more embeddings than ids of texts.
        ids[static_cast<size_t>(i)] = id == image_token ? id + 1 : id;
    }
    return ids;
}

Workload Workloads::prefill(int64_t tokens) {
    Workload workload;
    workload.kind = Workload::Kind::prefill;
    workload.label = "prefill, " + std::to_string(tokens) + " tokens";
    workload.size = tokens;
    workload.run = [this, ids = prompt(tokens)] {
        const auto tokens_of_prompt = static_cast<int64_t>(ids.size());
        if (plan_.images > 0) static_cast<void>(picture_rows());
        const RunClock clock;
        Sequence sequence = model_.new_sequence();
        sequence.reserve(tokens_of_prompt);
        for (int64_t i = 0; i < plan_.images; ++i) model_.add_image(sequence, picture_);
        model_.prefill(sequence, ids);
        BenchRun run;
        clock.stop(run, model_);
        run.tokens = static_cast<double>(tokens_of_prompt);
        run.work = 2 * prefill_multiply_adds(model_, tokens_of_prompt,
                                             pictures_seen(plan_.images, picture_));
        return run;
    };
    return workload;
}

Workload Workloads::first_token(int64_t tokens) {
    const VisionConfig& config = model_.config().vision;
    const ProcessedImage picture = noise_picture(config, shapes_to_time(config).front());
    Workload workload;
    workload.kind = Workload::Kind::first_token;
    workload.label = "first token, " + std::to_string(plan_.images) + " x " +
                     std::to_string(picture.num_tiles) + " tiles, " + std::to_string(tokens);
    workload.size = tokens;
    workload.tiles = picture.num_tiles;
    workload.run = [this, picture, ids = prompt(tokens)] {
        const auto tokens_of_prompt = static_cast<int64_t>(ids.size());
        if (model_.device() == Device::cuda) picture_ = {};  // it has a place for one
        const RunClock clock;
        Sequence sequence = model_.new_sequence();
        sequence.reserve(tokens_of_prompt);
        VisionRows shown;
        for (int64_t i = 0; i < plan_.images; ++i) {
            shown = {};  // see Model::encode_image
            shown = model_.encode_image(picture);
            model_.add_image(sequence, shown);
        }
        model_.prefill(sequence, ids);
        BenchRun run;
        clock.stop(run, model_);
        run.tokens = static_cast<double>(tokens_of_prompt);
        const double pictures = static_cast<double>(plan_.images) *
                                picture_multiply_adds(model_, picture.num_tiles, shown.rows.rows());
        run.work = 2 * (pictures + prefill_multiply_adds(model_, tokens_of_prompt,
                                                         pictures_seen(plan_.images, shown)));
        return run;
    };
    return workload;
}

Sequence Workloads::random_text(int64_t tokens, int64_t capacity) {
    Sequence sequence = model_.new_sequence();
    sequence.reserve(capacity);
    for (KvCache& cache : sequence.self_attention) {
        if (cache.width() > 0) fill_cache(cache, tokens);
    }
    for (int64_t i = 0; i < plan_.images; ++i) {
        const VisionRows& picture = picture_rows();
        for (KvCache& cache : sequence.cross_attention) {
            if (cache.width() == 0) continue;
            cache.reserve(plan_.images * picture.rows.rows());
            fill_cache(cache, cache.length() + picture.rows.rows());
        }
        sequence.add_image(picture.layout, picture.rows.rows() / picture.layout.tiles());
    }
    for (int64_t i = 0; i < tokens; ++i) sequence.image_rule.next(i < plan_.images);
    sequence.advance(tokens);
    return sequence;
}

Workload Workloads::decode(int64_t context, int64_t batch) {
    const TextConfig& t = model_.config().text;
    const auto self_layers =
        t.num_hidden_layers - static_cast<int64_t>(t.cross_attention_layers.size());
    const KvLayout layout{t.num_key_value_heads, t.head_dim(), model_.kv_dtype()};

    Workload workload;
    workload.kind = Workload::Kind::decode;
    workload.label = "decode at " + std::to_string(context);
    if (batch > 1) workload.label += ", " + std::to_string(batch) + " together";
    workload.size = context;
    workload.batch = batch;
    workload.bytes_touched = static_cast<double>(model_.text().bytes_per_token(plan_.images > 0)) +
                             static_cast<double>(batch) *
                                 static_cast<double>(context * self_layers * layout.bytes_of_key());
    workload.cache_bytes =
        batch * (context + plan_.new_tokens) * self_layers * layout.bytes_of_key();
    if (plan_.images > 0) {
        const VisionConfig& v = model_.config().vision;
        const auto cross_layers = static_cast<int64_t>(t.cross_attention_layers.size());
        const int64_t rows = plan_.images * v.max_patches();
        workload.cache_bytes += batch * rows * cross_layers * layout.bytes_of_key();
    }
    workload.run = [this, context, batch] {
        // Steps before the time runs, whose tokens are the last ones of the context: a GPU does the
        // first as it is, records the second and repeats it from then on.
        const int64_t before = std::clamp<int64_t>(context - plan_.images, 1, 3);
        std::vector<Sequence> sequences;
        sequences.reserve(static_cast<size_t>(batch));
        for (int64_t i = 0; i < batch; ++i)
            sequences.push_back(random_text(context - before, context + plan_.new_tokens));
        const int64_t token = prompt(plan_.images + 1).back();
        std::vector<SequenceInput> inputs;
        inputs.reserve(sequences.size());
        for (Sequence& sequence : sequences) inputs.push_back({&sequence, {&token, 1}, 1});
        for (int64_t step = 0; step < before; ++step) model_.most_probable(inputs);

        BenchRun run;
        const RunClock clock;
        for (int64_t step = 0; step < plan_.new_tokens; ++step) {
            model_.most_probable(inputs);
            run.work += static_cast<double>(model_.text().bytes_per_token(plan_.images > 0));
            for (const Sequence& sequence : sequences)
                run.work += static_cast<double>(cache_bytes_read(sequence));
        }
        clock.stop(run, model_);
        run.tokens = static_cast<double>(batch * plan_.new_tokens);
        return run;
    };
    return workload;
}

}  // namespace mllama
