#include "io/inverse_dct.h"

#include <algorithm>
#include <array>

namespace mllama {
namespace {

constexpr int constant_bits = 13;  // fractional bits of the constants
constexpr int pass_bits = 2;       // fractional bits that the first pass leaves

// The rotations' sines and cosines, in sums and differences, times 2^constant_bits.
constexpr int64_t c0_298 = 2446;   // 0.298631336
constexpr int64_t c0_390 = 3196;   // 0.390180644
constexpr int64_t c0_541 = 4433;   // 0.541196100
constexpr int64_t c0_765 = 6270;   // 0.765366865
constexpr int64_t c0_899 = 7373;   // 0.899976223
constexpr int64_t c1_175 = 9633;   // 1.175875602
constexpr int64_t c1_501 = 12299;  // 1.501321110
constexpr int64_t c1_847 = 15137;  // 1.847759065
constexpr int64_t c1_961 = 16069;  // 1.961570560
constexpr int64_t c2_053 = 16819;  // 2.053119869
constexpr int64_t c2_562 = 20995;  // 2.562915447
constexpr int64_t c3_072 = 25172;  // 3.072711026

int64_t rounded_shift(int64_t value, int bits) {
    return (value + (int64_t{1} << (bits - 1))) >> bits;
}

/// Eight points, with 12 multiplications (Loeffler, Ligtenberg and Moschytz, ICASSP 1989, their
/// form for parallel hardware). The result is larger by sqrt(8), and has constant_bits more
/// fractional bits. 64 bits, so that damaged files cannot overflow.
std::array<int64_t, 8> inverse_dct_8(const std::array<int64_t, 8>& in) {
    // The even half.
    const int64_t rotated = (in[2] + in[6]) * c0_541;
    const int64_t even2 = rotated - in[6] * c1_847;
    const int64_t even3 = rotated + in[2] * c0_765;
    const int64_t even0 = (in[0] + in[4]) * (1 << constant_bits);
    const int64_t even1 = (in[0] - in[4]) * (1 << constant_bits);
    const std::array<int64_t, 4> even{even0 + even3, even1 + even2, even1 - even2, even0 - even3};

    // The odd half.
    const int64_t shared = (in[7] + in[3] + in[5] + in[1]) * c1_175;
    const int64_t sum71 = -(in[7] + in[1]) * c0_899;
    const int64_t sum53 = -(in[5] + in[3]) * c2_562;
    const int64_t sum73 = shared - (in[7] + in[3]) * c1_961;
    const int64_t sum51 = shared - (in[5] + in[1]) * c0_390;
    const std::array<int64_t, 4> odd{in[1] * c1_501 + sum71 + sum51, in[3] * c3_072 + sum53 + sum73,
                                     in[5] * c2_053 + sum53 + sum51,
                                     in[7] * c0_298 + sum71 + sum73};

    std::array<int64_t, 8> out{};
    for (size_t i = 0; i < 4; ++i) {
        out[i] = even[i] + odd[i];
        out[7 - i] = even[i] - odd[i];
    }
    return out;
}

}  // namespace

void inverse_dct(uint8_t* samples, int stride, short coefficients[64]) {
    std::array<int64_t, 64> work{};
    std::array<int64_t, 8> line{};
    for (size_t x = 0; x < 8; ++x) {
        for (size_t y = 0; y < 8; ++y) line[y] = coefficients[8 * y + x];
        const std::array<int64_t, 8> column = inverse_dct_8(line);
        for (size_t y = 0; y < 8; ++y)
            work[8 * y + x] = rounded_shift(column[y], constant_bits - pass_bits);
    }
    for (size_t y = 0; y < 8; ++y, samples += stride) {
        std::copy_n(work.begin() + static_cast<std::ptrdiff_t>(8 * y), 8, line.begin());
        const std::array<int64_t, 8> row = inverse_dct_8(line);
        for (size_t x = 0; x < 8; ++x) {
            // Both passes together are larger by 8, which is 3 bits.
            const int64_t value = 128 + rounded_shift(row[x], constant_bits + pass_bits + 3);
            samples[x] = static_cast<uint8_t>(std::clamp<int64_t>(value, 0, 255));
        }
    }
}

}  // namespace mllama
