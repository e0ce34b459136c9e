// A process is in one group of each hierarchy: one for all controllers in version 2, one for a few
// controllers each in version 1. Every folder from the group's up to the root of its mount may set a
// limit. In a container the path may be the host's, whose folders are not there: then the root is
// the container's own group.
#include "kernels/control_group.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>

#include "kernels/number_file.h"

namespace mllama::cpu {
namespace {

/// Calls visit(folder) for the group's folder and all above it, up to the mount itself.
void for_each_folder_up(const std::string& mount, std::string group,
                        const std::function<void(const std::string&)>& visit) {
    while (group.find_first_not_of('/') != std::string::npos) {
        visit(mount + group + "/");
        const size_t last = group.rfind('/');
        group.resize(last == std::string::npos ? 0 : last);
    }
    visit(mount + "/");
}

bool has_controller(const std::string& list, const std::string& wanted) {
    std::istringstream names(list);
    std::string name;
    while (std::getline(names, name, ',')) {
        if (name == wanted) return true;
    }
    return false;
}

/// Calls visit(folder) for all folders that may limit this process by a controller. A folder need not
/// be there.
void for_each_folder(const std::string& root, const std::string& controller,
                     const std::function<void(const std::string&)>& visit) {
    const std::string mounts = root + "/sys/fs/cgroup";
    visit(mounts + "/");  // even where the system does not say which group this is
    visit(mounts + "/" + controller + "/");
    std::ifstream file(root + "/proc/self/cgroup");
    std::string line;  // "4:cpu,cpuacct:/a/b" in version 1, "0::/a/b" in version 2
    while (std::getline(file, line)) {
        const size_t first = line.find(':');
        const size_t second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string list = line.substr(first + 1, second - first - 1);
        const std::string group = line.substr(second + 1);
        if (list.empty()) {
            for_each_folder_up(mounts, group, visit);
            for_each_folder_up(mounts + "/unified", group, visit);
        } else if (has_controller(list, controller)) {
            for_each_folder_up(mounts + "/" + list, group, visit);
            if (list != controller) for_each_folder_up(mounts + "/" + controller, group, visit);
        }
    }
}

/// What one folder allows, "quota period" in both versions; infinite if it sets no limit.
double processors_of(const std::string& folder) {
    double quota = -1, period = -1;
    if (std::ifstream file(folder + "cpu.max"); !(file >> quota >> period)) {  // or "max period"
        quota = static_cast<double>(number_in_file(folder + "cpu.cfs_quota_us"));
        period = static_cast<double>(number_in_file(folder + "cpu.cfs_period_us"));
    }
    if (quota <= 0 || period <= 0) return std::numeric_limits<double>::infinity();
    return quota / period;
}

/// `most` less what is in use and cannot be dropped; no limit if either is not known.
int64_t memory_left(int64_t most, int64_t used, int64_t droppable) {
    if (most < 0 || used < 0) return std::numeric_limits<int64_t>::max();
    return std::max<int64_t>(0, most - std::max<int64_t>(0, used - droppable));
}

int64_t memory_left_of(const std::string& folder) {
    // Pages of files, used lately or not. Version 1 counts those of the groups within apart.
    const auto files = [&](const std::string& prefix) {
        const std::string stat = folder + "memory.stat";
        return std::max<int64_t>(0, number_in_file(stat, prefix + "inactive_file")) +
               std::max<int64_t>(0, number_in_file(stat, prefix + "active_file"));
    };
    const int64_t v2 = memory_left(number_in_file(folder + "memory.max"),
                                   number_in_file(folder + "memory.current"), files(""));
    const int64_t v1 =
        memory_left(number_in_file(folder + "memory.limit_in_bytes"),
                    number_in_file(folder + "memory.usage_in_bytes"), files("total_"));
    return std::min(v1, v2);
}

}  // namespace

double group_processors(const std::string& root) {
    double least = std::numeric_limits<double>::infinity();
    for_each_folder(root, "cpu", [&](const std::string& folder) {
        least = std::min(least, processors_of(folder));
    });
    return least;
}

int64_t group_memory_left(const std::string& root) {
    int64_t least = std::numeric_limits<int64_t>::max();
    for_each_folder(root, "memory", [&](const std::string& folder) {
        least = std::min(least, memory_left_of(folder));
    });
    return least;
}

}  // namespace mllama::cpu
