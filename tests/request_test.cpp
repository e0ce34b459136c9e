#include "mllama/request.h"

#include <doctest/doctest.h>

#include "io/json.h"
#include "tests/program.h"

using namespace mllama;
using namespace mllama::test;

TEST_CASE("request_pictures_of_messages_come_in_order") {
    const OrderedJson messages = OrderedJson::parse(R"([
        {"role": "user", "content": [{"type": "image", "path": "/a.png"}, {"type": "text", "text": "x"}, {"type": "image"}]},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": [{"type": "image", "path": "/c.png"}]}])");
    const Request request = request_from_messages(messages, {"/b.png"}, "m.json", "");
    CHECK(request.images == std::vector<std::string>{"/a.png", "/b.png", "/c.png"});
    CHECK(request.messages != nullptr);
}

TEST_CASE("request_pictures_left_over_or_missing_are_errors") {
    const OrderedJson one =
        OrderedJson::parse(R"([{"role": "user", "content": [{"type": "image"}]}])");
    CHECK_THROWS_WITH_AS(request_from_messages(one, {}, "m.json", ""), doctest::Contains("path"),
                         Error);
    CHECK_THROWS_WITH_AS(request_from_messages(one, {"/a", "/b"}, "m.json", ""),
                         doctest::Contains("2 images"), Error);
}

TEST_CASE("request_files_are_found_beside_the_file_that_names_them") {
    const TemporaryDirectory folder;
    folder.write("cat.png", "x");
    folder.write(
        "batch.jsonl",
        "{\"prompt\": \"<|image|>\", \"images\": [\"cat.png\", \"/abs.png\", \"none.png\"]}\n\n");
    const std::vector<Request> requests = read_batch_file(folder.file("batch.jsonl"));
    REQUIRE(requests.size() == 1);
    CHECK(requests[0].images ==
          std::vector<std::string>{folder.file("cat.png"), "/abs.png", "none.png"});
}

TEST_CASE("request_tools_go_with_messages") {
    const TemporaryDirectory folder;
    folder.write("batch.jsonl",
                 R"({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}]})");
    const std::vector<Request> requests = read_batch_file(folder.file("batch.jsonl"));
    REQUIRE(requests.at(0).tools != nullptr);
    CHECK(requests[0].tools->at(0).at("name") == "f");
    folder.write("bad.jsonl", R"({"messages": [{"role": "user", "content": "x"}], "tools": 3})");
    CHECK_THROWS_WITH_AS(read_batch_file(folder.file("bad.jsonl")), doctest::Contains("tools"),
                         Error);
}
