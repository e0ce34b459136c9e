#include "mllama/calibration.h"

#include <cmath>

#include "mllama/mllama.h"

namespace mllama {
namespace {

void read(const Mllama& mllama, const Request& request) {
    const Prompt prompt = mllama.prepare(request, {});
    const Model& model = mllama.model();
    Sequence sequence = model.new_sequence();
    for (const ProcessedImage& image : prompt.images)
        model.add_image(sequence, model.encode_image(image));
    static_cast<void>(model.prefill(sequence, prompt.ids));
}

std::vector<float> mean_squares(const std::string& module, const InputStatistic& statistic) {
    std::vector<float> means;
    for (const double sum : statistic.sum_of_squares) {
        means.push_back(static_cast<float>(sum / static_cast<double>(statistic.rows)));
        if (!std::isfinite(means.back())) {
            fail("calibration: layer ", module, ": expected finite inputs, found a mean square of ",
                 means.back(), " in column ", means.size() - 1);
        }
    }
    return means;
}

}  // namespace

ColumnImportance column_importance(const std::string& checkpoint_dir,
                                   std::span<const Request> requests,
                                   const std::function<void(int64_t, int64_t)>& progress,
                                   const std::function<bool()>& cancelled) {
    std::map<std::string, std::shared_ptr<InputStatistic>> statistics;
    ModelOptions options;
    options.statistics = [&](const std::string& module) {
        return statistics.emplace(module, std::make_shared<InputStatistic>()).first->second;
    };
    const Mllama mllama = Mllama::load(checkpoint_dir, options);
    int64_t done = 0;
    for (const Request& request : requests) {
        if (cancelled && cancelled()) throw Interrupted();
        read(mllama, request);
        if (progress) progress(++done, static_cast<int64_t>(requests.size()));
    }
    ColumnImportance importance;
    for (const auto& [module, statistic] : statistics) {
        if (statistic->rows > 0) importance.emplace(module, mean_squares(module, *statistic));
    }
    return importance;
}

}  // namespace mllama
