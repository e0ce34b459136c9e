#include "tensor/recording.h"

#include <algorithm>

#include "kernels/cuda.h"

namespace mllama {

struct Recording::Graph {
    cuda::Graph graph;
};

Recording::Recording() = default;
Recording::~Recording() = default;

Recording::Next Recording::next(std::span<const int64_t> key) {
    if (std::equal(key.begin(), key.end(), key_.begin(), key_.end()))
        return recorded_ ? Next::repeat : Next::record;
    key_.assign(key.begin(), key.end());
    recorded_ = false;
    return Next::run;
}

void Recording::begin() {
    if (!graph_) graph_ = std::make_unique<Graph>();
    graph_->graph.begin();
}

void Recording::end() {
    graph_->graph.end();
    recorded_ = true;
    ++records_;
}

void Recording::abandon() noexcept {
    graph_->graph.abandon();
    key_.clear();
}

void Recording::launch() {
    graph_->graph.launch();
    ++repeats_;
}

}  // namespace mllama
