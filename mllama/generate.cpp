// The loop around the model: pictures, prefill in chunks, then a token of every unfinished sample
// at a time.
#include <algorithm>

#include "mllama/mllama.h"
#include "mllama/stop_filter.h"
#include "mllama/stopwatch.h"

namespace mllama {
namespace {

/// How long a text may become: by the model, or by the options.
int64_t longest_text(const Mllama& mllama, const GenerationOptions& options) {
    const int64_t positions = mllama.model().config().text.max_position_embeddings;
    return options.max_length > 0 ? std::min(options.max_length, positions) : positions;
}

/// One sample on its way.
struct Sample {
    Sample(const Mllama& mllama, const Prompt& from, Sequence state,
           const GenerationOptions& options)
        : prompt(from),
          sequence(std::move(state)),
          sampler(options.sampling),
          decoder(mllama.tokenizer(), true),
          filter(options.stop),
          history(from.ids),
          fed(static_cast<size_t>(sequence.length())) {
        completion.prompt_tokens = static_cast<int64_t>(prompt.ids.size());
        sequence.reserve(completion.prompt_tokens +
                         std::min(options.max_new_tokens,
                                  longest_text(mllama, options) - completion.prompt_tokens));
    }

    const Prompt& prompt;
    Sequence sequence;
    Sampler sampler;
    StreamDecoder decoder;
    StopFilter filter;
    std::vector<int64_t> history;  // prompt and generated tokens
    size_t fed;                    // tokens of the history that are in the sequence
    bool finished = false;
    Completion completion;

    [[nodiscard]] size_t pending() const { return history.size() - fed; }
};

/// The state of one batch. Methods are the steps of the loop.
class Generation {
  public:
    Generation(const Mllama& mllama, const GenerationOptions& options,
               const GenerationObserver& observer)
        : mllama_(mllama), options_(options), observer_(observer) {
        options.sampling.check();
    }

    /// `sequence` holds the beginning of the prompt, or nothing. `prompt` must outlive this.
    void add(const Prompt& prompt, Sequence sequence) {
        mllama_.check_prompt(prompt.ids, prompt.images.size());
        const auto tokens = static_cast<int64_t>(prompt.ids.size());
        if (options_.max_length > 0 && tokens >= options_.max_length) {
            fail("the prompt has ", tokens, " tokens; prompt and answer may have ",
                 options_.max_length, " together (max_length of generation_config.json, which a ",
                 "number of new tokens replaces)");
        }
        GenerationOptions options = options_;
        options.sampling.seed += samples_.size();  // samples of a batch draw differently
        samples_.emplace_back(mllama_, prompt, std::move(sequence), options);
    }

    std::vector<Sample>& samples() { return samples_; }

    std::vector<Completion> run() {
        reserve_results();
        encode_images();
        prefill();
        const Stopwatch watch;
        while (step()) {
        }
        timings_.decode_s = watch.seconds();
        std::vector<Completion> completions;
        for (Sample& sample : samples_) {
            sample.completion.timings = timings_;
            completions.push_back(std::move(sample.completion));
        }
        return completions;
    }

  private:
    /// Whose tokens a forward takes: while prompts are read, samples that have an answer wait.
    enum class Feed { prompts, generated };

    void check_cancelled() const {
        if (observer_.cancelled && observer_.cancelled()) throw Interrupted();
    }

    /// Room for what a forward of all samples gives.
    void reserve_results() {
        const auto rows = static_cast<int64_t>(samples_.size());
        const int64_t wanted = largest_wanted();
        if (options_.sampling.takes_the_largest()) {
            mllama_.model().reserve_tokens(rows);
        } else if (wanted > 0) {
            mllama_.model().reserve_top_logits(rows, wanted);
        } else {
            mllama_.model().reserve_logits(rows);
        }
    }

