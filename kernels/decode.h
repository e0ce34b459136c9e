// Coded weights back to numbers, a stretch of a row at a time: what the formats that are not
// multiplied as integers pass through on their way to the tile, and what `--dtype f32` reads.
#pragma once

#include <cstdint>

#include "kernels/cpu_ops.h"

namespace mllama::cpu {

/// to[i] = w[row, first + i], i < count, as f32 or bf16 (rounded to nearest, ties to even). w coded
/// or plain. The same numbers as reference::weight, rounded once.
void decode_row(const Matrix& w, int64_t row, int64_t first, int64_t count, DType to_dtype,
                void* to);

/// What the numbers of a group are multiplied by, and what is taken from them before.
float scale_of(const Groups& groups, int64_t row, int64_t group);
int32_t zero_of(const Groups& groups, int64_t row, int64_t group);
/// nf4: the scale of a block of the flattened matrix.
float block_scale(const Groups& groups, int64_t block);

}  // namespace mllama::cpu
