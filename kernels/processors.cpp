// What the kernel says about affinity, topology and control groups (Linux; elsewhere what the C++
// library knows).
#include "kernels/processors.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif

namespace mllama::cpu {
namespace {

#if defined(__linux__)

/// A number that the kernel publishes about a processor, or `otherwise`.
int topology(int processor, const char* what, int otherwise) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/" +
                       what);
    int value = otherwise;
    return file >> value ? value : otherwise;
}

int cores_of_affinity() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    std::set<std::pair<int, int>> cores;  // (package, core)
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
        if (!CPU_ISSET(processor, &set)) continue;
        cores.emplace(topology(processor, "physical_package_id", 0),
                      topology(processor, "core_id", processor));
    }
    return static_cast<int>(cores.size());
}

#else

int cores_of_affinity() {
    return 0;
}

#endif

/// The folders of this process's control group (version 2), innermost first: each may set a limit.
std::string control_group() {
    std::ifstream file("/proc/self/cgroup");
    std::string line;
    while (std::getline(file, line)) {
        if (line.compare(0, 3, "0::") == 0) return line.substr(3);
    }
    return "/";
}

/// The processors' worth of time that one folder's cpu.max allows, or `otherwise`.
double quota_of(const std::string& folder, double otherwise) {
    std::ifstream file(folder + "/cpu.max");
    double quota = 0, period = 0;
    if (!(file >> quota >> period) || !(quota > 0) || !(period > 0)) return otherwise;  // "max"
    return std::min(otherwise, quota / period);
}

}  // namespace

int usable_cores() {
    int cores = cores_of_affinity();
    if (cores <= 0) cores = static_cast<int>(std::thread::hardware_concurrency());
    double limit = std::max(1, cores);
    std::string group = control_group();
    for (;;) {
        limit = quota_of("/sys/fs/cgroup" + group, limit);
        if (group.find_first_not_of('/') == std::string::npos) break;
        group.resize(group.rfind('/'));
    }
    return std::max(1, static_cast<int>(std::ceil(limit)));
}

}  // namespace mllama::cpu
