// A file that is written is whole or not there, even if its writer is killed.
#include "io/atomic_file.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

TEST_CASE("atomic_file_appears_when_it_is_committed") {
    for (const bool nameless : {true, false}) {
        CAPTURE(nameless);
        const TemporaryDirectory directory;
        const std::string path = directory / "out";
        for (const std::string content : {"first", "second"}) {
            const std::string before = read_bytes(path);  // "" if there is none
            AtomicFile file(path, nameless);
            file.write(content.data() + 2, static_cast<int64_t>(content.size()) - 2, 2);
            file.write(content.data(), 2, 0);
            CHECK(read_bytes(path) == before);
            file.commit();
            CHECK(read_bytes(path) == content);
            CHECK(directory.entries() == 1);
        }
        struct stat status {};
        REQUIRE(::stat(path.c_str(), &status) == 0);
        const mode_t mask = ::umask(0);
        ::umask(mask);
        CHECK((status.st_mode & 0777) == (0666 & ~mask));
    }
}

TEST_CASE("atomic_file_that_is_not_committed_leaves_nothing") {
    for (const bool nameless : {true, false}) {
        CAPTURE(nameless);
        const TemporaryDirectory directory;
        write_bytes(directory / "old", "old");
        for (const char* const name : {"new", "old"}) {
            AtomicFile file(directory / name, nameless);
            file.write("half", 4, 0);
        }
        CHECK(directory.entries() == 1);
        CHECK(read_bytes(directory / "old") == "old");
    }
}

TEST_CASE("atomic_file_of_the_working_directory_needs_no_path") {
    const TemporaryDirectory directory;
    const std::filesystem::path before = std::filesystem::current_path();
    std::filesystem::current_path(directory.path());
    for (const bool nameless : {true, false}) {
        AtomicFile file("out", nameless);
        file.write("x", 1, 0);
        file.commit();
        CHECK(read_bytes(directory / "out") == "x");
        CHECK(directory.entries() == 1);
    }
    std::filesystem::current_path(before);
}

TEST_CASE("atomic_file_of_a_killed_writer_leaves_nothing") {
    const TemporaryDirectory directory;
    const int probe = ::open(directory.path().c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600);
    if (probe < 0) {
        MESSAGE("case skipped: this file system has no nameless files");
        return;
    }
    ::close(probe);
    const pid_t child = ::fork();
    if (child == 0) {
        AtomicFile file(directory / "out");
        file.write("half", 4, 0);
        ::raise(SIGKILL);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK(directory.entries() == 0);
}
