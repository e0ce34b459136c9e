// Weights lie in mapped files, whose last byte may be the last of a page: reading behind it would
// end the program. Products with matrices, scales and zeros that end where memory ends.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/reference.h"
#include "tests/compare.h"
#include "tests/single_calls.h"

namespace mllama::test {
namespace {

/// Bytes behind which nothing may be read.
class GuardedBytes {
  public:
    explicit GuardedBytes(int64_t bytes) {
        const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
        const size_t used = (static_cast<size_t>(bytes) + page - 1) / page * page;
        size_ = used + page;
        memory_ = static_cast<std::byte*>(
            ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        REQUIRE(memory_ != MAP_FAILED);
        REQUIRE(::mprotect(memory_ + used, page, PROT_NONE) == 0);
        begin_ = memory_ + used - bytes;
    }
    GuardedBytes(const GuardedBytes&) = delete;
    GuardedBytes& operator=(const GuardedBytes&) = delete;
    ~GuardedBytes() { ::munmap(memory_, size_); }

    template <class T>
    T* as() {
        return reinterpret_cast<T*>(begin_);
    }

  private:
    std::byte* memory_ = nullptr;
    std::byte* begin_ = nullptr;
    size_t size_ = 0;
};

struct Kind {
    Coding coding;
    DType dtype;         ///< of plain elements
    int64_t group_size;  ///< 0: a whole row
    bool zeros = false;
};

const std::vector<Kind> kinds{{Coding::plain, DType::bf16, 0},
                              {Coding::plain, DType::f32, 0},
                              {Coding::plain, DType::f16, 0},
                              {Coding::int8, DType::i8, 0},
                              {Coding::int4, DType::i32, 0},
                              {Coding::int4, DType::i32, 32},
                              {Coding::int4, DType::i32, 128, true},
                              {Coding::int4, DType::i32, 24},
                              {Coding::int4_by_column, DType::i32, 32, true},
                              {Coding::fp8, DType::f8_e4m3, 0},
                              {Coding::nf4, DType::u8, 64}};

int64_t bytes_of(const Kind& kind, int64_t n, int64_t k) {
    switch (kind.coding) {
        case Coding::plain:
            return n * k * dtype_size(kind.dtype);
        case Coding::int4:
            return n * ((k + 7) / 8) * 4;
        case Coding::int4_by_column:
            return k / 8 * n * 4;
        case Coding::nf4:
            return n * k / 2;
        default:
            return n * k;
    }
}

void multiply_at_the_end_of_memory(const Kind& kind, int64_t rows, int64_t n, int64_t k) {
    CAPTURE(static_cast<int>(kind.coding));
    CAPTURE(kind.group_size);
    CAPTURE(rows);
    CAPTURE(n);
    CAPTURE(k);
    const bool by_column = kind.coding == Coding::int4_by_column;
    const int64_t size = kind.group_size == 0 ? k : kind.group_size;
    const int64_t groups = (k + size - 1) / size;
    const int64_t scales = kind.coding == Coding::nf4 ? (n * k + size - 1) / size : n * groups;
    GuardedBytes w(bytes_of(kind, n, k)), scale(scales * 4), x(rows * k * 4);
    GuardedBytes zero((n + 7) / 8 * groups * 4);
    Numbers random(7);
    std::memset(w.as<char>(), 0x35, static_cast<size_t>(bytes_of(kind, n, k)));
    for (int64_t i = 0; i < scales; ++i) scale.as<float>()[i] = random.next(0.5f, 1.0f);
    for (int64_t i = 0; i < rows * k; ++i) x.as<float>()[i] = random.next();
    for (int64_t i = 0; i < (n + 7) / 8 * groups; ++i) zero.as<int32_t>()[i] = 0x12345678;
    const std::vector<float> code = random.floats(16);

    Matrix matrix{w.as<void>(), kind.dtype, n, k, k, kind.coding, {}};
    matrix.groups.size = size;
    matrix.groups.scale = scale.as<void>();
    matrix.groups.scale_row = by_column ? 1 : groups;
    matrix.groups.scale_group = by_column ? n : 1;
    matrix.groups.code = code.data();
    if (kind.zeros) {
        matrix.groups.zero = zero.as<int32_t>();
        matrix.groups.zero_row = by_column ? 1 : groups;
        matrix.groups.zero_group = by_column ? (n + 7) / 8 : 1;
    }
    for (const Compute compute : {Compute::f32, Compute::bf16, Compute::int8}) {
        std::vector<float> out(static_cast<size_t>(rows * n)), expected = out;
        one_layer(cpu::linear, x.as<float>(), rows, k, matrix, {}, compute, out.data(), n);
        reference::linear(x.as<float>(), rows, k, matrix, {}, compute, expected.data(), n);
        // Of the size of a sum: this test is about where is read, not about the last digit.
        CHECK(compare(out, expected, {0.05 * std::sqrt(static_cast<double>(k)) * 8, 0.02}) == "");
    }
}

}  // namespace

TEST_CASE("linear_reads_nothing_behind_the_end_of_its_matrices") {
    for_each_table([] {
        for (const Kind& kind : kinds) {
            for (const int64_t rows : {1, 3, 40}) {
                for (const auto& [n, k] : {std::pair<int64_t, int64_t>{8, 8}, {8, 40}, {72, 136}})
                    multiply_at_the_end_of_memory(kind, rows, n, k);
                if (kind.coding == Coding::int4_by_column) continue;  // whole words both ways
                for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 2}, {17, 66}, {5, 130}})
                    multiply_at_the_end_of_memory(kind, rows, n, k);
            }
        }
    });
}

}  // namespace mllama::test
