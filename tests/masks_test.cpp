// The rules of who sees what, against the plain reading of the reference's arrays.
#include "mllama/masks.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>

using namespace mllama;

namespace {

/// The mask of the reference, written as it is there (get_cross_attention_token_mask and
/// convert_sparse_cross_attention_mask_to_dense): whether token t sees image i.
std::vector<std::vector<bool>> dense_image_mask(const std::vector<bool>& is_image) {
    std::vector<int64_t> places;
    for (size_t t = 0; t < is_image.size(); ++t) {
        if (is_image[t]) places.push_back(static_cast<int64_t>(t));
    }
    const auto length = static_cast<int64_t>(is_image.size());
    std::vector<std::pair<int64_t, int64_t>> ranges;
    for (size_t i = 0; i < places.size(); ++i) {
        ranges.emplace_back(places[i], i + 1 < places.size() ? places[i + 1] : length);
    }
    int64_t last_end = length;
    for (auto range = ranges.rbegin(); range != ranges.rend(); ++range) {
        if (range->first == range->second - 1) range->second = last_end;
        last_end = range->second;
    }
    std::vector<std::vector<bool>> mask(is_image.size(), std::vector<bool>(places.size(), false));
    for (size_t i = 0; i < ranges.size(); ++i) {
        for (int64_t t = ranges[i].first; t < ranges[i].second; ++t)
            mask[static_cast<size_t>(t)][i] = true;
    }
    return mask;
}

bool sees(const KeyVisibility& visible, int64_t query, int64_t key) {
    const Visibility view = visible.of_all();
    for (int64_t r = view.first[query]; r < view.first[query + 1]; ++r) {
        if (key >= view.ranges[r].begin && key < view.ranges[r].end) return true;
    }
    return false;
}

}  // namespace

TEST_CASE("image_rule_random_texts_equal_the_reference_mask") {
    std::mt19937 random(7);
    for (int round = 0; round < 2000; ++round) {
        const auto length = 1 + random() % 14;
        const auto share = 1 + random() % 9;
        std::vector<bool> is_image(length);
        for (size_t t = 0; t < length; ++t) is_image[t] = random() % 10 < share;
        const auto expected = dense_image_mask(is_image);
        ImageRule rule;
        for (size_t t = 0; t < length; ++t) {
            const ImageSpan span = rule.next(is_image[t]);
            for (size_t i = 0; i < expected[t].size(); ++i) {
                const auto image = static_cast<int64_t>(i);
                REQUIRE((image >= span.first && image < span.last) == expected[t][i]);
            }
        }
    }
}

TEST_CASE("image_rule_text_before_the_first_image_sees_none") {
    ImageRule rule;
    CHECK(rule.next(false).empty());
    CHECK(!rule.next(true).empty());
    CHECK(rule.images() == 1);
}

TEST_CASE("image_rule_generated_tokens_see_what_the_last_row_sees") {
    ImageRule rule;
    for (const bool image : {true, false, true, true, false}) rule.next(image);
    for (int i = 0; i < 3; ++i) {
        const ImageSpan span = rule.next(false);
        CHECK(span.first == 1);
        CHECK(span.last == 3);
    }
}

TEST_CASE("tile_visibility_forbids_only_padding_to_padding") {
    const int64_t num_patches = 5;
    const int64_t padded = 8;
    for (int64_t real = 1; real <= 4; ++real) {
        const TileLayout layout = TileLayout::of(real, 4, false);
        const KeyVisibility visible = tile_visibility(layout, num_patches, padded);
        REQUIRE(visible.queries() == 4 * padded);
        const auto is_padding = [&](int64_t position) {
            return position / padded >= real || position % padded >= num_patches;
        };
        for (int64_t q = 0; q < 4 * padded; ++q) {
            for (int64_t k = 0; k < 4 * padded; ++k) {
                REQUIRE(sees(visible, q, k) == !(is_padding(q) && is_padding(k)));
            }
        }
    }
}

TEST_CASE("tile_layout_shares_padding_only_where_there_is_more_than_one") {
    CHECK(TileLayout::of(4, 4, true).tiles() == 4);
    CHECK(TileLayout::of(3, 4, true).tiles() == 4);
    CHECK(TileLayout::of(3, 4, true).multiplicity == 1);
    CHECK(TileLayout::of(1, 4, true).tiles() == 2);
    CHECK(TileLayout::of(1, 4, true).multiplicity == 3);
    CHECK(TileLayout::of(1, 4, false).tiles() == 4);
    CHECK(TileLayout::of(1, 4, false).multiplicity == 1);
}

TEST_CASE("key_bias_is_the_logarithm_of_the_number_of_equal_keys") {
    std::vector<float> bias;
    append_key_bias(TileLayout::of(2, 5, true), 3, bias);
    REQUIRE(bias.size() == 9);
    for (size_t i = 0; i < 6; ++i) CHECK(bias[i] == 0.0f);
    for (size_t i = 6; i < 9; ++i) CHECK(bias[i] == doctest::Approx(std::log(3.0)));
}
