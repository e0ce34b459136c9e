// Shapes, storage, views and the scratch arena.
#include "tensor/tensor.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <new>
#include <numeric>
#include <type_traits>
#include <utility>

#include "kernels/error.h"
#include "tensor/arena.h"
#include "tensor/parcel.h"
#include "tests/temporary_directory.h"

using namespace mllama;
using namespace mllama::test;

namespace {

std::atomic<int64_t> allocations = 0;

Tensor counting(const Shape& shape) {
    std::vector<float> values(static_cast<size_t>(shape.numel()));
    std::iota(values.begin(), values.end(), 0.0f);
    return Tensor::from(values, shape);
}

/// All elements in order, whatever the strides.
std::vector<float> elements(const Tensor& x) {
    std::vector<float> result;
    for (int64_t r = 0; r < x.rows(); ++r) {
        const float* row = x.data<float>() + r * x.row_stride();
        result.insert(result.end(), row, row + x.cols());
    }
    return result;
}

}  // namespace

// Counts what this program allocates, so that "allocates nothing" can be tested. Inlined, the
// compiler would take new and free for a mistake.
[[gnu::noinline]] void* operator new(size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
    throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
    std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
    std::free(memory);
}

// AddressSanitizer asks this at its start. It ends the program at requests that the system would
// refuse, unless told not to.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() {
    return "allocator_may_return_null=1";
}

TEST_CASE("shape_text_and_number_of_elements") {
    CHECK(Shape{6404, 4096}.to_string() == "(6404, 4096)");
    CHECK(Shape{7}.to_string() == "(7,)");
    CHECK(Shape().to_string() == "()");
    CHECK(Shape().numel() == 1);
    CHECK(Shape{3, 0, 2}.numel() == 0);
    CHECK(Shape{1, 2, 3, 4, 5, 6}.numel() == 720);
    CHECK(Shape{2, 3} == Shape(std::vector<int64_t>{2, 3}));
    CHECK(Shape{2, 3} != Shape{2, 3, 1});
    CHECK(Shape{2, 3}.with_first(7) == Shape{7, 3});
    CHECK(Shape{2, 3, 4}.with_last(0) == Shape{2, 3, 0});
}

TEST_CASE("shape_that_no_tensor_can_have_is_an_error") {
    CHECK(error_of([] {
              Shape{-1, 2};
          }) == "a dimension of a tensor may not be negative, found -1");
    CHECK(holds_all(error_of([] { Shape{1, 1, 1, 1, 1, 1, 1}; }), {"at most 6", "found 7"}));
    const int64_t large = int64_t{1} << 40;
    CHECK(holds_all(error_of([&] { Shape{large, large}; }), {"elements"}));
    CHECK(holds_all(error_of([&] { Shape{0, large, large}; }), {"elements"}));
    CHECK(holds_all(error_of([] { Shape{std::numeric_limits<int64_t>::max()}; }), {"elements"}));
}

TEST_CASE("allocate_more_than_there_is_is_an_error") {
    CHECK(holds_all(error_of([] { Tensor::empty({Shape::max_elements}, DType::f64); }),
                    {"out of memory", "bytes"}));
    CHECK(holds_all(error_of([] { Storage::allocate(std::numeric_limits<int64_t>::max()); }),
                    {"out of memory"}));
}

TEST_CASE("storage_is_aligned_for_every_size") {
    for (const int64_t bytes : {0, 1, 63, 64, 65, 5 << 20}) {
        for (const auto pages : {Storage::Pages::normal, Storage::Pages::huge}) {
            const auto storage = Storage::allocate(bytes, pages);
            CHECK(reinterpret_cast<uintptr_t>(storage->data()) % Storage::alignment == 0);
            CHECK(storage->bytes() == bytes);
            CHECK(storage->writable());
            std::fill_n(storage->data(), bytes, std::byte{7});
        }
    }
}

/// What the system says of the mapping that holds an address: "rd wr mr mw me ac hg".
std::string flags_of_mapping(const void* address) {
    const auto wanted = reinterpret_cast<uintptr_t>(address);
    std::ifstream maps("/proc/self/smaps");
    std::string line;
    bool here = false;
    while (std::getline(maps, line)) {
        uintptr_t begin = 0, end = 0;
        if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2)
            here = begin <= wanted && wanted < end;
        if (here && line.starts_with("VmFlags:")) return line.substr(8) + " ";
    }
    return "";
}

bool system_has_huge_pages() {
    const int here = 0;
    return std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled").good() &&
           !flags_of_mapping(&here).empty();
}

