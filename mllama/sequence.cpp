#include "mllama/sequence.h"

#include <algorithm>

namespace mllama {

Sequence::Sequence(const TextConfig& config, DType kv_dtype, const std::vector<Device>& devices,
                   const std::vector<std::shared_ptr<KvPool>>& pools)
    : self_attention(static_cast<size_t>(config.num_hidden_layers)),
      cross_attention(static_cast<size_t>(config.num_hidden_layers)) {
    for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
        auto& caches = config.is_cross_attention(layer) ? cross_attention : self_attention;
        const auto i = static_cast<size_t>(layer);
        caches[i] =
            KvCache(config.num_key_value_heads, config.head_dim(), kv_dtype, devices[i], pools[i]);
    }
}

void Sequence::reserve(int64_t positions) {
    for (KvCache& cache : self_attention) {
        if (cache.width() > 0) cache.reserve(positions);
    }
}

void Sequence::truncate(std::span<const int64_t> ids, int64_t image_token_id) {
    const auto length = static_cast<int64_t>(ids.size());
    for (KvCache& cache : self_attention) {
        if (cache.width() > 0) cache.truncate(length);
    }
    image_rule = ImageRule();
    for (const int64_t id : ids) image_rule.next(id == image_token_id);
    length_ = length;
}

void Sequence::add_image(const TileLayout& layout, int64_t rows_per_tile) {
    ImageKeys keys;
    keys.begin = images_.empty() ? 0 : images_.back().end;
    keys.real_end = keys.begin + layout.real_tiles * rows_per_tile;
    keys.end = keys.begin + layout.tiles() * rows_per_tile;
    images_.push_back(keys);
    append_key_bias(layout, rows_per_tile, bias_);
    const bool any = std::any_of(bias_.begin(), bias_.end(), [](float b) { return b != 0.0f; });
    if (!any) return;
    const Tensor bias = Tensor::from(bias_);
    for (const KvCache& cache : cross_attention) {
        if (cache.width() == 0) continue;
        Tensor& here = key_bias_[cache.device()];
        if (here.numel() == bias.numel()) continue;
        here = Tensor();  // so that both are never there at once
        here = bias.to(cache.device());
    }
}

}  // namespace mllama
