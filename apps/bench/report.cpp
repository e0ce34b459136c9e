#include "apps/bench/report.h"

#include <algorithm>
#include <cstdio>

namespace mllama {
namespace {

using Kind = Workload::Kind;

/// Weights that are no larger than a few caches are partly read from those.
constexpr double caches_to_be_memory = 8;

/// Threads that run for less of the time are worth a word.
constexpr double mostly_busy = 0.9;

template <class... Values>
std::string format(const char* pattern, Values... values) {
    char text[256];
    std::snprintf(text, sizeof text, pattern, values...);
    return text;
}

/// Three digits or more, as a column.
std::string time_text(double seconds) {
    if (seconds >= 1) return format("%.2f s ", seconds);
    return format(seconds >= 0.1    ? "%.0f ms"
                  : seconds >= 0.01 ? "%.1f ms"
                                    : "%.2f ms",
                  1000 * seconds);
}

double limit_of(Kind kind, const BenchReport& report, const Limits& limits) {
    if (kind == Kind::decode) return limits.read_gb_s;
    switch (kind == Kind::vision ? report.vision_compute : report.compute) {
        case Compute::f32:
            return limits.f32_gflop_s;
        case Compute::bf16:
            return limits.bf16_gflop_s;
        case Compute::int8:
            return limits.int8_gop_s;
    }
    return limits.f32_gflop_s;
}

const char* compute_name(Compute compute) {
    switch (compute) {
        case Compute::f32:
            return "f32";
        case Compute::bf16:
            return "bf16";
        case Compute::int8:
            return "int8";
    }
    return "?";
}

double rate_of(const BenchRow& row) {
    return row.run.work / row.run.seconds / 1e9;
}

/// All sequences of a decoded batch together, one token each.
double seconds_of_a_step(const BenchRow& row) {
    return row.run.seconds * static_cast<double>(row.workload->batch) / row.run.tokens;
}

Limits best_limits(const BenchReport& report) {
    Limits all;
    for (const Limits& limits : report.limits) all = best(all, limits);
    return all;
}

OrderedJson limits_json(const Limits& limits) {
    return {{"read_gb_s", limits.read_gb_s},
            {"f32_gflop_s", limits.f32_gflop_s},
            {"bf16_gflop_s", limits.bf16_gflop_s},
            {"int8_gop_s", limits.int8_gop_s},
            {"read_streams", limits.read_streams}};
}

OrderedJson row_json(const BenchRow& row, const BenchReport& report, const Limits& best) {
    const Kind kind = row.workload->kind;
    OrderedJson json;
    if (kind == Kind::vision) json["tiles"] = row.workload->size;
    if (kind == Kind::first_token) json["tiles"] = row.workload->tiles;
    if (kind == Kind::prefill || kind == Kind::first_token) json["tokens"] = row.workload->size;
    if (kind == Kind::decode) {
        json["context"] = row.workload->size;
        json["batch"] = row.workload->batch;
    }
    json["seconds"] = row.run.seconds;
    if (kind == Kind::decode) json["step_s"] = seconds_of_a_step(row);
    if (row.run.tokens > 0) json["tokens_per_s"] = row.run.tokens / row.run.seconds;
    json[kind == Kind::decode ? "gb_s" : "gflop_s"] = rate_of(row);
    json["busy"] = row.run.busy;
    json["limit"] = limit_of(kind, report, row.limits);
    json["share"] = nullptr;
    json["share_of_best_limit"] = nullptr;
    if (kind == Kind::decode) json["weights_read_gb_s"] = row.weights_read_gb_s;
    if (const std::optional<double> share = share_of_limit(row, report)) {
        json["share"] = *share;
        json["share_of_best_limit"] = rate_of(row) / limit_of(kind, report, best);
    }
    return json;
}

OrderedJson rows_json(Kind kind, const BenchReport& report, const Limits& best) {
    OrderedJson rows = OrderedJson::array();
    for (const BenchRow& row : report.rows) {
        if (row.workload->kind == kind) rows.push_back(row_json(row, report, best));
    }
    return rows;
}

std::string row_text(const BenchRow& row, const BenchReport& report) {
    const bool decode = row.workload->kind == Kind::decode;
    const double seconds = decode ? seconds_of_a_step(row) : row.run.seconds;
    std::string text = format("%-30s %10s%s", row.workload->label.c_str(),
                              time_text(seconds).c_str(), decode ? " a step" : "       ");
    text += row.run.tokens > 0 ? format("%10.1f tokens/s", row.run.tokens / row.run.seconds)
                               : std::string(19, ' ');
    text += format("%10.1f %-8s", rate_of(row), decode ? "GB/s" : "GFLOP/s");
    const std::optional<double> share = share_of_limit(row, report);
    if (!share) return text + (decode ? "   (in the caches)\n" : "\n");
    text +=
        format("%5.0f%% of %.1f", 100 * *share, limit_of(row.workload->kind, report, row.limits));
    if (decode && row.weights_read_gb_s > 0) {
        text += format(", %.0f%% of a plain read of the weights",
                       100 * rate_of(row) / row.weights_read_gb_s);
    }
    return text + "\n";
}

/// The same decoding of one sequence.
const BenchRow* alone(const BenchReport& report, const BenchRow& together) {
    for (const BenchRow& row : report.rows) {
        if (row.workload->kind == Kind::decode && row.workload->batch == 1 &&
            row.workload->size == together.workload->size) {
            return &row;
        }
    }
    return nullptr;
}

}  // namespace

std::optional<double> share_of_limit(const BenchRow& row, const BenchReport& report) {
    const Kind kind = row.workload->kind;
    if (kind == Kind::first_token && report.compute != report.vision_compute) return std::nullopt;
    const double cached = caches_to_be_memory * static_cast<double>(report.last_level_cache);
    if (kind == Kind::decode && row.workload->bytes_touched < cached) return std::nullopt;
    return rate_of(row) / limit_of(kind, report, row.limits);
}

std::vector<BenchRatio> ratios(const BenchReport& report) {
    std::vector<BenchRatio> found;
    const BenchRow* largest = nullptr;
    for (const BenchRow& row : report.rows) {
        if (row.workload->kind != Kind::vision) continue;
        if (!largest) largest = &row;
        if (&row == largest || row.workload->size != 1) continue;
        const std::string tiles = std::to_string(largest->workload->size);
        found.push_back({"vision_1_tile_to_" + tiles, "a picture of 1 tile to one of " + tiles,
                         row.run.seconds / largest->run.seconds});
    }
    for (const BenchRow& row : report.rows) {
        if (row.workload->kind != Kind::decode || row.workload->batch == 1) continue;
        const std::string batch = std::to_string(row.workload->batch);
        if (const BenchRow* one = alone(report, row)) {
            found.push_back({"decode_" + batch + "_to_1", batch + " sequences together to 1",
                             row.run.seconds / one->run.seconds});
        }
    }
    return found;
}

std::string types_text(const BenchReport& report) {
    std::string text = report.dtype + " weights, computed in " + compute_name(report.compute);
    if (report.vision_compute != report.compute)
        text += std::string(", pictures in ") + compute_name(report.vision_compute);
    return text;
}

std::string table_text(const BenchReport& report) {
    std::string text;
    for (const BenchRow& row : report.rows) text += row_text(row, report);
    for (const BenchRatio& ratio : ratios(report))
        text += format("%-30s %10.2f of its time\n", ratio.label.c_str(), ratio.value);
    const Limits best = best_limits(report);
    text += format("limits (best of %zu): reads %.1f GB/s (%lld streams a thread), ",
                   report.limits.size(), best.read_gb_s, static_cast<long long>(best.read_streams));
    text += format("f32 %.1f GFLOP/s, bf16 %.1f GFLOP/s, int8 %.1f GOP/s\n", best.f32_gflop_s,
                   best.bf16_gflop_s, best.int8_gop_s);
    for (const BenchRow& row : report.rows) {
        if (row.run.busy > mostly_busy || !report.device.empty()) continue;
        text += format(
            "%s: the threads ran %.0f%% of the time; other work on the machine, or "
            "little to share out\n",
            row.workload->label.c_str(), 100 * row.run.busy);
    }
    text += types_text(report) + "\n";
    text += format("memory of the process: %.0f MB\n", report.anonymous_mb);
    for (const std::string& note : report.notes) text += "note: " + note + "\n";
    return text;
}

OrderedJson to_json(const BenchReport& report) {
    const Limits best = best_limits(report);
    OrderedJson json = {{"device", report.device.empty() ? "cpu" : report.device},
                        {"isa", report.isa},
                        {"threads", report.threads},
                        {"dtype", report.dtype},
                        {"model", report.model},
                        {"load_s", report.load_s},
                        {"anonymous_mb", report.anonymous_mb},
                        {"limits", limits_json(best)}};
    json["vision"] = rows_json(Kind::vision, report, best);
    json["prefill"] = rows_json(Kind::prefill, report, best);
    json["first_token"] = rows_json(Kind::first_token, report, best);
    json["decode"] = rows_json(Kind::decode, report, best);
    json["ratios"] = OrderedJson::object();
    for (const BenchRatio& ratio : ratios(report)) json["ratios"][ratio.key] = ratio.value;
    json["compute"] = compute_name(report.compute);
    json["vision_compute"] = compute_name(report.vision_compute);
    json["limits_measured"] = OrderedJson::array();
    for (const Limits& limits : report.limits)
        json["limits_measured"].push_back(limits_json(limits));
    json["checked"] = OrderedJson::array();
    for (const Checked& checked : report.checked) {
        json["checked"].push_back({{"what", checked.what},
                                   {"largest_error", checked.largest_error},
                                   {"tolerance", checked.tolerance}});
    }
    json["notes"] = report.notes;
    return json;
}

}  // namespace mllama