TEST_CASE("storage_of_huge_pages_and_the_arena_ask_the_system_for_them") {
    if (!system_has_huge_pages()) return;
    const auto asks = [](const void* address) {
        return flags_of_mapping(address).find(" hg ") != std::string::npos;
    };
    constexpr int64_t size = int64_t{8} << 20;
    const auto huge = Storage::allocate(size, Storage::Pages::huge);
    CHECK(asks(huge->data()));
    CHECK(asks(huge->data() + size - 1));
    const auto normal = Storage::allocate(16 * size);
    CHECK(!asks(normal->data() + 8 * size));
    Arena arena;
    const Tensor tensor = arena.take({size});
    CHECK(asks(tensor.data()));
}

TEST_CASE("storage_kinds_know_who_owns_and_who_may_write") {
    float values[4] = {1, 2, 3, 4};
    Tensor writable(Storage::external(values, sizeof values), 4, {3}, DType::f32);
    CHECK(writable.data<float>() == values + 1);
    writable.data<float>()[0] = 9;
    CHECK(values[1] == 9);
    const auto read_only = Storage::external(static_cast<const void*>(values), sizeof values);
    CHECK(!Tensor(read_only, 0, {4}, DType::f32).writable());

    auto owner = std::make_shared<std::vector<float>>(4, 5.0f);
    const std::weak_ptr<std::vector<float>> watch = owner;
    Tensor mapped(Storage::mapped(owner->data(), 16, owner), 0, {2, 2}, DType::f32);
    owner.reset();
    CHECK(mapped.storage()->kind() == Storage::Kind::mapped);
    CHECK(!mapped.writable());
    Tensor view = mapped.rows(1, 2);
    mapped = Tensor();
    CHECK(std::as_const(view).data<float>()[1] == 5.0f);  // a view alone keeps the bytes
    view = Tensor();
    CHECK(watch.expired());
}

TEST_CASE("constness_gives_bytes_for_reading_only") {
    static_assert(
        std::is_same_v<decltype(std::declval<const Tensor&>().data<float>()), const float*>);
    static_assert(std::is_same_v<decltype(std::declval<Tensor>().data<float>()), const float*>);
    static_assert(std::is_same_v<decltype(std::declval<Tensor&>().data<float>()), float*>);
    const Tensor weight(Storage::external(static_cast<const void*>(&allocations), 8), 0, {8},
                        DType::u8);
    CHECK(weight.data() == &allocations);
    CHECK(Tensor(weight).data() == &allocations);
}

TEST_CASE("tensor_of_nothing") {
    const Tensor none;
    CHECK(!none.defined());
    CHECK(none.numel() == 0);
    CHECK(none.bytes() == 0);
    CHECK(none.data() == nullptr);
    Tensor some = counting({2});
    const Tensor moved = std::move(some);
    CHECK(!some.defined());  // NOLINT(bugprone-use-after-move): this is what is tested
    CHECK(some.numel() == 0);
    CHECK(moved.numel() == 2);
}

TEST_CASE("tensor_as_a_matrix") {
    const Tensor x = counting({2, 3, 4});
    CHECK(x.rank() == 3);
    CHECK(x.dim(0) == 2);
    CHECK(x.dim(-1) == 4);
    CHECK(x.dim(-3) == 2);
    CHECK(x.rows() == 6);
    CHECK(x.cols() == 4);
    CHECK(x.row_stride() == 4);
    CHECK(x.contiguous());
    CHECK(x.bytes() == 96);
    CHECK(x.device() == Device::cpu);
    const Tensor vector = counting({5});
    CHECK(vector.rows() == 1);
    CHECK(vector.cols() == 5);
    const Tensor scalar = counting({});
    CHECK(scalar.rows() == 1);
    CHECK(scalar.cols() == 1);
    CHECK(scalar.bytes() == 4);
    CHECK(scalar.shape_string() == "()");
    const Tensor empty = counting({3, 0});
    CHECK(empty.rows() == 3);
    CHECK(empty.cols() == 0);
    CHECK(empty.bytes() == 0);
    CHECK(empty.contiguous());
}

TEST_CASE("element_types_of_every_dtype") {
    CHECK(Tensor::from(std::vector<int64_t>{1, -2}).dtype() == DType::i64);
    CHECK(Tensor::from(std::vector<int32_t>{1, -2}).dtype() == DType::i32);
    CHECK(Tensor::from(std::vector<int8_t>{1, -2}).dtype() == DType::i8);
    CHECK(Tensor::from(std::vector<uint8_t>{1, 2}).dtype() == DType::u8);
    CHECK(Tensor::from(std::vector<double>{1, 2}).dtype() == DType::f64);
    CHECK(holds<uint16_t>(DType::bf16));
    CHECK(holds<uint16_t>(DType::f16));
    CHECK(holds<uint8_t>(DType::boolean));
    CHECK(!holds<float>(DType::i32));
    CHECK(!holds<double>(DType::i64));
}

