#include "mllama/stop_filter.h"

#include <algorithm>

namespace mllama {
namespace {

/// The longest end of `text` that is a beginning of `stop`, but not all of it.
size_t partial_match(const std::string& text, const std::string& stop) {
    for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
        if (text.compare(text.size() - length, length, stop, 0, length) == 0) return length;
    }
    return 0;
}

}  // namespace

StopFilter::StopFilter(const std::vector<std::string>& stops) {
    std::copy_if(stops.begin(), stops.end(), std::back_inserter(stops_),
                 [](const std::string& stop) { return !stop.empty(); });
}

std::string StopFilter::push(const std::string& piece) {
    if (stopped_) return {};
    held_ += piece;
    size_t end = std::string::npos;
    for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
    if (end != std::string::npos) {
        stopped_ = true;
        std::string shown = held_.substr(0, end);
        held_.clear();
        return shown;
    }
    size_t keep = 0;
    for (const std::string& stop : stops_) keep = std::max(keep, partial_match(held_, stop));
    std::string shown = held_.substr(0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return shown;
}

std::string StopFilter::finish() {
    std::string shown;
    shown.swap(held_);
    return shown;
}

}  // namespace mllama