    void encode_images() {
        const Stopwatch watch;
        for (size_t i = 0; i < samples_.size(); ++i) {
            const auto seen = static_cast<size_t>(samples_[i].sequence.num_images());
            for (size_t k = seen; k < samples_[i].prompt.images.size(); ++k) {
                const VisionRows rows = mllama_.model().encode_image(
                    samples_[i].prompt.images[k], [&](int64_t done, int64_t all) {
                        check_cancelled();
                        if (observer_.vision) observer_.vision(i, k, done, all);
                    });
                mllama_.model().add_image(samples_[i].sequence, rows);
            }
        }
        timings_.vision_s = watch.seconds();
    }

    /// Feeds all prompts, several to a forward, at most a chunk of rows at a time.
    void prefill() {
        const Stopwatch watch;
        int64_t all = 0;
        for (const Sample& sample : samples_) all += static_cast<int64_t>(sample.pending());
        const int64_t chunk =
            options_.prefill_chunk > 0 ? options_.prefill_chunk : mllama_.model().prefill_chunk();
        int64_t done = 0;
        while (done < all) {
            check_cancelled();
            done += forward(chunk, Feed::prompts);
            if (observer_.prefill) observer_.prefill(done, all);
        }
        timings_.prefill_tokens = all;
        timings_.prefill_s = watch.seconds();
    }

    /// One more token for every sample that is not finished. False if there is none.
    bool step() {
        check_cancelled();
        const int64_t rows = forward(static_cast<int64_t>(samples_.size()), Feed::generated);
        timings_.decode_tokens += rows;
        if (rows > 0 && observer_.decode) observer_.decode(timings_.decode_tokens);
        return rows > 0;
    }

    /// Runs up to `most` waiting tokens through the model and adds the next token of every sample
    /// whose text is through. Returns the number of rows.
    int64_t forward(int64_t most, Feed feed) {
        inputs_.clear();
        fed_samples_.clear();
        int64_t rows = 0;
        for (Sample& sample : samples_) {
            if (sample.finished || sample.pending() == 0 || rows == most) continue;
            if (feed == Feed::prompts && !sample.completion.tokens.empty()) continue;
            const size_t count = std::min(sample.pending(), static_cast<size_t>(most - rows));
            const bool through = count == sample.pending();
            inputs_.push_back(
                {&sample.sequence, {sample.history.data() + sample.fed, count}, through ? 1 : 0});
            fed_samples_.push_back(&sample);
            sample.fed += count;
            rows += static_cast<int64_t>(count);
        }
        if (rows == 0) return 0;
        std::erase_if(fed_samples_, [](const Sample* sample) { return sample->pending() > 0; });
        const int64_t wanted = largest_wanted();
        if (options_.sampling.takes_the_largest()) {
            take_the_largest();
        } else if (wanted > 0) {
            draw_of_largest(wanted);
        } else {
            draw();
        }
        return rows;
    }

    [[nodiscard]] int64_t largest_wanted() const {
        return options_.sampling.largest_wanted(mllama_.model().config().text.vocab_size);
    }

    /// The next tokens of fed_samples_, whose texts are through: on a GPU, logits stay there.
    void take_the_largest() {
        const std::span<const int64_t> ids = mllama_.model().most_probable(inputs_);
        for (size_t i = 0; i < fed_samples_.size(); ++i) {
            if (ids[i] < 0)
                fail("the logits hold a NaN, or no finite value: are the weights whole?");
            add_token(*fed_samples_[i], ids[i]);
        }
    }

    /// The same by drawing.
    void draw() {
        const Tensor logits = mllama_.model().forward(inputs_);  // (fed_samples_, vocab_size)
        for (size_t i = 0; i < fed_samples_.size(); ++i) {
            Sample& sample = *fed_samples_[i];
            add_token(sample, sample.sampler.next(row<float>(logits, i), sample.history));
        }
    }

