#include "apps/bench/work.h"

namespace mllama {

double picture_multiply_adds(const Model& model, int64_t real_tiles, int64_t vision_rows) {
    const auto projector = static_cast<double>(vision_rows) *
                           static_cast<double>(model.config().vision.vision_output_dim) *
                           static_cast<double>(model.config().text.hidden_size);
    return model.vision().multiply_adds(real_tiles) + projector;
}

double prefill_multiply_adds(const Model& model, int64_t tokens, const PicturesSeen& pictures) {
    const TextConfig& t = model.config().text;
    const bool with_images = pictures.images > 0;
    const auto rows = static_cast<double>(tokens);
    const auto hidden = static_cast<double>(t.hidden_size);
    const auto cross_layers = static_cast<double>(t.cross_attention_layers.size());
    const double self_layers = static_cast<double>(t.num_hidden_layers) - cross_layers;

    const double linear = rows * model.text().multiply_adds_per_row(with_images);
    const double keys_seen = rows * (rows + 1) / 2;                      // row i sees i + 1 keys
    const double self_attention = self_layers * keys_seen * 2 * hidden;  // scores, and values
    const double head = hidden * static_cast<double>(t.vocab_size);
    if (!with_images) return linear + self_attention + head;

    // The image token i sees the pictures 0 ... i, every later row all of them.
    const auto images = static_cast<double>(pictures.images);
    const double images_seen = rows * images - images * (images - 1) / 2;
    const double cross_attention =
        images_seen * static_cast<double>(pictures.real_rows) * 2 * hidden;
    const double keys_and_values =
        images * static_cast<double>(pictures.rows) * 2 * hidden * static_cast<double>(t.kv_size());
    return linear + self_attention + head + cross_layers * (cross_attention + keys_and_values);
}

int64_t cache_bytes_read(const Sequence& sequence) {
    int64_t bytes = 0;
    for (const KvCache& cache : sequence.self_attention) bytes += cache.bytes();
    int64_t real = 0;
    for (const ImageKeys& image : sequence.images()) real += image.real_end - image.begin;
    for (const KvCache& cache : sequence.cross_attention) {
        if (cache.length() > 0) bytes += cache.bytes() / cache.length() * real;
    }
    return bytes;
}

}  // namespace mllama
