#include "tests/goldens.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "io/json.h"
#include "tests/compare.h"

namespace mllama::test {

namespace fs = std::filesystem;

std::string models_folder() {
    return std::string(MLLAMA_TEST_DATA) + "/goldens/models";
}

std::vector<std::string> golden_checkpoints() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(models_folder())) {
        if (fs::exists(entry.path() / "cases.json"))
            names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
}

std::vector<GoldenCase> golden_cases(const std::string& checkpoint) {
    std::vector<GoldenCase> cases;
    for (const Json& json : read_json_file(models_folder() + "/" + checkpoint + "/cases.json")) {
        GoldenCase golden;
        golden.checkpoint = checkpoint;
        golden.name = json.at("name").get<std::string>();
        golden.date = json.at("date").get<std::string>();
        golden.max_new_tokens = json.at("max_new_tokens").get<int64_t>();
        for (const Json& continuation : json.at("continuations")) {
            golden.texts.push_back(continuation.at("text").get<std::string>());
            golden.finish_reasons.push_back(continuation.at("finish_reason").get<std::string>());
        }
        cases.push_back(golden);
    }
    return cases;
}

std::string copy_of_golden(const TemporaryDirectory& folder, const std::string& name) {
    std::filesystem::copy(models_folder() + "/" + name, folder.file(name));
    return folder.file(name);
}

void replace_in_golden(const std::string& directory, const std::string& name,
                       const Tensor& tensor) {
    const SafetensorsFile file =
        SafetensorsFile::open(models_folder() + "/a_published/model.safetensors");
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const TensorInfo& info : file.tensors())
        if (info.name != name) tensors.emplace_back(info.name, file.get(info));
    if (tensor.defined()) tensors.emplace_back(name, tensor);
    write_safetensors(directory + "/model.safetensors", tensors);
}

std::string compare_to_largest(const Tensor& found, const Tensor& expected, double share) {
    if (found.shape() != expected.shape())
        return "expected shape " + expected.shape_string() + ", found " + found.shape_string();
    const auto span = [](const Tensor& x) {
        return std::span<const float>(x.data<float>(), static_cast<size_t>(x.numel()));
    };
    double largest = 0;
    for (const float value : span(expected))
        largest = std::max(largest, std::abs(static_cast<double>(value)));
    return compare(span(found), span(expected), {.absolute = share * largest});
}

std::string compare_exactly(const Tensor& found, const Tensor& expected) {
    if (found.dtype() != expected.dtype()) return "types differ";
    if (found.shape() != expected.shape())
        return "expected shape " + expected.shape_string() + ", found " + found.shape_string();
    const auto* a = static_cast<const unsigned char*>(found.data());
    const auto* b = static_cast<const unsigned char*>(expected.data());
    const auto size = static_cast<size_t>(found.bytes());
    if (std::memcmp(a, b, size) == 0) return "";
    const auto place = static_cast<int64_t>(std::mismatch(a, a + size, b).first - a);
    return "first difference at element " + std::to_string(place / dtype_size(found.dtype()));
}

}  // namespace mllama::test
