// The model as a library: what a sample's result may not depend on, the shortcut of the vision
// tower, traps, bf16.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "mllama/mllama.h"
#include "tests/compare.h"
#include "tests/goldens.h"

using namespace mllama;
using namespace mllama::test;

namespace {

std::string checkpoint(const std::string& name) {
    return models_folder() + "/" + name;
}

constexpr WeightType weight_types[] = {WeightType::f32, WeightType::bf16, WeightType::int8,
                                       WeightType::int4};

Mllama load(const std::string& name, WeightType type = WeightType::f32,
            Reference reference = Reference::transformers) {
    return Mllama::load(checkpoint(name), {type, reference});
}

Prompt prompt_of(const Mllama& mllama, const std::string& text,
                 const std::vector<std::string>& pictures) {
    Request request;
    request.prompt = text;
    for (const std::string& picture : pictures)
        request.images.push_back(models_folder() + "/pictures/" + picture);
    return mllama.prepare(request, {});
}

/// Samples with none, one and two pictures, of different lengths.
std::vector<Prompt> some_prompts(const Mllama& mllama) {
    return {prompt_of(mllama, "What is the colour of the leaves in the morning?", {}),
            prompt_of(mllama, "<|image|>If I had to write a haiku for this one", {"square.png"}),
            prompt_of(mllama, "Look: <|image|><|image|>Compare the two pictures.",
                      {"wide.png", "tall.png"}),
            prompt_of(mllama, "<|image|>x", {"dot.png"})};
}

Sequence start(const Mllama& mllama, const Prompt& prompt) {
    Sequence sequence = mllama.model().new_sequence();
    for (const ProcessedImage& image : prompt.images)
        mllama.model().add_image(sequence, mllama.model().encode_image(image));
    return sequence;
}

std::vector<float> floats(const Tensor& x) {
    return {x.data<float>(), x.data<float>() + x.numel()};
}

/// Logits of all tokens of a prompt, fed in parts of `chunk` tokens.
std::vector<float> logits_in_chunks(const Mllama& mllama, const Prompt& prompt, size_t chunk) {
    Sequence sequence = start(mllama, prompt);
    std::vector<float> all;
    for (size_t begin = 0; begin < prompt.ids.size(); begin += chunk) {
        const size_t count = std::min(chunk, prompt.ids.size() - begin);
        const SequenceInput input{
            &sequence, {prompt.ids.data() + begin, count}, static_cast<int64_t>(count)};
        const std::vector<float> part = floats(mllama.model().forward({&input, 1}));
        all.insert(all.end(), part.begin(), part.end());
    }
    return all;
}

std::vector<float> logits_alone(const Mllama& mllama, const Prompt& prompt) {
    return logits_in_chunks(mllama, prompt, prompt.ids.size());
}

GenerationOptions greedy(int64_t tokens) {
    GenerationOptions options;
    options.max_new_tokens = tokens;
    return options;
}

}  // namespace

TEST_CASE("forward_result_is_the_same_in_any_batch_to_the_bit") {
    for (const WeightType type : weight_types) {
        const Mllama mllama = load("a_published", type);
        std::vector<Prompt> prompts;  // more than most_sequences
        for (int i = 0; i < 3; ++i) {
            for (Prompt& prompt : some_prompts(mllama)) prompts.push_back(std::move(prompt));
        }
        std::vector<Sequence> sequences;
        sequences.reserve(prompts.size());
        std::vector<SequenceInput> inputs;
        for (const Prompt& prompt : prompts) {
            sequences.push_back(start(mllama, prompt));
            inputs.push_back(
                {&sequences.back(), prompt.ids, static_cast<int64_t>(prompt.ids.size())});
        }
        const Tensor batch = mllama.model().forward(inputs);
        // The logits lie in scratch memory that the next call uses again: they are copied first.
        std::vector<std::vector<float>> parts;
        int64_t row = 0;
        for (const Prompt& prompt : prompts) {
            const auto rows = static_cast<int64_t>(prompt.ids.size());
            parts.push_back(floats(batch.rows(row, row + rows)));
            row += rows;
        }
        for (size_t i = 0; i < prompts.size(); ++i) {
            CAPTURE(i);
            CHECK(compare_bits(parts[i], logits_alone(mllama, prompts[i])) == "");
        }
    }
}

