// The threads that the operations share: one team for the process, started at its first use and
// asleep between loops.
//
// A loop's items are handed out one by one, so that a thread that the system keeps waiting does not
// hold up the others with a fixed share. Which thread computes an item never shows in the result:
// items are independent.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mllama::cpu {

/// A loop without its type: run(body, i) for i in [0, items), items < 2^32.
struct Loop {
    void (*run)(const void* body, int64_t item);
    const void* body;
    int64_t items;
};

/// Runs the loop on the team and returns when all items are done; then throws the first exception
/// of an item again, if there was one. Inside of another loop, or while another thread of the
/// program uses the team, the calling thread runs all items itself.
void run_on_team(const Loop& loop);

/// Where this thread stands in the team: 0 for all that are not of it (a loop has one of those, the
/// one that started it), 1, 2, ... for the others; less than team_places().
int team_place();
int team_places();

/// Below this many elements (or multiply-adds / 16) waking the threads costs more than it saves.
inline constexpr int64_t worth_threads = 1 << 15;

/// body(i) for i in [0, n), on the team unless `serial`.
template <class Body>
void for_each_item(int64_t n, bool serial, const Body& body) {
    if (serial || n <= 1) {
        for (int64_t i = 0; i < n; ++i) body(i);
        return;
    }
    run_on_team({[](const void* of, int64_t i) { (*static_cast<const Body*>(of))(i); }, &body, n});
}

/// Cuts [0, n) into pieces of `piece` and runs body(begin, end) for each.
template <class Body>
void for_each_piece(int64_t n, int64_t piece, bool serial, const Body& body) {
    for_each_item((n + piece - 1) / piece, serial,
                  [&](int64_t i) { body(i * piece, std::min(n, (i + 1) * piece)); });
}

/// body(r) for the rows of an operation: pieces of about 16,384 elements.
template <class Body>
void for_each_row(int64_t rows, int64_t width, const Body& body) {
    const int64_t piece = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
    for_each_piece(rows, piece, rows * width < worth_threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) body(r);
    });
}

}  // namespace mllama::cpu
