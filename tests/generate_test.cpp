// The loop over tokens: that the few logits that an answer is drawn from are enough.
#include <doctest/doctest.h>

#include "tests/sampled_answers.h"

using namespace mllama;
using namespace mllama::test;

namespace {

void check_all_ways_to_draw(const std::string& checkpoint) {
    CAPTURE(checkpoint);
    const Mllama mllama = Mllama::load(checkpoint, {});
    for (const int64_t top_k : {0, 1, 2, 3, 50, 420, 421, 2000}) {
        for (const double repetition_penalty : {1.0, 1.3})
            check_drawn_answers(mllama, {false, 0.8, top_k, 0.95, 0.001, repetition_penalty, 7},
                                12);
    }
}

}  // namespace

TEST_CASE("generate_draws_from_few_logits_what_all_of_them_draw") {
    check_all_ways_to_draw(models_folder() + "/a_published");
}

TEST_CASE("generate_draws_from_all_logits_where_the_kth_is_equal_to_others") {
    const TemporaryDirectory folder;
    check_all_ways_to_draw(checkpoint_with_ties(folder));
}
