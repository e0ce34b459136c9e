// What the bench says: a table for people, one JSON object for programs.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/bench/check.h"
#include "apps/bench/workloads.h"
#include "io/json.h"
#include "kernels/limits.h"

namespace mllama {

/// A workload with its best run, and the limits measured before and after that run.
struct BenchRow {
    const Workload* workload = nullptr;
    BenchRun run;
    Limits limits;
    double weights_read_gb_s = 0;  ///< decode: a plain read of the weights themselves, meanwhile
};

struct BenchReport {
    std::string device;  ///< the GPU; "": the CPU
    std::string isa;     ///< the CPU's table
    int threads = 0;
    std::string dtype;
    std::string model;                      ///< where the weights are from
    Compute compute = Compute::f32;         ///< of the text tower
    Compute vision_compute = Compute::f32;  ///< of the vision tower
    double load_s = 0;
    double anonymous_mb = 0;  ///< memory of the process that no file backs
    int64_t last_level_cache = 0;
    std::vector<Checked> checked;
    std::vector<Limits> limits;  ///< as measured, in time
    std::vector<BenchRow> rows;
    std::vector<std::string> notes;
};

/// The part of its limit that a row reaches: operations against the peak of the type computed with,
/// bytes against the read bandwidth. None where the weights may stay in the caches, nor for a first token
/// whose pictures and text are computed in two types.
[[nodiscard]] std::optional<double> share_of_limit(const BenchRow& row, const BenchReport& report);

/// The seconds of a row as a part of another's, where both are there: a picture of one tile beside
/// the largest, 8 sequences beside one.
struct BenchRatio {
    std::string key;    ///< for JSON
    std::string label;  ///< for people
    double value = 0;
};
[[nodiscard]] std::vector<BenchRatio> ratios(const BenchReport& report);

/// "bf16 weights, computed in f32", and how pictures are, if otherwise.
[[nodiscard]] std::string types_text(const BenchReport& report);
[[nodiscard]] std::string table_text(const BenchReport& report);
[[nodiscard]] OrderedJson to_json(const BenchReport& report);

}  // namespace mllama
