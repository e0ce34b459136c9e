// What a token costs beside time: no allocation, and of the weights only those that it needs.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "io/checkpoint.h"
#include "mllama/checkpoint_weights.h"
#include "mllama/mllama.h"
#include "tests/allocation_counter.h"

using namespace mllama;

namespace {

const std::string demo_model = std::string(MLLAMA_TEST_DATA) + "/../apps/demo/model";
const std::string demo_pictures = std::string(MLLAMA_TEST_DATA) + "/../apps/demo/pictures";

Prompt prompt_of(const Mllama& mllama, const std::string& text, bool with_picture) {
    Request request;
    request.prompt = text;
    if (with_picture) {
        const auto first = std::filesystem::directory_iterator(demo_pictures);
        request.prompt = "<|image|>" + text;
        request.images.push_back(begin(first)->path().string());
    }
    return mllama.prepare(request, {});
}

/// Allocations of `tokens` steps of decoding, after a few that may grow what is kept.
int64_t allocations_of_decoding(const Mllama& mllama, const Prompt& prompt, int tokens) {
    Sequence sequence = mllama.model().new_sequence();
    sequence.reserve(static_cast<int64_t>(prompt.ids.size()) + tokens + 3);
    for (const ProcessedImage& image : prompt.images) {
        mllama.model().add_image(sequence, mllama.model().encode_image(image));
    }
    (void)mllama.model().prefill(sequence, prompt.ids);
    const int64_t token = prompt.ids.back();
    const SequenceInput input{&sequence, {&token, 1}, 1};
    for (int i = 0; i < 3; ++i) (void)mllama.model().forward({&input, 1});
    const int64_t before = allocations;
    for (int i = 0; i < tokens; ++i) (void)mllama.model().forward({&input, 1});
    return allocations - before;
}

/// Allocations of decoding texts of `begin` tokens until they have `end`, all of them reserved, after
/// a few steps.
int64_t allocations_of_long_decoding(const Model& model, int64_t begin, int64_t end,
                                     size_t sequences) {
    const std::vector<int64_t> ids(static_cast<size_t>(begin), 17);
    const std::span<const int64_t> token(ids.data(), 1);
    std::vector<Sequence> texts;
    for (size_t i = 0; i < sequences; ++i) {
        texts.push_back(model.new_sequence());
        texts.back().reserve(end);
        (void)model.prefill(texts.back(), ids);
    }
    std::vector<SequenceInput> inputs;
    for (Sequence& text : texts) inputs.push_back({&text, token, 1});
    for (int i = 0; i < 3; ++i) (void)model.most_probable(inputs);
    const int64_t before = allocations;
    while (texts.front().length() < end) (void)model.most_probable(inputs);
    return allocations - before;
}

/// The number of threads for the life of a test.
class Threads {
  public:
    explicit Threads(int count) : before_(ops::threads()) { ops::set_threads(count); }
    ~Threads() { ops::set_threads(before_); }
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

  private:
    int before_;
};

/// The addresses where a file is mapped.
std::vector<uintptr_t> mappings_of(const std::string& path) {
    std::vector<uintptr_t> begins;
    std::ifstream maps("/proc/self/maps");
    std::string line;
    const std::string name = std::filesystem::canonical(path).string();
    while (std::getline(maps, line)) {
        uintptr_t begin = 0;
        if (line.size() > name.size() && line.ends_with(name) &&
            std::sscanf(line.c_str(), "%" SCNxPTR, &begin) == 1) {
            begins.push_back(begin);
        }
    }
    return begins;
}

bool only_for_pictures(const std::string& name, const TextConfig& config) {
    if (name.starts_with("vision_model.") || name.starts_with("multi_modal_projector."))
        return true;
    for (const int64_t layer : config.cross_attention_layers) {
        if (name.starts_with("language_model.model.layers." + std::to_string(layer) + ".")) {
            return true;
        }
    }
    return false;
}

/// The small tables that are copied as float32 when a model is loaded, as vectors are.
bool is_copied_at_load(const std::string& name) {
    return name.ends_with("gated_positional_embedding.embedding") ||
           name.ends_with("pre_tile_positional_embedding.embedding.weight") ||
           name.ends_with("post_tile_positional_embedding.embedding.weight");
}

/// Sets the protection of all whole pages of the matrices that only pictures need, in the mapping
/// that begins at `mapped`; of those that loading need not read, or of all. Returns how many bytes
/// that were.
int64_t protect_picture_weights(const Checkpoint& checkpoint, const TextConfig& config,
                                uintptr_t mapped, uintptr_t checkpoint_mapped, int protection,
                                bool all = true) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    int64_t bytes = 0;
    for (const std::string& name : checkpoint.names()) {
        const TensorInfo& info = checkpoint.info(name);
        if (info.shape.size() < 2 || !only_for_pictures(name, config)) continue;
        if (!all && is_copied_at_load(name)) continue;
        const Tensor tensor = checkpoint.get(name, Shape(info.shape));
        const uintptr_t begin =
            reinterpret_cast<uintptr_t>(tensor.data()) - checkpoint_mapped + mapped;
        const uintptr_t first = (begin + page - 1) / page * page;
        const uintptr_t last = (begin + static_cast<uintptr_t>(info.bytes)) / page * page;
        if (first >= last) continue;
        REQUIRE(mprotect(reinterpret_cast<void*>(first), last - first, protection) == 0);
        bytes += static_cast<int64_t>(last - first);
    }
    return bytes;
}

}  // namespace

