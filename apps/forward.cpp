// mllama forward: one forward pass over a batch, written under the names that transformers uses.
#include <algorithm>
#include <cmath>

#include "apps/cli.h"
#include "apps/number_check.h"
#include "apps/terminal.h"
#include "io/safetensors.h"

namespace mllama {
namespace {

struct Arguments {
    ModelArguments model;
    RequestArguments request;
    std::string out;
    bool hidden_states = false;
    bool attentions = false;
    bool loss = false;
    int64_t logits_to_keep = 0;
};

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// What a batch is made of: B samples, right-padded to T tokens and I images.
struct Batch {
    std::vector<Prompt> prompts;
    int64_t tokens = 0;  // T
    int64_t images = 0;  // I

    [[nodiscard]] auto size() const { return static_cast<int64_t>(prompts.size()); }
    [[nodiscard]] const Prompt& operator[](int64_t sample) const {
        return prompts[static_cast<size_t>(sample)];
    }
};

Batch prepare(const Mllama& mllama, const RequestArguments& arguments) {
    Batch batch;
    for (const Request& request : arguments.read()) {
        batch.prompts.push_back(mllama.prepare(request, arguments.prepare_options()));
        batch.tokens =
            std::max(batch.tokens, static_cast<int64_t>(batch.prompts.back().ids.size()));
        batch.images =
            std::max(batch.images, static_cast<int64_t>(batch.prompts.back().images.size()));
    }
    return batch;
}

/// input_ids and attention_mask (B, T)
void add_text_inputs(const Batch& batch, const TextConfig& config, NamedTensors& out) {
    Tensor ids = Tensor::empty({batch.size(), batch.tokens}, DType::i64);
    Tensor mask = Tensor::zeros({batch.size(), batch.tokens}, DType::i64);
    std::fill_n(ids.data<int64_t>(), ids.numel(), std::max<int64_t>(config.pad_token_id, 0));
    for (int64_t sample = 0; sample < batch.size(); ++sample) {
        std::copy(batch[sample].ids.begin(), batch[sample].ids.end(),
                  ids.data<int64_t>() + sample * batch.tokens);
        std::fill_n(mask.data<int64_t>() + sample * batch.tokens, batch[sample].ids.size(), 1);
    }
    out.emplace_back("input_ids", ids);
    out.emplace_back("attention_mask", mask);
}

/// cross_attention_mask (B, T, I, max_num_tiles): which tiles each token sees; rows of padding
/// repeat the last one, as in the reference.
Tensor dense_cross_attention_mask(const Batch& batch, const ModelConfig& config) {
    const int64_t tiles = config.vision.max_num_tiles;
    Tensor mask = Tensor::zeros({batch.size(), batch.tokens, batch.images, tiles}, DType::i64);
    for (int64_t sample = 0; sample < batch.size(); ++sample) {
        const Prompt& prompt = batch[sample];
        ImageRule rule;
        ImageSpan span;
        for (int64_t t = 0; t < batch.tokens; ++t) {
            const auto place = static_cast<size_t>(t);
            if (place < prompt.ids.size())
                span = rule.next(prompt.ids[place] == config.image_token_id);
            for (int64_t image = span.first; image < span.last; ++image) {
                int64_t* row = mask.data<int64_t>() +
                               ((sample * batch.tokens + t) * batch.images + image) * tiles;
                std::fill_n(row, prompt.images[static_cast<size_t>(image)].num_tiles, 1);
            }
        }
    }
    return mask;
}

void add_image_inputs(const Batch& batch, const ModelConfig& config, NamedTensors& out) {
    if (batch.images == 0) return;
    std::vector<std::vector<ProcessedImage>> samples;
    for (const Prompt& prompt : batch.prompts) samples.push_back(prompt.images);
    const PackedImages packed = pack_images(samples, config.vision.max_num_tiles);
    const int64_t size = packed.tile_size;
    out.emplace_back("pixel_values",
                     Tensor::from(packed.pixel_values, {packed.batch, packed.max_images,
                                                        packed.max_tiles, 3, size, size}));
    out.emplace_back("aspect_ratio_ids",
                     Tensor::from(packed.aspect_ratio_ids, {packed.batch, packed.max_images}));
    out.emplace_back("aspect_ratio_mask",
                     Tensor::from(packed.aspect_ratio_mask,
                                  {packed.batch, packed.max_images, packed.max_tiles}));
    out.emplace_back("cross_attention_mask", dense_cross_attention_mask(batch, config));
}

/// Collects hidden states and attentions of all samples in tensors padded to the batch, one a layer
/// that ran.
class Recorder {
  public:
    Recorder(const Mllama& mllama, const Batch& batch, const std::vector<Sequence>& sequences,
             const Arguments& arguments)
        : config_(mllama.model().config()), batch_(batch), sequences_(sequences) {
        if (arguments.hidden_states) {
            trace_.hidden_state = [this](size_t sample, int64_t layer, const Tensor& rows) {
                add_state(sample, layer, rows);
            };
        }
        if (arguments.attentions) {
            trace_.attention = [this](size_t sample, int64_t layer, const Tensor& weights) {
                add_weights(sample, layer, weights);
            };
        }
    }

