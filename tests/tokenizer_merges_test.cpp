// The vocabulary, the merge table and the merging itself, against their plain versions.
#include <doctest/doctest.h>

#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tokenizer/merges.h"
#include "tokenizer/vocabulary.h"

using namespace mllama;

namespace {

/// The definition: look through all neighbours for the lowest rank, of equal ones the leftmost, and
/// merge it.
std::vector<int32_t> merge_plainly(const MergeTable& table, std::vector<int32_t> symbols) {
    while (true) {
        std::optional<uint32_t> best;
        size_t place = 0;
        for (size_t i = 0; i + 1 < symbols.size(); ++i) {
            const auto rank = table.rank(symbols[i], symbols[i + 1]);
            if (rank && (!best || *rank < *best)) {
                best = rank;
                place = i;
            }
        }
        if (!best) return symbols;
        symbols[place] = table[*best].merged;
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
}

/// Random merges over `letters` symbols: each makes a new symbol of two that exist.
MergeTable random_merges(std::mt19937& random, int32_t letters, int count) {
    MergeTable table;
    std::map<std::pair<int32_t, int32_t>, int32_t> made;
    int32_t next = letters;
    while (static_cast<int>(table.size()) < count) {
        std::uniform_int_distribution<int32_t> any(0, next - 1);
        const int32_t left = any(random);
        const int32_t right = any(random);
        if (!made.emplace(std::pair(left, right), next).second) continue;
        table.add({left, right, next++});
    }
    return table;
}

}  // namespace

TEST_CASE("merge_random_words_matches_the_plain_loop") {
    std::mt19937 random(7);
    Merger merger;
    for (int round = 0; round < 300; ++round) {
        const int32_t letters = 2 + round % 4;
        const MergeTable table = random_merges(random, letters, 1 + round % 40);
        for (size_t length = 0; length < 40; ++length) {
            std::vector<int32_t> symbols(length);
            for (int32_t& symbol : symbols)
                symbol = std::uniform_int_distribution<int32_t>(0, letters - 1)(random);
            const std::vector<int32_t> expected = merge_plainly(table, symbols);
            merger.merge(table, symbols);
            REQUIRE(symbols == expected);
        }
    }
}

TEST_CASE("merge_equal_ranks_go_leftmost_first") {
    MergeTable table;
    table.add({0, 0, 1});
    Merger merger;
    std::vector<int32_t> symbols(5, 0);
    merger.merge(table, symbols);
    CHECK(symbols == std::vector<int32_t>{1, 1, 0});
}

TEST_CASE("merge_a_million_symbols_takes_no_quadratic_time") {
    MergeTable table;
    for (int32_t power = 0; power < 8; ++power) table.add({power, power, power + 1});
    Merger merger;
    std::vector<int32_t> symbols(1 << 20, 0);
    merger.merge(table, symbols);
    CHECK(symbols == std::vector<int32_t>((1 << 20) / 256, 8));
}

TEST_CASE("merge_table_finds_what_was_added_and_nothing_else") {
    std::mt19937 random(3);
    MergeTable table;
    CHECK(!table.rank(0, 0));
    std::map<std::pair<int32_t, int32_t>, uint32_t> expected;
    std::uniform_int_distribution<int32_t> any(0, 120);
    for (uint32_t rank = 0; rank < 20000; ++rank) {
        const Merge merge{any(random), any(random), 1000};
        table.add(merge);
        expected[{merge.left, merge.right}] = rank;  // a repeated pair takes its last rank
    }
    for (int32_t left = 0; left <= 121; ++left) {
        for (int32_t right = 0; right <= 121; ++right) {
            const auto found = expected.find({left, right});
            REQUIRE(table.rank(left, right) ==
                    (found == expected.end() ? std::nullopt : std::optional(found->second)));
        }
    }
}

TEST_CASE("vocabulary_finds_tokens_both_ways_and_refuses_doubles") {
    Vocabulary vocabulary;
    CHECK(!vocabulary.find("a"));
    CHECK(!vocabulary.spelling(0));
    for (int32_t i = 0; i < 5000; ++i)
        REQUIRE(vocabulary.add(std::string(static_cast<size_t>(i % 40), 'x') + std::to_string(i),
                               2 * i));
    REQUIRE(vocabulary.add("", 1));
    CHECK(!vocabulary.add("", 3));
    CHECK(!vocabulary.add("new", 4));
    CHECK(!vocabulary.find("new"));
    CHECK(vocabulary.find("") == 1);
    CHECK(vocabulary.spelling(1) == "");
    for (int32_t i = 0; i < 5000; ++i) {
        const std::string spelling =
            std::string(static_cast<size_t>(i % 40), 'x') + std::to_string(i);
        REQUIRE(vocabulary.find(spelling) == 2 * i);
        REQUIRE(vocabulary.spelling(2 * i) == spelling);
    }
    CHECK(!vocabulary.spelling(3));
    CHECK(!vocabulary.spelling(-1));
    CHECK(!vocabulary.spelling(INT32_MAX));
    CHECK(vocabulary.count() == 5001);
    CHECK(vocabulary.id_limit() == 9999);
}

TEST_CASE("hash_bytes_tells_lengths_and_padding_apart") {
    CHECK(hash_bytes("") != hash_bytes(std::string_view("\0", 1)));
    CHECK(hash_bytes(std::string_view("ab\0", 3)) != hash_bytes("ab"));
    CHECK(hash_bytes("abcdefgh1") != hash_bytes("abcdefgh2"));
}