    /// The same where so many of the largest logits are enough: on a GPU, the others stay there.
    void draw_of_largest(int64_t wanted) {
        const TopLogits top = mllama_.model().top_logits(inputs_, wanted);
        for (size_t i = 0; i < fed_samples_.size(); ++i) {
            Sample& sample = *fed_samples_[i];
            std::optional<int64_t> id =
                sample.sampler.next_of_largest(row<float>(top.logits, i), row<int64_t>(top.ids, i));
            if (!id) {  // hardly ever
                const auto place = static_cast<int64_t>(i);
                const Tensor all = mllama_.model().on_host(top.all.rows(place, place + 1));
                id = sample.sampler.next(row<float>(all, 0), sample.history);
            }
            add_token(sample, *id);
        }
    }

    /// Row i of a contiguous matrix.
    template <class T>
    static std::span<const T> row(const Tensor& x, size_t i) {
        const auto cols = static_cast<size_t>(x.cols());
        return {x.data<T>() + i * cols, cols};
    }

    /// The next token of a sample, and whether it is the last.
    void add_token(Sample& sample, int64_t id) {
        if (options_.max_new_tokens == 0) {
            sample.finished = true;
            return;
        }
        Completion& completion = sample.completion;
        sample.history.push_back(id);
        completion.tokens.push_back(id);
        const auto& ends = options_.eos_token_ids;
        if (std::find(ends.begin(), ends.end(), id) != ends.end()) {
            finish(sample, FinishReason::stop);
            return;
        }
        emit(sample, sample.filter.push(sample.decoder.push(static_cast<int32_t>(id))));
        if (sample.filter.stopped()) {
            finish(sample, FinishReason::stop);
        } else if (static_cast<int64_t>(completion.tokens.size()) >= options_.max_new_tokens ||
                   static_cast<int64_t>(sample.history.size()) >= longest_text(mllama_, options_)) {
            finish(sample, FinishReason::length);
        }
    }

    void finish(Sample& sample, FinishReason reason) {
        if (!sample.filter.stopped()) {
            emit(sample, sample.filter.push(sample.decoder.finish()));
            emit(sample, sample.filter.finish());
        }
        sample.finished = true;
        sample.completion.finish_reason = sample.filter.stopped() ? FinishReason::stop : reason;
    }

    void emit(Sample& sample, const std::string& piece) {
        if (piece.empty()) return;
        sample.completion.text += piece;
        if (observer_.text) observer_.text(static_cast<size_t>(&sample - samples_.data()), piece);
    }

    const Mllama& mllama_;
    const GenerationOptions& options_;
    const GenerationObserver& observer_;
    std::vector<Sample> samples_;
    std::vector<SequenceInput> inputs_;  // of the current forward
    std::vector<Sample*> fed_samples_;   // beside inputs_; then those whose texts are through
    Timings timings_;
};

/// How many tokens stand at the beginning of both.
size_t common_prefix(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
    return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                               a.begin());
}

}  // namespace

std::vector<Completion> Mllama::generate(std::span<const Prompt> prompts,
                                         const GenerationOptions& options,
                                         const GenerationObserver& observer) const {
    Generation generation(*this, options, observer);
    for (const Prompt& prompt : prompts) generation.add(prompt, model_.new_sequence());
    return generation.run();
}

Completion Mllama::go_on(Session& session, const Prompt& prompt, const GenerationOptions& options,
                         const GenerationObserver& observer) const {
    check_prompt(prompt.ids, prompt.images.size());
    // The last token of the prompt is fed in any case: its logits are wanted.
    const size_t kept = std::min(common_prefix(session.ids, prompt.ids), prompt.ids.size() - 1);
    session.sequence.truncate({prompt.ids.data(), kept}, model_.config().image_token_id);
    Generation generation(*this, options, observer);
    generation.add(prompt, std::move(session.sequence));
    session = new_session();
    const auto keep = [&] {
        Sample& sample = generation.samples().front();
        session.sequence = std::move(sample.sequence);
        session.ids.assign(sample.history.begin(),
                           sample.history.begin() + static_cast<int64_t>(sample.fed));
    };
    try {
        Completion completion = generation.run().front();
        keep();
        return completion;
    } catch (const Interrupted&) {
        keep();
        throw;
    }
}

}  // namespace mllama