    [[nodiscard]] const ForwardTrace& trace() const { return trace_; }

    void add_to(NamedTensors& out) const {
        int64_t number = 0;
        for (const auto& [layer, state] : states_)
            out.emplace_back("hidden_states." + std::to_string(number++), state);
        number = 0;
        for (const auto& [layer, weights] : weights_)
            out.emplace_back("attentions." + std::to_string(number++), weights);
    }

  private:
    /// rows (tokens of the sample, hidden_size) into (B, T, hidden_size)
    void add_state(size_t sample, int64_t layer, const Tensor& rows) {
        Tensor& state = states_[layer];
        if (!state.defined())
            state = Tensor::zeros({batch_.size(), batch_.tokens, rows.cols()}, DType::f32);
        std::copy_n(
            rows.data<float>(), rows.numel(),
            state.data<float>() + static_cast<int64_t>(sample) * batch_.tokens * rows.cols());
    }

    /// weights (heads, tokens of the sample, keys) into (B, heads, T, all keys of the batch)
    void add_weights(size_t sample, int64_t layer, const Tensor& weights) {
        const bool cross = config_.text.is_cross_attention(layer);
        const int64_t image_keys = config_.vision.max_patches();
        const int64_t keys = cross ? batch_.images * image_keys : batch_.tokens;
        Tensor& all = weights_[layer];
        if (!all.defined())
            all = Tensor::zeros({batch_.size(), weights.dim(0), batch_.tokens, keys}, DType::f32);
        for (int64_t head = 0; head < weights.dim(0); ++head) {
            for (int64_t t = 0; t < weights.dim(1); ++t) {
                const float* from =
                    weights.data<float>() + (head * weights.dim(1) + t) * weights.dim(2);
                float* to =
                    all.data<float>() +
                    ((static_cast<int64_t>(sample) * weights.dim(0) + head) * batch_.tokens + t) *
                        keys;
                if (cross) {
                    spread_image_keys(sequences_[sample], from, to);
                } else {
                    std::copy_n(from, weights.dim(2), to);
                }
            }
        }
    }

    /// A padding tile that was computed for several stands for each of them with an equal part of
    /// its weight.
    void spread_image_keys(const Sequence& sequence, const float* from, float* to) const {
        const int64_t patches = config_.vision.num_patches();
        const int64_t max_tiles = config_.vision.max_num_tiles;
        for (const ImageKeys& image : sequence.images()) {
            const int64_t real = image.real_end - image.begin;
            to = std::copy_n(from + image.begin, real, to);
            const int64_t computed = (image.end - image.real_end) / patches;
            const int64_t missing = max_tiles - real / patches;
            for (int64_t tile = 0; tile < missing; ++tile) {
                const float* tile_weights =
                    from + image.real_end + (computed == missing ? tile : 0) * patches;
                const auto share = static_cast<float>(computed) / static_cast<float>(missing);
                to = std::transform(tile_weights, tile_weights + patches, to,
                                    [share](float w) { return w * share; });
            }
        }
    }

