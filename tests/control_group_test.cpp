// Limits of control groups, read from folders that look like the kernel's.
#include "kernels/control_group.h"

#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "kernels/limits.h"
#include "kernels/processors.h"
#include "tests/temporary_directory.h"

using namespace mllama::cpu;

namespace mllama::test {
namespace {

constexpr int64_t no_limit = std::numeric_limits<int64_t>::max();

/// A root folder with some files in it.
class Root {
  public:
    [[nodiscard]] std::string path() const { return directory_.path(); }
    /// Makes a file below proc/self (the groups) or sys/fs/cgroup (their limits).
    void groups(const std::string& text) const { write("proc/self/cgroup", text); }
    void limit(const std::string& file, const std::string& text) const {
        write("sys/fs/cgroup/" + file, text);
    }
    void write(const std::string& file, const std::string& text) const {
        const std::filesystem::path at = std::filesystem::path(path()) / file;
        std::filesystem::create_directories(at.parent_path());
        std::ofstream(at) << text << '\n';
    }

  private:
    TemporaryDirectory directory_;
};

}  // namespace

TEST_CASE("control_group_without_limits_allows_everything") {
    const Root root;
    CHECK(std::isinf(group_processors(root.path())));
    CHECK(group_memory_left(root.path()) == no_limit);
    root.groups("3:cpu:/a\n2:memory:/a\n0::/a");
    root.limit("a/cpu.max", "max 100000");
    root.limit("cpu/a/cpu.cfs_quota_us", "-1");
    root.limit("cpu/a/cpu.cfs_period_us", "100000");
    root.limit("a/memory.max", "max");
    root.limit("a/memory.current", "5");
    CHECK(std::isinf(group_processors(root.path())));
    CHECK(group_memory_left(root.path()) == no_limit);
}

TEST_CASE("control_group_of_version_2_and_all_around_it_limit_processors") {
    const Root root;
    root.groups("0::/a/b");
    root.limit("a/b/cpu.max", "400000 100000");
    CHECK(group_processors(root.path()) == 4);
    root.limit("a/cpu.max", "150000 100000");
    CHECK(group_processors(root.path()) == 1.5);
    root.limit("cpu.max", "50000 100000");
    CHECK(group_processors(root.path()) == 0.5);
    CHECK(usable_cores(root.path()) == 1);
    root.limit("c/cpu.max", "10000 100000");  // of others
    CHECK(group_processors(root.path()) == 0.5);
}

TEST_CASE("control_group_of_version_1_and_all_around_it_limit_processors") {
    for (const std::string mount : {"cpu", "cpu,cpuacct"}) {
        const Root root;
        root.groups("9:name=systemd:/\n5:cpuset:/\n4:" + mount + ":/a/b\n0::/");
        root.limit(mount + "/a/b/cpu.cfs_quota_us", "300000");
        root.limit(mount + "/a/b/cpu.cfs_period_us", "100000");
        CHECK(group_processors(root.path()) == 3);
        root.limit(mount + "/a/cpu.cfs_quota_us", "50000");
        root.limit(mount + "/a/cpu.cfs_period_us", "50000");
        CHECK(group_processors(root.path()) == 1);
        CHECK(usable_cores(root.path()) == 1);
    }
    const Root root;  // a container's: the path is the host's, the mount its own group
    root.groups("4:cpu,cpuacct:/docker/123");
    root.limit("cpu/cpu.cfs_quota_us", "200000");
    root.limit("cpu/cpu.cfs_period_us", "100000");
    CHECK(group_processors(root.path()) == 2);
}

TEST_CASE("control_group_memory_is_what_the_tightest_group_has_left") {
    const Root root;
    root.groups("0::/a/b");
    root.limit("a/b/memory.max", "1000");
    root.limit("a/b/memory.current", "300");
    CHECK(group_memory_left(root.path()) == 700);
    root.limit("a/memory.max", "2000");
    root.limit("a/memory.current", "1900");
    CHECK(group_memory_left(root.path()) == 100);
    // Pages of files can be dropped.
    root.limit("a/memory.stat", "anon 1000\nfile 900\ninactive_file 500\nactive_file 40");
    CHECK(group_memory_left(root.path()) == 640);
    root.limit("a/memory.current", "5000");
    CHECK(group_memory_left(root.path()) == 0);
}

TEST_CASE("control_group_of_version_1_limits_memory") {
    const Root root;
    root.groups("4:memory:/job/x\n1:cpu:/");
    root.limit("memory/memory.limit_in_bytes", "9223372036854771712");
    root.limit("memory/memory.usage_in_bytes", "100");
    CHECK(group_memory_left(root.path()) > int64_t{1} << 60);
    root.limit("memory/job/memory.limit_in_bytes", "5000");
    root.limit("memory/job/memory.usage_in_bytes", "4500");
    root.limit("memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 300");
    CHECK(group_memory_left(root.path()) == 800);
}

TEST_CASE("available_memory_is_the_less_of_system_and_group") {
    const Root root;
    CHECK(available_memory(root.path()) == 0);  // unknown
    root.write("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:   7 kB");
    CHECK(available_memory(root.path()) == 7 * 1024);
    root.groups("0::/a");
    root.limit("a/memory.max", "6000");
    root.limit("a/memory.current", "1000");
    CHECK(available_memory(root.path()) == 5000);
    root.limit("a/memory.current", "6000");
    CHECK(available_memory(root.path()) == 1);  // known: nothing
}

}  // namespace mllama::test
