#include "nn/kv_pool.h"

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <numeric>

namespace mllama {

KvPool::KvPool(const KvLayout& layout, int64_t keys, Device device)
    : keys_(Tensor::empty(KeysValues::key_shape(layout, keys), layout.dtype, device)),
      values_(Tensor::empty(KeysValues::value_shape(layout, keys), layout.dtype, device)) {
    if (!layout.scaled()) return;
    key_scales_ = Tensor::empty(KeysValues::scale_shape(layout, keys), DType::f32, device);
    value_scales_ = Tensor::empty(KeysValues::scale_shape(layout, keys), DType::f32, device);
}

std::shared_ptr<KvPool> KvPool::take(const KvLayout& layout, int64_t keys, Device device) {
    return std::shared_ptr<KvPool>(new KvPool(layout, keys, device));
}

std::shared_ptr<KvPool::Run> KvPool::new_run() {
    std::shared_ptr<Run> run(new Run, [self = shared_from_this()](Run* ended) {
        const std::lock_guard ending(self->mutex_);
        std::erase(self->runs_, ended);
        delete ended;
    });
    const std::lock_guard lock(mutex_);
    runs_.push_back(run.get());
    return run;
}

std::vector<KvPool::Run*> KvPool::others_in_order(const Run& run) const {
    std::vector<Run*> others;
    for (Run* other : runs_) {
        if (other != &run && other->blocks > 0) others.push_back(other);
    }
    std::sort(others.begin(), others.end(),
              [](const Run* a, const Run* b) { return a->first < b->first; });
    return others;
}

bool KvPool::grow(Run& run, int64_t wanted) {
    const std::lock_guard lock(mutex_);
    assert(wanted >= run.blocks);
    const std::vector<Run*> others = others_in_order(run);
    const int64_t used = std::accumulate(others.begin(), others.end(), int64_t{0},
                                         [](int64_t sum, const Run* r) { return sum + r->blocks; });
    if (wanted > blocks() - used) return false;
    // The gaps between the others: the run lies in one of them, or nowhere.
    int64_t gap = -1;  // the first that is large enough, or better, the run's own
    bool stays = false;
    int64_t begin = 0;
    for (size_t i = 0; i <= others.size() && !stays; ++i) {
        const int64_t end = i < others.size() ? others[i]->first : blocks();
        stays = run.blocks > 0 && begin <= run.first && run.first + wanted <= end;
        if (gap < 0 && wanted <= end - begin) gap = begin;
        if (i < others.size()) begin = end + others[i]->blocks;
    }
    if (!stays && gap >= 0) {
        move(run, gap);
    } else if (!stays) {
        move_together(run, others);
    }
    run.blocks = wanted;
    return true;
}

/// To the front what stands before the run, and to the end what stands behind it: so all that is free
/// is behind the run.
void KvPool::move_together(Run& run, const std::vector<Run*>& others) {
    const auto before = [&](const Run* other) {
        return run.blocks == 0 || other->first < run.first;
    };
    const auto behind = std::partition_point(others.begin(), others.end(), before);
    int64_t begin = 0;
    for (auto other = others.begin(); other != behind; ++other) {
        move(**other, begin);
        begin += (*other)->blocks;
    }
    move(run, begin);
    int64_t end = blocks();
    for (auto other = others.end(); other != behind;) {
        --other;
        end -= (*other)->blocks;
        move(**other, end);
    }
}

/// What a run holds may overlap what it is moved to: it goes in pieces that do not.
void KvPool::move(Run& run, int64_t to) {
    const int64_t shift = std::abs(to - run.first);
    for (Tensor* tensor : {&keys_, &values_, &key_scales_, &value_scales_}) {
        if (!tensor->defined() || shift == 0 || run.blocks == 0) continue;
        Tensor whole = tensor->view({blocks(), tensor->numel() / blocks()});
        for (int64_t done = 0; done < run.blocks; done += shift) {
            const int64_t count = std::min(shift, run.blocks - done);
            const int64_t at = to < run.first ? done : run.blocks - done - count;
            Tensor there = whole.rows(to + at, to + at + count);
            there.copy_from(whole.rows(run.first + at, run.first + at + count));
        }
    }
    run.first = to;
}

}  // namespace mllama