TEST_CASE("rows_and_cols_are_views_of_the_same_bytes") {
    Tensor x = counting({4, 5});
    Tensor middle = x.rows(1, 3);
    CHECK(middle.shape() == Shape{2, 5});
    CHECK(middle.contiguous());
    CHECK(elements(middle) == std::vector<float>{5, 6, 7, 8, 9, 10, 11, 12, 13, 14});
    const Tensor part = middle.cols(1, 3);
    CHECK(part.shape() == Shape{2, 2});
    CHECK(part.row_stride() == 5);
    CHECK(!part.contiguous());
    CHECK(part.bytes() == 16);
    CHECK(elements(part) == std::vector<float>{6, 7, 11, 12});
    CHECK(elements(part.rows(1, 2)) == std::vector<float>{11, 12});
    CHECK(part.rows(1, 2).contiguous());
    CHECK(elements(part.cols(1, 2)) == std::vector<float>{7, 12});
    middle.data<float>()[1] = -1;
    CHECK(elements(part)[0] == -1);
    CHECK(x.data<float>()[6] == -1);
    CHECK(x.rows(4, 4).numel() == 0);
    CHECK(x.cols(5, 5).numel() == 0);
}

TEST_CASE("rows_of_other_ranks") {
    const Tensor cube = counting({3, 2, 4});
    CHECK(cube.rows(1, 2).shape() == Shape{1, 2, 4});
    CHECK(elements(cube.rows(1, 2)) == std::vector<float>{8, 9, 10, 11, 12, 13, 14, 15});
    const Tensor part = cube.cols(2, 3);  // (3, 2, 1)
    CHECK(elements(part) == std::vector<float>{2, 6, 10, 14, 18, 22});
    CHECK(elements(part.rows(1, 3)) == std::vector<float>{10, 14, 18, 22});
    const Tensor vector = counting({6});
    CHECK(elements(vector.rows(2, 4)) == std::vector<float>{2, 3});
    CHECK(vector.rows(2, 4).contiguous());
    CHECK(vector.rows(2, 4).row_stride() == 2);
    CHECK(elements(vector.rows(2, 5).view({3, 1})) == std::vector<float>{2, 3, 4});
}

TEST_CASE("view_regroups_elements") {
    const Tensor x = counting({4, 6});
    CHECK(x.view({8, 3}).row_stride() == 3);
    CHECK(elements(x.view({24})) == elements(x));
    CHECK(elements(x.view({2, 2, 6}).rows(1, 2)) == elements(x.rows(2, 4)));
    const Tensor part = x.cols(0, 3);  // rows apart: leading dimensions may be regrouped
    const Tensor regrouped = part.view({2, 2, 3});
    CHECK(regrouped.row_stride() == 6);
    CHECK(elements(regrouped) == elements(part));
    CHECK(elements(regrouped.rows(1, 2)) == elements(part.rows(2, 4)));
}

TEST_CASE("clone_copy_and_zero_leave_the_gaps_alone") {
    Tensor x = counting({3, 4});
    Tensor part = x.cols(1, 3);
    const Tensor copy = part.clone();
    CHECK(copy.contiguous());
    CHECK(copy.shape() == Shape{3, 2});
    CHECK(copy.storage() != x.storage());
    part.fill_zero();
    CHECK(elements(x) == std::vector<float>{0, 0, 0, 3, 4, 0, 0, 7, 8, 0, 0, 11});
    part.copy_from(copy);
    CHECK(elements(x) == elements(counting({3, 4})));
    x.copy_from(x);
    CHECK(elements(x) == elements(counting({3, 4})));
    CHECK(elements(Tensor::zeros({2, 2}, DType::f32)) == std::vector<float>(4, 0.0f));
}

TEST_CASE("copying_and_viewing_allocate_nothing") {
    const Tensor x = counting({8, 4, 2});
    const int64_t before = allocations;
    Tensor copy = x;
    Tensor view = copy.view({32, 2}).rows(4, 8).cols(0, 1);
    copy = view;
    CHECK(allocations == before);
    CHECK(copy.rows() == 4);
}

