// Files of a checkpoint are regular files; what a user names may be a pipe.
#include "io/read_file.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <thread>

#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

TEST_CASE("read_file_gives_all_bytes") {
    const TemporaryDirectory directory;
    std::string bytes;
    for (int i = 0; i < 200'000; ++i) bytes += static_cast<char>(i * 7);
    const std::string path = directory.write("file", bytes);
    CHECK(read_file(path) == bytes);
    CHECK(read_input(path) == bytes);
    CHECK(read_file(directory.write("empty", "")).empty());
    CHECK(read_file(path, 200'000).size() == 200'000);
    for (const auto read : {read_file, read_input}) {
        CHECK(error_of([&] { return read(path, 199'999); }) ==
              path + ": larger than the 199999 bytes that are read of such a file");
        CHECK(error_of([&] { return read(directory / "none", 1); }) ==
              directory / "none: cannot be read: No such file or directory");
        CHECK(error_of([&] { return read(directory.path(), 1); }) ==
              directory.path() + ": expected a file, found a directory");
    }
}

TEST_CASE("read_file_refuses_pipes_and_devices_at_once") {
    const TemporaryDirectory directory;
    const std::string pipe = directory / "pipe";  // nobody writes to it
    REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
    CHECK(error_of([&] { return read_file(pipe); }) ==
          pipe + ": expected a regular file, found a device or pipe");
    CHECK(error_of([] { return read_file("/dev/zero"); }) ==
          "/dev/zero: expected a regular file, found a device or pipe");
}

TEST_CASE("read_input_takes_a_pipe_to_its_end") {
    const TemporaryDirectory directory;
    const std::string pipe = directory / "pipe";
    REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
    const std::string text(300'000, 'x');  // more than a pipe holds
    std::thread writer([&] { write_bytes(pipe, text); });
    const std::string read = read_input(pipe);
    writer.join();
    CHECK(read == text);
    CHECK(read_input("/dev/null").empty());
    CHECK(holds_all(error_of([] { return read_input("/dev/zero", 1000); }), {"larger than"}));
}
