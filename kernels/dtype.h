// Element types, and the scalar conversions of the two half-precision formats.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace mllama {

/// Element types. The first seven can be computed with; the others are recognised in files.
enum class DType : uint8_t { f32, bf16, f16, i8, i32, i64, u8, f64, f8_e4m3, f8_e5m2, boolean };

/// Bytes of one element.
constexpr int64_t dtype_size(DType dtype) {
    switch (dtype) {
        case DType::f64:
        case DType::i64:
            return 8;
        case DType::f32:
        case DType::i32:
            return 4;
        case DType::bf16:
        case DType::f16:
            return 2;
        case DType::i8:
        case DType::u8:
        case DType::f8_e4m3:
        case DType::f8_e5m2:
        case DType::boolean:
            return 1;
    }
    return 0;
}

/// The name that safetensors headers use: "F32", "BF16", "F8_E4M3", ...
constexpr std::string_view dtype_name(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return "F32";
        case DType::bf16:
            return "BF16";
        case DType::f16:
            return "F16";
        case DType::i8:
            return "I8";
        case DType::i32:
            return "I32";
        case DType::i64:
            return "I64";
        case DType::u8:
            return "U8";
        case DType::f64:
            return "F64";
        case DType::f8_e4m3:
            return "F8_E4M3";
        case DType::f8_e5m2:
            return "F8_E5M2";
        case DType::boolean:
            return "BOOL";
    }
    return "?";
}

/// A floating-point type that weights and caches may have.
constexpr bool is_float(DType dtype) {
    return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

/// bfloat16 is the upper half of a float32.
constexpr float bf16_to_f32(uint16_t bits) {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
constexpr uint16_t f32_to_bf16(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

/// IEEE binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits.
constexpr float f16_to_f32(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1Fu;
    const uint32_t fraction = half & 0x3FFu;
    if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | (fraction << 13));
    if (exponent != 0) {
        return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
    }
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero or subnormal
    return (sign != 0) ? -magnitude : magnitude;
}

/// Rounds to nearest, ties to even; overflow gives infinity, a NaN stays a NaN.
constexpr uint16_t f32_to_f16(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // >= 65520
    if (magnitude < 0x38800000u) {  // below 2^-14: the sum aligns the fraction at 2^-24 and rounds
        const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3F000000u));
    }
    const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

/// Element i of an array of f32, bf16 or f16.
constexpr float float_element(const void* data, DType dtype, int64_t i) {
    switch (dtype) {
        case DType::bf16:
            return bf16_to_f32(static_cast<const uint16_t*>(data)[i]);
        case DType::f16:
            return f16_to_f32(static_cast<const uint16_t*>(data)[i]);
        default:
            return static_cast<const float*>(data)[i];
    }
}

}  // namespace mllama
