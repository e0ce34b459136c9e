#include "mllama/mllama.h"

#include <algorithm>
#include <ctime>

#include "io/image_file.h"
#include "io/json.h"
#include "io/printable.h"
#include "tokenizer/special_tokens.h"

namespace mllama {
namespace {

/// preprocessor_config.json, with tiles that the model can take.
ImageProcessorConfig load_image_processor(const std::string& checkpoint_dir,
                                          const VisionConfig& vision) {
    const std::string path = checkpoint_dir + "/preprocessor_config.json";
    const ImageProcessorConfig config = ImageProcessorConfig::from_json(read_json_file(path), path);
    if (config.tile_size != vision.image_size) {
        fail(path, ": size: expected ", vision.image_size,
             ", the image_size of config.json, found ", config.tile_size);
    }
    if (config.max_image_tiles > vision.max_num_tiles) {
        fail(path, ": max_image_tiles: expected at most ", vision.max_num_tiles,
             ", the max_num_tiles of config.json, found ", config.max_image_tiles);
    }
    return config;
}

/// The text of a token that config.json names by its id. It stands in prompts, so it has to be one
/// that is found in a text.
std::string added_token(const std::string& checkpoint_dir, const Tokenizer& tokenizer, int64_t id,
                        const char* key) {
    for (const AddedToken& token : tokenizer.added_tokens()) {
        if (token.id == id) return token.content;
    }
    fail(checkpoint_dir, "/config.json: ", key, ": expected an id of the added_tokens of ",
         checkpoint_dir, "/tokenizer.json, found ", id);
}

/// The text of the begin-of-text token: that of the tokenizer's settings, or else the token of
/// config.json's id.
std::string find_bos_token(const std::string& checkpoint_dir, const Tokenizer& tokenizer,
                           const TextConfig& config) {
    const std::string where = checkpoint_dir + "/tokenizer_config.json: bos_token: ";
    const SpecialTokens tokens = read_special_tokens(checkpoint_dir);
    const auto named = tokens.find("bos_token");
    if (named == tokens.end()) {
        if (config.bos_token_id < 0)
            fail(where, "expected a token, found none here or in config.json");
        return added_token(checkpoint_dir, tokenizer, config.bos_token_id, "bos_token_id");
    }
    const auto& added = tokenizer.added_tokens();
    const bool known = std::any_of(added.begin(), added.end(), [&](const AddedToken& token) {
        return token.content == named->second;
    });
    if (!known) {
        fail(where, "expected one of the added_tokens of ", checkpoint_dir,
             "/tokenizer.json, found \"", printable(named->second), "\"");
    }
    return named->second;
}

}  // namespace

std::string add_begin_of_text(const std::string& prompt, const std::string& bos_token,
                              const std::string& image_token) {
    if (prompt.find(bos_token) != std::string::npos) return prompt;
    size_t behind_images = 0;
    while (prompt.compare(behind_images, image_token.size(), image_token) == 0) {
        behind_images += image_token.size();
    }
    return prompt.substr(0, behind_images) + bos_token + prompt.substr(behind_images);
}

std::string today() {
    static const char* const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char text[32];
    std::snprintf(text, sizeof text, "%02d %s %04d", local.tm_mday, months[local.tm_mon],
                  local.tm_year + 1900);
    return text;
}

Mllama Mllama::load(const std::string& checkpoint_dir, const ModelOptions& options) {
    return {checkpoint_dir, options};
}

Mllama::Mllama(const std::string& checkpoint_dir, const ModelOptions& options)
    : checkpoint_dir_(checkpoint_dir),
      model_(Model::load(checkpoint_dir, options)),
      tokenizer_(Tokenizer::load(checkpoint_dir + "/tokenizer.json")),
      image_processor_(load_image_processor(checkpoint_dir, model_.config().vision)),
      generation_(GenerationConfig::load(checkpoint_dir, model_.config())),
      bos_token_(find_bos_token(checkpoint_dir, tokenizer_, model_.config().text)),
      image_token_(added_token(checkpoint_dir, tokenizer_, model_.config().image_token_id,
                               "image_token_index")) {
    try {
        chat_template_ = ChatTemplate::load(checkpoint_dir);
    } catch (const Error& error) {
        chat_template_error_ = error.what();
    }
}

GenerationOptions Mllama::default_options() const {
    GenerationOptions options;
    options.sampling = generation_.sampling;
    options.max_new_tokens = generation_.max_new_tokens;
    options.max_length = generation_.max_length;
    options.stop = generation_.stop;
    options.eos_token_ids = generation_.eos_token_ids;
    return options;
}

std::string Mllama::prompt_text(const Request& request, const PrepareOptions& options) const {
    if (!request.messages) return add_begin_of_text(request.prompt, bos_token_, image_token_);
    if (!chat_template_) fail(chat_template_error_);
    RenderOptions render;
    render.add_generation_prompt = options.add_generation_prompt;
    render.tools = request.tools.get();
    render.date_string = options.date.empty() ? today() : options.date;
    return add_begin_of_text(chat_template_->render(*request.messages, render), bos_token_,
                             image_token_);
}

ProcessedImage Mllama::load_picture(const std::string& path) const {
    const Image picture = load_image(path);
    if (!image_processor_.do_convert_rgb && !picture.stored_as_rgb) {
        fail(path, ": expected an RGB picture, since do_convert_rgb is false");
    }
    ProcessedImage image = process(picture, image_processor_);
    // The processor counts the shapes of its own number of tiles; the embeddings are indexed by the
    // model's list.
    const auto& ratios = model_.config().vision.supported_aspect_ratios;
    const auto found =
        std::find(ratios.begin(), ratios.end(), std::pair(image.tiles_high, image.tiles_wide));
    if (found == ratios.end()) {
        fail(path, ": ", image.tiles_high, " x ", image.tiles_wide,
             " tiles are not among the supported_aspect_ratios of config.json");
    }
    image.aspect_ratio_id = found - ratios.begin() + 1;
    return image;
}

void Mllama::check_prompt(std::span<const int64_t> ids, size_t images) const {
    const ModelConfig& config = model_.config();
    const auto places = std::count(ids.begin(), ids.end(), config.image_token_id);
    if (static_cast<size_t>(places) != images) {
        fail("the text has ", places, " places for images (", image_token_, "), and ", images,
             " images are given");
    }
    if (static_cast<int64_t>(ids.size()) > config.text.max_position_embeddings) {
        fail("the prompt has ", ids.size(), " tokens; the model takes at most ",
             config.text.max_position_embeddings, " (max_position_embeddings of ", checkpoint_dir_,
             "/config.json)");
    }
    for (const int64_t id : ids) {
        if (id < 0 || id >= config.text.embedding_rows()) {
            fail(checkpoint_dir_, "/tokenizer.json: token ", id, ": expected an id below ",
                 config.text.embedding_rows(), ", vocab_size + 8 of config.json");
        }
    }
}

std::vector<int64_t> Mllama::encode(const std::string& text) const {
    const std::vector<int32_t> ids = tokenizer_.encode(text);
    return {ids.begin(), ids.end()};
}

Prompt Mllama::prepare(const Request& request, const PrepareOptions& options) const {
    try {
        Prompt prompt;
        prompt.ids = encode(prompt_text(request, options));
        check_prompt(prompt.ids, request.images.size());
        for (const std::string& path : request.images) prompt.images.push_back(load_picture(path));
        return prompt;
    } catch (const Error& error) {
        if (request.where.empty()) throw;
        fail(request.where, ": ", error.what());
    }
}

}  // namespace mllama