TEST_CASE("arena_tensors_are_aligned_and_do_not_overlap") {
    Arena arena;
    Tensor a = arena.take({3}, DType::u8);
    Tensor b = arena.take({5});
    Tensor c = arena.take({1 << 20});  // larger than the first block
    Tensor d = arena.take({7}, DType::f64);
    const Tensor nothing = arena.take({0, 4});
    for (const Tensor* x :
         {&std::as_const(a), &std::as_const(b), &std::as_const(c), &std::as_const(d), &nothing}) {
        CHECK(reinterpret_cast<uintptr_t>(x->data()) % Storage::alignment == 0);
        CHECK(x->contiguous());
    }
    std::fill_n(a.data<uint8_t>(), 3, uint8_t{1});
    std::fill_n(b.data<float>(), 5, 2.0f);
    std::fill_n(c.data<float>(), c.numel(), 3.0f);
    std::fill_n(d.data<double>(), 7, 4.0);
    CHECK(a.data<uint8_t>()[2] == 1);
    CHECK(elements(b) == std::vector<float>(5, 2.0f));
    CHECK(c.data<float>()[0] == 3.0f);
    CHECK(c.data<float>()[c.numel() - 1] == 3.0f);
    CHECK(arena.peak_bytes() == 64 + 64 + (4 << 20) + 64);
}

TEST_CASE("parcel_brings_all_that_was_packed_when_it_is_sent") {
    std::vector<std::byte> packed(5);
    Arena arena;
    for (int pass = 0; pass < 3; ++pass) {  // the first in two blocks, the others in one
        arena.reset();
        Parcel parcel(arena, packed);
        const std::vector<int64_t> ids = {1, 2, 3};
        const std::vector<float> factors(20000, 0.5f);  // more than the first block holds
        const Tensor a = parcel.take_copy(std::span<const int64_t>(ids));
        const Tensor none = parcel.take_copy(std::span<const float>());
        const Tensor b = parcel.take_copy(std::span<const float>(factors));
        const Tensor c = parcel.take_copy(std::span<const int64_t>(ids).first(1));
        parcel.send();
        CHECK(none.numel() == 0);
        CHECK(std::equal(ids.begin(), ids.end(), a.data<int64_t>()));
        CHECK(std::equal(factors.begin(), factors.end(), b.data<float>()));
        CHECK(c.data<int64_t>()[0] == 1);
        parcel.send();  // nothing is left
    }
}

TEST_CASE("arena_scope_gives_back_what_was_taken_in_it") {
    Arena arena;
    const Arena::Scope whole(arena);
    const Tensor kept = arena.take({16});
    const void* inner = nullptr;
    {
        const Arena::Scope scope(arena);
        const Tensor x = arena.take({100});
        inner = x.data();
        const Arena::Scope nested(arena);
        CHECK(std::as_const(arena).peak_bytes() == 64 + 448);
        CHECK(arena.take({10}).data() == static_cast<const float*>(inner) + 112);
    }
    CHECK(arena.take({3}).data() == inner);
    CHECK(kept.data() != inner);
}

TEST_CASE("arena_second_pass_allocates_nothing") {
    Arena arena;
    const auto pass = [&] {
        const Arena::Scope scope(arena);
        std::vector<const void*> places;
        for (const int64_t n : {100, 20000, 3, 500000, 7}) {
            places.push_back(arena.take({n}).data());
            const Arena::Scope inner(arena);
            const Tensor x = arena.take({2 * n});
        }
        return places;
    };
    pass();
    const int64_t peak = arena.peak_bytes();
    const auto second = pass();  // in the merged block
    CHECK(arena.capacity_bytes() == peak);
    const auto count_allocations = [&] {
        const int64_t before = allocations;
        const Arena::Scope scope(arena);
        for (const int64_t n : {100, 20000, 3, 500000, 7}) {
            Tensor x = arena.take({n});
            const Arena::Scope inner(arena);
            x = arena.take({2 * n});
        }
        return allocations - before;
    };
    CHECK(count_allocations() == 0);
    CHECK(pass() == second);
    CHECK(arena.peak_bytes() == peak);
    CHECK(arena.capacity_bytes() == peak);
}

TEST_CASE("arena_reset_leaves_a_kept_tensor_its_bytes") {
    Arena arena;
    Tensor small = arena.take({4});
    std::fill_n(small.data<float>(), 4, 6.0f);
    const Tensor large = arena.take({1 << 20});
    arena.reset();  // two blocks: they go, and the next is as large as both needed
    const Tensor next = arena.take({1 << 20});
    CHECK(elements(small) == std::vector<float>(4, 6.0f));
    CHECK(next.storage() != small.storage());
    CHECK(arena.capacity_bytes() == 64 + (4 << 20));
}

TEST_CASE("arena_that_grows_within_a_scope_goes_back_to_the_block_before") {
    Arena arena;
    const Tensor first = arena.take({4});
    for (int round = 0; round < 3; ++round) {
        const Arena::Scope scope(arena);
        CHECK(arena.take({1 << (18 + round)}).numel() == 1 << (18 + round));
        CHECK(arena.take({1 << 15}).numel() == 1 << 15);
    }
    CHECK(arena.take({4}).data() == first.data<float>() + 16);
    CHECK(arena.peak_bytes() == 64 + (4 << 20) + (4 << 15));
}
