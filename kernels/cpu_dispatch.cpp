// Which table runs: decided once, by what the processor and the operating system support, or by
// MLLAMA_ISA.
#include <atomic>
#include <cstdlib>
#include <string>

#include "kernels/cpu.h"
#include "kernels/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mllama::cpu {
namespace {

struct Support {
    bool avx2 = false;
    bool avx512 = false;
    bool avx512_bf16 = false;
};

#if defined(__x86_64__)

/// The registers that the operating system saves when it switches threads (XCR0).
uint64_t saved_registers() {
    uint32_t low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t{high} << 32) | low;
}

constexpr bool has_all(uint64_t bits, uint64_t wanted) {
    return (bits & wanted) == wanted;
}

Support detect() {
    // CPUID leaf 1, ecx: FMA 12, OSXSAVE 27, AVX 28, F16C 29. Leaf 7, ebx: AVX2 5, AVX512F 16, DQ
    // 17, BW 30, VL 31. Leaf 7 subleaf 1, eax: AVX512_BF16 5. XCR0: XMM 1, YMM 2, opmask 5, upper
    // ZMM 6, ZMM 16-31 7.
    constexpr uint64_t basic = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29;
    constexpr uint64_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    Support support;
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || !has_all(ecx, basic)) return support;
    const uint64_t saved = saved_registers();
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return support;
    const uint32_t last_subleaf = eax;
    support.avx2 = has_all(ebx, 1u << 5) && has_all(saved, 0x06);
    support.avx512 = support.avx2 && has_all(ebx, avx512) && has_all(saved, 0xE6);
    if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
        support.avx512_bf16 = support.avx512 && has_all(eax, 1u << 5);
    }
    return support;
}

#else

Support detect() {
    return {};
}

#endif

std::atomic<const Table*> current{nullptr};

}  // namespace

std::vector<std::string_view> table_names() {
    return {"portable", "avx2", "avx512", "avx512+bf16"};
}

std::vector<const Table*> supported_tables() {
    static const Support support = detect();
    std::vector<const Table*> tables = {portable_table()};
    if (support.avx2 && avx2_table() != nullptr) tables.push_back(avx2_table());
    if (support.avx512 && avx512_table() != nullptr) tables.push_back(avx512_table());
    if (support.avx512_bf16 && avx512_bf16_table() != nullptr)
        tables.push_back(avx512_bf16_table());
    return tables;
}

const Table* choose_table(const char* wanted) {
    const std::vector<const Table*> tables = supported_tables();
    if (wanted == nullptr || *wanted == '\0') return tables.back();
    const std::string_view name = wanted;
    const Table* found = nullptr;
    std::string possible;
    for (const Table* candidate : tables) {
        const std::string_view kind = candidate->name.substr(0, candidate->name.find('+'));
        if (name == kind) found = candidate;
        if (kind == candidate->name) possible += (possible.empty() ? "" : ", ") + std::string(kind);
    }
    if (found == nullptr) {
        fail("MLLAMA_ISA: expected one of ", possible, " (what this machine can run), found \"",
             name, "\"");
    }
    return found;
}

const Table& table() {
    const Table* in_use = current.load(std::memory_order_acquire);
    if (in_use == nullptr) {
        in_use = choose_table(std::getenv("MLLAMA_ISA"));
        current.store(in_use, std::memory_order_release);
    }
    return *in_use;
}

void use_table(const Table* table) {
    current.store(table, std::memory_order_release);
}

std::string_view isa_name() {
    return table().name;
}

}  // namespace mllama::cpu
