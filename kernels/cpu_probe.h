// Leaves that only measure: what memory and the multiply-add units give when nothing else is in the
// way. They do no work of the model; limits.cpp makes rates of them.
//
// Like cpu_leaves.h, behind which it stands, this file goes into the unnamed namespace and the
// target region of a table's source; and once more into each region with another multiply-add. It
// needs lanes, Vec, F32, broadcast, fma and sum_of_lanes.

/// Sum of the n floats from x on, read as `streams` equal parts side by side, 4 vectors of each at a
/// time. See Table::read_sum.
template <int streams>
float read_sum(const float* x, int64_t n) {
    constexpr int vectors = 4;
    constexpr int chains = streams < vectors ? vectors / streams : 1;  // sums of one stream
    const int64_t part = n / streams / (vectors * lanes) * (vectors * lanes);
    Vec sum[streams][chains];
#pragma GCC unroll 16
    for (int s = 0; s < streams; ++s) {
#pragma GCC unroll 16
        for (int c = 0; c < chains; ++c) sum[s][c] = broadcast(0.0f);
    }
    for (int64_t i = 0; i < part; i += vectors * lanes) {
#pragma GCC unroll 16
        for (int s = 0; s < streams; ++s) {
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) {
                Vec& chain = sum[s][v % chains];
                chain = chain + F32::load(x + s * part + i + v * lanes);
            }
        }
    }
    double total = 0.0;
#pragma GCC unroll 16
    for (int s = 0; s < streams; ++s) {
#pragma GCC unroll 16
        for (int c = 0; c < chains; ++c) total += sum_of_lanes(sum[s][c]);
    }
    for (int64_t i = streams * part; i < n; ++i) total += double{x[i]};
    return static_cast<float>(total);
}

/// The multiply-add of floats: sum = sum * 1 + 1. The product changes with the sum, so that it
/// cannot be taken out of the loop where a multiply-add is two instructions.
struct FloatSteps {
    using Factor = Vec;
    using Sum = Vec;
    static constexpr int64_t multiply_adds = lanes;
    static Factor factor(int one) { return broadcast(static_cast<float>(one)); }
    static Sum start(int zero) { return broadcast(static_cast<float>(zero)); }
    static Sum step(Sum sum, Factor& one) { return fma(sum, one, one); }
    static double total(Sum sum) { return sum_of_lanes(sum); }
};

/// `rounds` multiply-adds each in several sums side by side: more than the latency of the
/// instruction times how many start in a cycle, and few enough to stay in registers. See PeakLoop.
template <class Steps>
struct Peak {
    static constexpr int sums = lanes == 16 ? 24 : 12;

    static double run(int64_t rounds, int one) {
        typename Steps::Factor factor = Steps::factor(one);
        volatile int zero = 0;  // so that no two sums are known to be equal
        typename Steps::Sum sum[sums];
#pragma GCC unroll 32  // here and below: without indices, so that the sums stay in registers
        for (int s = 0; s < sums; ++s) sum[s] = Steps::start(zero);
        for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
            for (int s = 0; s < sums; ++s) sum[s] = Steps::step(sum[s], factor);
        }
        double total = 0.0;
#pragma GCC unroll 32
        for (int s = 0; s < sums; ++s) total += Steps::total(sum[s]);
        return total;
    }

    static PeakLoop loop() {
        return {sums * Steps::multiply_adds, run};
    }
};

/// Adds the leaves of this file to a table whose products of bfloat16 are those of floats. (A
/// template, so that it may stand unused in the second region of a source.)
template <class Int8Loop>
Table with_probes(Table table, const Int8Loop& int8) {
    table.read_sum[0] = read_sum<1>;
    table.read_sum[1] = read_sum<2>;
    table.read_sum[2] = read_sum<4>;
    table.read_sum[3] = read_sum<8>;
    table.peak_f32 = Peak<FloatSteps>::loop();
    table.peak_bf16 = table.peak_f32;
    table.peak_int8 = int8;
    return table;
}
