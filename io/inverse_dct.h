// The inverse discrete cosine transform of JPEG in integers, rounded as libjpeg's accurate one
// rounds (jidctint.c, JDCT_ISLOW), so that pictures equal those of the programs that use libjpeg.
#pragma once

#include <cstdint>

namespace mllama {

/// coefficients (8, 8), dequantised, vertical frequency first, become samples (8, 8), rows `stride`
/// bytes apart.
void inverse_dct(uint8_t* samples, int stride, short coefficients[64]);

}  // namespace mllama
