// How often a log is told of progress.
#include "apps/pace.h"

#include <doctest/doctest.h>

#include <initializer_list>

using namespace mllama;

TEST_CASE("pace_of_short_work_writes_nothing") {
    Pace pace;
    for (const double seconds : {0.0, 0.5, 1.9}) CHECK(!pace.due(seconds));
}

TEST_CASE("pace_writes_after_two_seconds_then_every_ten") {
    Pace pace;
    int lines = 0;
    for (int i = 0; i <= 600; ++i) lines += pace.due(0.1 * i) ? 1 : 0;  // a minute
    CHECK(lines == 6);                                                  // at 2, 12, ... 52 s
}

TEST_CASE("pace_of_rare_steps_writes_each") {
    Pace pace;
    for (const double seconds : {30.0, 60.0, 90.0}) CHECK(pace.due(seconds));
}
