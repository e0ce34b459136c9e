// The public face of the library: a checkpoint directory, pictures and text in, text out.
//
//     mllama::Mllama model = mllama::Mllama::load("Llama-3.2-11B-Vision-Instruct", {});
//     mllama::Request request;
//     request.prompt = "<|image|>What is this?";
//     request.images = {"cat.png"};
//     mllama::Prompt prompt = model.prepare(request, {});
//     mllama::Completion answer = model.generate({&prompt, 1}, model.default_options(), {})[0];
//
// A model serves one thread at a time, and so do all models on a GPU together (model.h).
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "mllama/generation_config.h"
#include "mllama/image_processor.h"
#include "mllama/model.h"
#include "mllama/request.h"
#include "tokenizer/bpe.h"
#include "tokenizer/chat_template.h"

namespace mllama {

/// A request as the model takes it.
struct Prompt {
    std::vector<int64_t> ids;            ///< one begin-of-text among them
    std::vector<ProcessedImage> images;  ///< one for each image token, in order
};

struct PrepareOptions {
    std::string date;                   ///< the template's date_string; empty: today as "%d %b %Y"
    bool add_generation_prompt = true;  ///< whether messages end with the assistant's header
};

struct GenerationOptions {
    SamplingParams sampling;
    int64_t max_new_tokens = 512;
    int64_t max_length = 0;  ///< tokens of prompt and answer together; 0: no limit but the model's
    std::vector<int64_t> eos_token_ids;
    std::vector<std::string> stop;  ///< texts that end the answer; they are not part of it
    int64_t prefill_chunk = 0;      ///< rows of a forward at most, over all prompts; 0: the model's
};

enum class FinishReason { stop, length };

/// Seconds. Of a batch: of the whole batch.
struct Timings {
    double vision_s = 0;
    double prefill_s = 0;
    int64_t prefill_tokens = 0;
    double decode_s = 0;
    int64_t decode_tokens = 0;
};

struct Completion {
    std::string text;             ///< without special tokens and stop texts
    std::vector<int64_t> tokens;  ///< what was generated, the end-of-text token included
    int64_t prompt_tokens = 0;
    FinishReason finish_reason = FinishReason::length;
    Timings timings;
};

/// What a caller may want to follow. All may be empty. `request` is the place in the batch.
struct GenerationObserver {
    std::function<void(size_t request, size_t image, int64_t done, int64_t all)> vision;
    std::function<void(int64_t done, int64_t all)> prefill;              ///< tokens of all prompts
    std::function<void(int64_t done)> decode;                            ///< tokens of all answers
    std::function<void(size_t request, const std::string& piece)> text;  ///< whole UTF-8 characters
    std::function<bool()>
        cancelled;  ///< asked between steps; true ends the generation with an Interrupted
};

/// Thrown where GenerationObserver::cancelled said so.
class Interrupted : public Error {
  public:
    Interrupted() : Error("interrupted") {}
};

/// A text that goes on: what the model has seen of it stays in its caches.
struct Session {
    Sequence sequence;
    std::vector<int64_t> ids;  ///< the tokens in the caches
};

class Mllama {
  public:
    /// Loads model, tokenizer, chat template and the settings of a checkpoint directory. A
    /// directory without a template can do all but messages. Errors: Error naming the file and the
    /// thing.
    static Mllama load(const std::string& checkpoint_dir, const ModelOptions& options);

    /// Text to ids and pictures to tiles. Errors: unreadable pictures, too few or too many of them
    /// for the places in the text, a text longer than max_position_embeddings.
    [[nodiscard]] Prompt prepare(const Request& request, const PrepareOptions& options) const;

    /// The text of a request: the rendered template, or the prompt with begin-of-text put where it
    /// belongs.
    [[nodiscard]] std::string prompt_text(const Request& request,
                                          const PrepareOptions& options) const;
    /// The ids of a text that holds its begin-of-text already.
    [[nodiscard]] std::vector<int64_t> encode(const std::string& text) const;

    /// Answers a batch. Each sample's logits are what they would be alone, to the bit; draws are
    /// seeded by its place in the batch.
    [[nodiscard]] std::vector<Completion> generate(std::span<const Prompt> prompts,
                                                   const GenerationOptions& options,
                                                   const GenerationObserver& observer) const;

    /// Answers a prompt of which the session has seen the beginning: only what is new goes through
    /// the model. The session's pictures must be the first ones of the prompt. After an Interrupted
    /// the session is whole and can go on. A picture that comes in a later turn is not seen by the
    /// text before it, as with the caches of the reference.
    [[nodiscard]] Completion go_on(Session& session, const Prompt& prompt,
                                   const GenerationOptions& options,
                                   const GenerationObserver& observer) const;
    [[nodiscard]] Session new_session() const { return {model_.new_sequence(), {}}; }

    /// As generation_config.json has it.
    [[nodiscard]] GenerationOptions default_options() const;

    [[nodiscard]] const Model& model() const { return model_; }
    [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }
    [[nodiscard]] const ImageProcessorConfig& image_processor() const { return image_processor_; }
    /// Reads a picture and cuts it into tiles that fit this model.
    [[nodiscard]] ProcessedImage load_picture(const std::string& path) const;
    /// Error if the text has more or fewer image tokens than there are pictures, an id that the
    /// model does not know, or more tokens than the model has positions.
    void check_prompt(std::span<const int64_t> ids, size_t images) const;

  private:
    Mllama(const std::string& checkpoint_dir, const ModelOptions& options);

    std::string checkpoint_dir_;
    Model model_;
    Tokenizer tokenizer_;
    std::optional<ChatTemplate> chat_template_;
    std::string chat_template_error_;  // why there is none; matters to messages only
    ImageProcessorConfig image_processor_;
    GenerationConfig generation_;
    std::string bos_token_;
    std::string image_token_;
};

/// Puts begin-of-text where the reference's processor puts it: behind leading image tokens, and
/// only if the text holds none. Source: build_string_from_input, processing_mllama.py of
/// transformers 4.56.2.
std::string add_begin_of_text(const std::string& prompt, const std::string& bos_token,
                              const std::string& image_token);

/// Today as the templates write it: "26 Jul 2024", in English whatever the locale.
std::string today();

}  // namespace mllama