TEST_CASE("most_probable_tokens_are_those_with_the_largest_logits") {
    const Mllama mllama = load("a_published");
    const std::vector<Prompt> prompts = some_prompts(mllama);
    std::vector<Sequence> sequences;
    sequences.reserve(prompts.size());
    std::vector<SequenceInput> inputs;
    for (const Prompt& prompt : prompts) {
        sequences.push_back(start(mllama, prompt));
        inputs.push_back({&sequences.back(), prompt.ids, 1});
    }
    inputs[1].logits_to_keep = 0;
    const std::span<const int64_t> found = mllama.model().most_probable(inputs);
    const std::vector<int64_t> ids(found.begin(), found.end());  // the next call uses the memory
    std::vector<int64_t> expected;
    for (const size_t i : {0, 2, 3}) {
        const std::vector<float> logits = logits_alone(mllama, prompts[i]);
        const auto last = logits.end() - mllama.model().config().text.vocab_size;
        expected.push_back(std::max_element(last, logits.end()) - last);
    }
    CHECK(ids == expected);
    inputs.resize(1);
    inputs[0].logits_to_keep = 0;
    CHECK(mllama.model().most_probable(inputs).empty());
}

TEST_CASE("forward_result_is_the_same_in_any_chunks_to_the_bit") {
    for (const WeightType type : weight_types) {
        const Mllama mllama = load("b_general", type);
        for (const Prompt& prompt : some_prompts(mllama)) {
            const std::vector<float> whole = logits_alone(mllama, prompt);
            for (const size_t chunk : {size_t{1}, size_t{2}, size_t{5}, size_t{7}}) {
                CAPTURE(chunk);
                CHECK(compare_bits(logits_in_chunks(mllama, prompt, chunk), whole) == "");
            }
        }
    }
}

TEST_CASE("forward_result_is_the_same_with_any_number_of_threads_to_the_bit") {
    const Mllama mllama = load("a_published", WeightType::bf16);
    const std::vector<Prompt> prompts = some_prompts(mllama);
    ops::set_threads(1);
    std::vector<std::vector<float>> expected;
    for (const Prompt& prompt : prompts) expected.push_back(logits_alone(mllama, prompt));
    for (const int threads : {2, 3, 5}) {
        ops::set_threads(threads);
        for (size_t i = 0; i < prompts.size(); ++i)
            CHECK(compare_bits(logits_alone(mllama, prompts[i]), expected[i]) == "");
    }
    ops::set_threads(2);
}

TEST_CASE("prefill_in_chunks_gives_the_last_row_of_the_whole") {
    const Mllama mllama = load("a_published");
    const Prompt prompt =
        prompt_of(mllama, "<|image|>How many people are standing on the bridge?", {"clear.png"});
    const std::vector<float> whole = logits_alone(mllama, prompt);
    Sequence sequence = start(mllama, prompt);
    const std::vector<float> last = floats(mllama.model().prefill(sequence, prompt.ids, 3));
    CHECK(compare_bits(last, std::vector<float>(whole.end() - static_cast<int64_t>(last.size()),
                                                whole.end())) == "");
    CHECK(sequence.length() == static_cast<int64_t>(prompt.ids.size()));
}

TEST_CASE("generate_batch_answers_are_those_of_each_sample_alone") {
    const Mllama mllama = load("a_published");
    const std::vector<Prompt> prompts = some_prompts(mllama);
    GenerationOptions options = greedy(12);
    options.prefill_chunk = 5;  // prompts are mixed in the forwards of the prefill
    const std::vector<Completion> batch = mllama.generate(prompts, options, {});
    for (size_t i = 0; i < prompts.size(); ++i) {
        const Completion alone = mllama.generate({&prompts[i], 1}, greedy(12), {}).front();
        CHECK(batch[i].tokens == alone.tokens);
        CHECK(batch[i].text == alone.text);
        CHECK(batch[i].prompt_tokens == static_cast<int64_t>(prompts[i].ids.size()));
    }
}