    const ModelConfig& config_;
    const Batch& batch_;
    const std::vector<Sequence>& sequences_;
    ForwardTrace trace_;
    std::map<int64_t, Tensor> states_;   // by layer
    std::map<int64_t, Tensor> weights_;  // by layer
};

/// Cross entropy of the next token, as transformers' ForCausalLMLoss: labels are input_ids with
/// image tokens masked, shifted by one, averaged over all labels of the batch. logits: (tokens,
/// vocab_size) of each sample.
Tensor mean_loss(const Batch& batch, const std::vector<Tensor>& logits, const ModelConfig& config) {
    double sum = 0;
    int64_t labels = 0;
    for (int64_t sample = 0; sample < batch.size(); ++sample) {
        const std::vector<int64_t>& ids = batch[sample].ids;
        const int64_t vocab_size = config.text.vocab_size;
        for (size_t t = 0; t + 1 < ids.size(); ++t) {
            const int64_t label = ids[t + 1];
            if (label == config.image_token_id) continue;
            if (label >= vocab_size) {
                fail("--loss: token ", label, " has no logit (vocab_size ", vocab_size,
                     "), so it cannot be a label");
            }
            const float* row = logits[static_cast<size_t>(sample)].data<float>() +
                               static_cast<int64_t>(t) * vocab_size;
            const double largest = *std::max_element(row, row + vocab_size);
            double total = 0;
            for (int64_t i = 0; i < vocab_size; ++i) total += std::exp(row[i] - largest);
            sum += largest + std::log(total) - row[label];
            ++labels;
        }
    }
    return Tensor::from(std::vector<float>{static_cast<float>(sum / static_cast<double>(labels))},
                        Shape{});
}

/// logits (B, T or the last N of each sample, vocab_size)
Tensor padded_logits(const Batch& batch, const std::vector<Tensor>& logits, int64_t keep,
                     int64_t vocab_size) {
    int64_t rows = 0;
    for (const Tensor& sample : logits)
        rows = std::max(rows, keep > 0 ? std::min(keep, sample.rows()) : sample.rows());
    Tensor all = Tensor::zeros({batch.size(), rows, vocab_size}, DType::f32);
    for (size_t i = 0; i < logits.size(); ++i) {
        const int64_t kept = std::min(rows, logits[i].rows());
        const Tensor last = logits[i].rows(logits[i].rows() - kept, logits[i].rows());
        std::copy_n(last.data<float>(), last.numel(),
                    all.data<float>() + static_cast<int64_t>(i) * rows * vocab_size);
    }
    return all;
}

void run(const Arguments& arguments) {
    ProgressLine progress;
    const Mllama mllama =
        Mllama::load(arguments.model.model, with_progress(arguments.model.apply(), &progress));
    const Model& model = mllama.model();
    const Batch batch = prepare(mllama, arguments.request);

    std::vector<Sequence> sequences;
    std::vector<SequenceInput> inputs;
    sequences.reserve(batch.prompts.size());
    const bool all_rows = arguments.loss || arguments.logits_to_keep == 0;
    for (const Prompt& prompt : batch.prompts) {
        Sequence& sequence = sequences.emplace_back(model.new_sequence());
        for (const ProcessedImage& image : prompt.images) {
            model.add_image(sequence, model.encode_image(image, [&](int64_t done, int64_t all) {
                progress.update("encoding an image, layer", done, all);
            }));
        }
        const auto tokens = static_cast<int64_t>(prompt.ids.size());
        inputs.push_back({&sequence, prompt.ids,
                          all_rows ? tokens : std::min(arguments.logits_to_keep, tokens)});
    }
    progress.finish("");
    Recorder recorder(mllama, batch, sequences, arguments);
    const Tensor kept = model.forward(inputs, &recorder.trace());
    std::vector<Tensor> logits;  // of each sample: (rows, vocab_size)
    int64_t row = 0;
    for (const SequenceInput& input : inputs) {
        logits.push_back(kept.rows(row, row + input.logits_to_keep));
        row += input.logits_to_keep;
    }

    const ModelConfig& config = model.config();
    NamedTensors out;
    add_text_inputs(batch, config.text, out);
    add_image_inputs(batch, config, out);
    out.emplace_back(
        "logits", padded_logits(batch, logits, arguments.logits_to_keep, config.text.vocab_size));
    recorder.add_to(out);
    if (arguments.loss) out.emplace_back("loss", mean_loss(batch, logits, config));
    write_safetensors(arguments.out, out);
}

}  // namespace

void add_forward(CLI::App& app) {
    auto* command = app.add_subcommand("forward",
                                       "One forward pass; logits and more to a safetensors file, "
                                       "named as transformers names them");
    auto arguments = std::make_shared<Arguments>();
    arguments->model.add_to(*command);
    arguments->request.add_to(*command);
    command->add_option("--out", arguments->out, "The file to write")
        ->required()
        ->type_name("FILE.safetensors");
    command->add_flag("--hidden-states", arguments->hidden_states,
                      "Also hidden_states.0, ...: embeddings, then the output of each layer that "
                      "ran, the last one normed");
    command->add_flag("--attentions", arguments->attentions,
                      "Also attentions.0, ...: the weights of each layer that ran, in order");
    command->add_flag("--loss", arguments->loss,
                      "Also loss: labels are input_ids, padding and image tokens masked");
    command
        ->add_option("--logits-to-keep", arguments->logits_to_keep,
                     "Logits of the last N tokens of each sample only; 0: of all")
        ->check(whole_at_least_0())
        ->type_name("N")
        ->capture_default_str();
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