TEST_CASE("decoding_allocates_nothing") {
    for (const WeightType type :
         {WeightType::as_stored, WeightType::f32, WeightType::int8, WeightType::int4}) {
        const Mllama mllama = Mllama::load(demo_model, {type, Reference::transformers});
        CHECK(allocations_of_decoding(mllama, prompt_of(mllama, "What is 2 plus 3?", false), 20) ==
              0);
        CHECK(allocations_of_decoding(mllama, prompt_of(mllama, "What is it?", true), 20) == 0);
    }
    CHECK(allocations > 0);  // the counter counts
}

TEST_CASE("decoding_a_text_that_grows_allocates_nothing") {
    const Mllama mllama = Mllama::load(demo_model, {});
    for (const int threads : {1, 3}) {
        CAPTURE(threads);
        const Threads of_test(threads);
        // Chunks of 512 keys that attention begins; near 3277 and 3573 its loops become worth more
        // than one thread.
        CHECK(allocations_of_long_decoding(mllama.model(), 16, 1100, 1) == 0);
        CHECK(allocations_of_long_decoding(mllama.model(), 480, 1100, 3) == 0);
        CHECK(allocations_of_long_decoding(mllama.model(), 3240, 3900, 1) == 0);
    }
}

TEST_CASE("loading_touches_no_page_of_the_matrices_that_only_pictures_need") {
    const ModelConfig config = ModelConfig::load(demo_model);
    const Checkpoint checkpoint = open_checkpoint(demo_model);
    const uintptr_t mapped = mappings_of(demo_model + "/model.safetensors").front();
    const auto protect = [&](int protection) {
        return protect_picture_weights(checkpoint, config.text, mapped, mapped, protection, false);
    };
    CHECK(protect(PROT_NONE) > 2'000'000);
    const Model model =
        Model::build(config, CheckpointWeights(checkpoint, config.quantisation), {});
    Sequence text = model.new_sequence();
    const std::vector<int64_t> ids = {5, 17, 6};
    CHECK(model.prefill(text, ids).rows() == 1);
    CHECK(protect(PROT_READ) > 2'000'000);
}

TEST_CASE("text_alone_touches_no_page_of_what_only_pictures_need") {
    const Mllama mllama = Mllama::load(demo_model, {});
    const std::string file = demo_model + "/model.safetensors";
    const std::vector<uintptr_t> of_model = mappings_of(file);
    REQUIRE(of_model.size() == 1);
    const Checkpoint checkpoint = open_checkpoint(demo_model);
    const std::vector<uintptr_t> of_both = mappings_of(file);
    REQUIRE(of_both.size() == 2);
    const uintptr_t mapped = of_model.front();
    const uintptr_t other = of_both.front() == mapped ? of_both.back() : of_both.front();
    const TextConfig& config = mllama.model().config().text;
    const auto protect = [&](int protection) {
        return protect_picture_weights(checkpoint, config, mapped, other, protection);
    };

    // From here on, touching one of these pages would end this program.
    CHECK(protect(PROT_NONE) > 2'000'000);
    const Prompt question = prompt_of(mllama, "What is 2 plus 3?", false);
    const Completion answer = mllama.generate({&question, 1}, mllama.default_options(), {}).front();
    CHECK(!answer.tokens.empty());
    CHECK(protect(PROT_READ) > 2'000'000);
    const Prompt about_picture = prompt_of(mllama, "What does the image show?", true);
    CHECK(
        !mllama.generate({&about_picture, 1}, mllama.default_options(), {}).front().tokens.empty());
}