TEST_CASE("vision_padding_tiles_computed_once_equal_the_general_path") {
    const Mllama mllama = load("a_published");
    const VisionModel& vision = mllama.model().vision();
    for (const char* picture : {"dot.png", "wide.png", "tall.png", "strip.png", "large.png"}) {
        CAPTURE(picture);
        const ProcessedImage image = mllama.load_picture(models_folder() + "/pictures/" + picture);
        Arena scratch;
        const VisionFeatures shared = vision.forward(image, scratch, {}, true);
        const VisionFeatures general = vision.forward(image, scratch, {}, false);
        REQUIRE(vision.padding_tiles_equal(image.aspect_ratio_id));
        CHECK(general.layout.tiles() == vision.config().max_num_tiles);
        if (general.layout.padding_tiles > 1) CHECK(shared.layout.padding_tiles == 1);
        Tensor a = Tensor::empty({vision.config().num_patches(), vision.config().vision_output_dim},
                                 DType::f32);
        Tensor b = Tensor::empty(a.shape(), DType::f32);
        for (int64_t tile = 0; tile < general.layout.tiles(); ++tile) {
            general.tile_rows(tile, b);
            shared.tile_rows(std::min(tile, shared.layout.tiles() - 1), a);
            CHECK(compare_to_largest(a, b, 1e-5) == "");
        }
    }
}

TEST_CASE("vision_tiles_that_differ_take_the_general_path") {
    const Mllama mllama = load("b_general");
    const ProcessedImage image = mllama.load_picture(models_folder() + "/pictures/dot.png");
    REQUIRE(image.num_tiles == 1);
    CHECK(!mllama.model().vision().padding_tiles_equal(image.aspect_ratio_id));
    const VisionRows rows = mllama.model().encode_image(image);
    CHECK(rows.layout.tiles() == mllama.model().config().vision.max_num_tiles);
}

TEST_CASE("vision_states_equal_transformers") {
    for (const std::string& name : golden_checkpoints()) {
        for (const GoldenCase& golden : golden_cases(name)) {
            const SafetensorsFile expected = golden.expected();
            if (!expected.find("vision_model.last_hidden_state")) continue;
            CAPTURE(name);
            CAPTURE(golden.name);
            const Mllama mllama = load(name);
            const VisionConfig& c = mllama.model().config().vision;
            // The picture's tiles as the golden has them: (1, 1, max_num_tiles, 3, image_size,
            // image_size)
            const Tensor pixels = expected.get("pixel_values");
            REQUIRE(pixels.dim(1) == 1);
            ProcessedImage image;
            image.aspect_ratio_id = expected.get("aspect_ratio_ids").data<int64_t>()[0];
            const auto [high, wide] =
                c.supported_aspect_ratios[static_cast<size_t>(image.aspect_ratio_id - 1)];
            image.tiles_high = high;
            image.tiles_wide = wide;
            image.num_tiles = high * wide;
            image.tile_size = c.image_size;
            image.pixel_values.assign(
                pixels.data<float>(),
                pixels.data<float>() + image.num_tiles * 3 * c.image_size * c.image_size);
            const Tensor wanted = expected.get(
                "vision_model.last_hidden_state");  // (1, 1, tiles, num_patches, vision_output_dim)
            Arena scratch;
            const VisionFeatures features = mllama.model().vision().forward(image, scratch);
            Tensor found = Tensor::empty(wanted.shape(), DType::f32);
            Tensor tiles = found.view({c.max_num_tiles, c.num_patches() * c.vision_output_dim});
            for (int64_t tile = 0; tile < c.max_num_tiles; ++tile) {
                Tensor rows =
                    tiles.rows(tile, tile + 1).view({c.num_patches(), c.vision_output_dim});
                features.tile_rows(std::min(tile, features.layout.tiles() - 1), rows);
            }
            CHECK(compare_to_largest(found, wanted, 2e-4) == "");
        }
    }
}

