// What the kernel says about affinity and topology (Linux; elsewhere what the C++ library knows).
#include "kernels/processors.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "kernels/control_group.h"

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

}  // namespace

int usable_cores(const std::string& root) {
    int cores = cores_of_affinity();
    if (cores <= 0) cores = static_cast<int>(std::thread::hardware_concurrency());
    const double limit = std::min<double>(std::max(1, cores), group_processors(root));
    return std::max(1, static_cast<int>(std::ceil(limit)));
}

}  // namespace mllama::cpu