TEST_CASE("bf16_error_is_no_larger_than_that_of_transformers") {
    int compared = 0;
    for (const GoldenCase& golden : golden_cases("d_bf16")) {
        const SafetensorsFile expected = golden.expected();
        if (!expected.find("logits_bf16")) continue;
        CAPTURE(golden.name);
        const Mllama mllama = load("d_bf16", WeightType::as_stored);
        REQUIRE(mllama.model().text().compute() == Compute::bf16);
        const Tensor truth = expected.get("logits");
        const Tensor theirs = ops::to_dtype(expected.get("logits_bf16"), DType::f32);
        Request request = read_batch_file(golden.requests()).front();
        for (std::string& image : request.images) image = models_folder() + "/" + image;
        const std::vector<float> ours =
            logits_alone(mllama, mllama.prepare(request, {golden.date, true}));
        REQUIRE(ours.size() == static_cast<size_t>(truth.numel()));
        double our_error = 0;
        double their_error = 0;
        for (size_t i = 0; i < ours.size(); ++i) {
            const double exact = truth.data<float>()[i];
            our_error += (ours[i] - exact) * (ours[i] - exact);
            their_error += (theirs.data<float>()[i] - exact) * (theirs.data<float>()[i] - exact);
        }
        CHECK(std::isfinite(our_error));
        CHECK(our_error > 0);  // it is bf16 that is measured
        CHECK(our_error <= their_error);
        ++compared;
    }
    CHECK(compared >= 2);
}

TEST_CASE("session_that_goes_on_gives_the_answers_of_the_whole_text") {
    const Mllama mllama = load("a_published");
    Prompt prompt =
        prompt_of(mllama, "<|image|>Describe the image in one sentence.", {"square.png"});
    Session session = mllama.new_session();
    for (int turn = 0; turn < 3; ++turn) {
        const Completion going_on = mllama.go_on(session, prompt, greedy(6), {});
        const Completion whole = mllama.generate({&prompt, 1}, greedy(6), {}).front();
        CHECK(going_on.tokens == whole.tokens);
        if (turn > 0) CHECK(going_on.timings.prefill_tokens < whole.timings.prefill_tokens);
        prompt.ids.insert(prompt.ids.end(), going_on.tokens.begin(), going_on.tokens.end());
        for (const int64_t id : mllama.encode(" And what is left of it?")) prompt.ids.push_back(id);
    }
}

TEST_CASE("session_whose_text_changed_forgets_what_no_longer_holds") {
    const Mllama mllama = load("a_published");
    Session session = mllama.new_session();
    const Prompt first = prompt_of(mllama, "<|image|>The first was wide", {"wide.png"});
    const Prompt other = prompt_of(mllama, "<|image|>The first was tall and", {"wide.png"});
    (void)mllama.go_on(session, first, greedy(5), {});
    const Completion going_on = mllama.go_on(session, other, greedy(5), {});
    CHECK(going_on.tokens == mllama.generate({&other, 1}, greedy(5), {}).front().tokens);
}

TEST_CASE("session_can_go_on_after_an_interruption") {
    const Mllama mllama = load("a_published");
    Session session = mllama.new_session();
    const Prompt prompt =
        prompt_of(mllama, "<|image|>Look at the table and explain it.", {"tall.png"});
    int steps = 0;
    GenerationObserver observer;
    observer.cancelled = [&steps] { return ++steps > 12; };
    CHECK_THROWS_AS((void)mllama.go_on(session, prompt, greedy(40), observer), Interrupted);
    const Completion after = mllama.go_on(session, prompt, greedy(8), {});
    CHECK(after.tokens == mllama.generate({&prompt, 1}, greedy(8), {}).front().tokens);
}

TEST_CASE("begin_of_text_goes_behind_leading_images_and_never_comes_twice") {
    const auto placed = [](const std::string& text) {
        return add_begin_of_text(text, "<B>", "<I>");
    };
    CHECK(placed("hello") == "<B>hello");
    CHECK(placed("") == "<B>");
    CHECK(placed("<I>hello") == "<I><B>hello");
    CHECK(placed("<I><I>a<I>b") == "<I><I><B>a<I>b");
    CHECK(placed("<B><I>hello") == "<B><I>hello");
    CHECK(placed("<I>hello<B>") == "<I>hello<B>");
}

TEST_CASE("image_token_has_an_embedding_and_no_logit") {
    const Mllama mllama = load("a_published");
    const ModelConfig& config = mllama.model().config();
    CHECK(config.image_token_id == config.text.vocab_size);
    const Prompt prompt = prompt_of(mllama, "<|image|>x", {"dot.png"});
    const std::vector<float> logits = logits_alone(mllama, prompt);
    CHECK(logits.size() == prompt.ids.size() * static_cast<size_t>(config.text.vocab_size));
}

TEST_CASE("text_without_a_picture_skips_cross_attention_whole") {
    const Mllama mllama = load("a_published");
    const Prompt prompt = prompt_of(mllama, "What is it?", {});
    Sequence sequence = mllama.model().new_sequence();
    std::vector<int64_t> layers;
    ForwardTrace trace;
    trace.hidden_state = [&](size_t, int64_t layer, const Tensor&) { layers.push_back(layer); };
    const SequenceInput input{&sequence, prompt.ids, 1};
    (void)mllama.model().forward({&input, 1}, &trace);
    const TextConfig& text = mllama.model().config().text;
    for (const int64_t layer : layers) CHECK(!text.is_cross_attention(layer));
    CHECK(layers.size() ==
          static_cast<size_t>(text.num_hidden_layers) - text.cross_attention_layers.size() + 1);
}

TEST_CASE("prompt_errors_count_places_and_positions") {
    const Mllama mllama = load("a_published");
    CHECK_THROWS_WITH_AS(prompt_of(mllama, "<|image|>x", {}), doctest::Contains("1 places"), Error);
    CHECK_THROWS_WITH_AS(prompt_of(mllama, "x", {"dot.png"}), doctest::Contains("1 images"), Error);
    CHECK_THROWS_WITH_AS(prompt_of(mllama, "<|image|>x", {"none.png"}),
                         doctest::Contains("none.png"), Error);
    std::string text = "<|image|>";
    for (int64_t i = 0; i <= mllama.model().config().text.max_position_embeddings; ++i)
        text += " 1";
    CHECK_THROWS_WITH_AS(prompt_of(mllama, text, {"dot.png"}),
                         doctest::Contains("max_position_embeddings"), Error);
}

TEST_CASE("generate_ends_at_stop_texts_and_at_the_length") {
    const Mllama mllama = load("a_published");
    const Prompt prompt = prompt_of(mllama, "What is the colour of the leaves in the morning?", {});
    const Completion free_running = mllama.generate({&prompt, 1}, greedy(20), {}).front();
    REQUIRE(free_running.text.size() > 6);
    GenerationOptions options = greedy(20);
    options.stop = {free_running.text.substr(3, 2)};
    const Completion stopped = mllama.generate({&prompt, 1}, options, {}).front();
    CHECK(stopped.finish_reason == FinishReason::stop);
    CHECK(stopped.text == free_running.text.substr(0, free_running.text.find(options.stop[0])));
    CHECK(stopped.tokens.size() < free_running.tokens.size());
    const Completion none = mllama.generate({&prompt, 1}, greedy(0), {}).front();
    CHECK(none.tokens.empty());
    CHECK(none.finish_reason == FinishReason::length);
}

TEST_CASE("generate_pieces_of_the_stream_are_the_text") {
    const Mllama mllama = load("a_published");
    const Prompt prompt = prompt_of(mllama, "Please read the numbers", {});
    std::string streamed;
    GenerationObserver observer;
    observer.text = [&](size_t, const std::string& piece) { streamed += piece; };
    const Completion completion = mllama.generate({&prompt, 1}, greedy(30), observer).front();
    CHECK(streamed == completion.text);
    CHECK(!streamed.empty());
}

TEST_CASE("generate_long_prompt_beside_short_ones_is_prefilled_and_counted") {
    const Mllama mllama = load("a_published");
    std::string words;
    for (int i = 0; i < 60; ++i) words += " the river";
    const std::vector<Prompt> prompts = {prompt_of(mllama, "hi", {}), prompt_of(mllama, words, {}),
                                         prompt_of(mllama, "hello", {})};
    GenerationOptions options = greedy(9);
    options.prefill_chunk = 4;
    int64_t last = 0;
    GenerationObserver observer;
    observer.prefill = [&last](int64_t done, int64_t all) {
        CHECK(done > last);
        CHECK(done <= all);
        last = done;
    };
    const std::vector<Completion> answers = mllama.generate(prompts, options, observer);
    int64_t prompt_tokens = 0;
    for (const Completion& answer : answers) prompt_tokens += answer.prompt_tokens;
    CHECK(last == prompt_tokens);
    CHECK(answers[0].timings.prefill_tokens == prompt_tokens);
    for (size_t i = 0; i < prompts.size(); ++i) {
        CHECK(answers[i].tokens == mllama.generate({&prompts[i], 1}, greedy(9), {}).front().tokens);
    }
}
