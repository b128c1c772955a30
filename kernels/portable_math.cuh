// WHAT      Logarithm and exponential that give the same bits on every machine, and the integers built on
//           them: fixed-point mass of a probability weight, rank of a float.
// MATH      Only additions, multiplications, divisions, explicit fused multiply-adds and integer operations,
//           which IEEE rounds once each: no library call, no approximate instruction, no product that a
//           compiler could contract with a sum. So a draw made on a GPU, in the emulator, by a native twin or
//           by the Rust oracle is the same draw.
// NUMERICS  ln: about 1 ulp for positive normal x. exp: about 1 ulp for -87 <= x <= 0, and 0 below.
// TWINS     src/sampling.rs (the same functions, constant by constant)
// SOURCE    minimax polynomials of the Cephes library's logf and expf
#pragma once

#include "prims.cuh"

using u64 = unsigned long long;

// ln 2 in two parts: a short one, whose small multiples are exact, and the rest.
constexpr float kLn2High = 355.0f / 512.0f;
constexpr float kLn2Low = -2.1219444e-4f;

// ln(2^exponent * (1 + f)) for sqrt(1/2) - 1 <= f < sqrt(2) - 1.
__device__ __forceinline__ float ln_of_parts(float f, float exponent) {
  const float square = f * f;
  float poly = 7.0376836e-2f;
  poly = fmaf(poly, f, -1.151461e-1f);
  poly = fmaf(poly, f, 1.16769987e-1f);
  poly = fmaf(poly, f, -1.2420141e-1f);
  poly = fmaf(poly, f, 1.4249323e-1f);
  poly = fmaf(poly, f, -1.6668058e-1f);
  poly = fmaf(poly, f, 2.0000714e-1f);
  poly = fmaf(poly, f, -2.4999994e-1f);
  poly = fmaf(poly, f, 3.333333e-1f);
  // ln(1 + f) = f - f^2 / 2 + f^3 * poly
  const float tail = fmaf(f * square, poly, exponent * kLn2Low);
  return fmaf(exponent, kLn2High, f + fmaf(-0.5f, square, tail));
}

// Natural logarithm of a positive normal number.
__device__ __forceinline__ float portable_ln(float x) {
  constexpr uint32_t kOne = 0x3f800000u, kSqrtHalf = 0x3f3504f3u;
  const uint32_t shifted = __float_as_uint(x) + (kOne - kSqrtHalf);
  const float mantissa = __uint_as_float((shifted & 0x007fffffu) + kSqrtHalf);
  return ln_of_parts(mantissa - 1.0f, static_cast<float>(static_cast<int>(shifted >> 23) - 127));
}

constexpr float kLowestExponent = -87.0f;  // exp of anything lower counts as 0: no subnormal numbers appear

// e^x for x <= 0; exactly 1 at 0; 0 below kLowestExponent and for NaN.
__device__ __forceinline__ float portable_exp(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const float safe = x >= kLowestExponent ? x : kLowestExponent;
  const float rounded = fmaf(safe, 1.44269504088896341f, kRounder);
  const float power = rounded - kRounder;
  const float r = fmaf(power, -kLn2Low, fmaf(power, -kLn2High, safe));
  float poly = 1.9875691e-4f;
  poly = fmaf(poly, r, 1.3981999e-3f);
  poly = fmaf(poly, r, 8.333452e-3f);
  poly = fmaf(poly, r, 4.1665796e-2f);
  poly = fmaf(poly, r, 1.6666665e-1f);
  poly = fmaf(poly, r, 0.5f);
  const float mantissa = fmaf(poly, r * r, r) + 1.0f;
  // 2^power, power in [-126, 0]: its exponent field is the low bits of `rounded` plus the bias.
  const float scale = __uint_as_float((__float_as_uint(rounded) + 127u) << 23);
  return x >= kLowestExponent ? mantissa * scale : 0.0f;
}

// (logit - max) / temperature, 0 for the greatest logit even if it is infinite. At most 0; NaN stays NaN.
__device__ __forceinline__ float relative_logit(float logit, float max_logit, float temperature) {
  return logit == max_logit ? 0.0f : (logit - max_logit) / temperature;
}

// The weight as a 41-bit fixed-point number. Integers add up to the same total in any order, so a mass needs
// no prescribed tree, and a row gives the same bits whatever the block size. 2^18 tokens of weight 1 still
// fit.
constexpr float kMassUnit = 1099511627776.0f;  // 2^40
__device__ __forceinline__ u64 mass_of(float weight) {
  return static_cast<u64>(weight * kMassUnit);
}

// Logits of a slice. A row of logits is added up slice by slice, by whichever blocks: where slices begin does not
// depend on the launch, so bits do not either.
constexpr int kSliceLen = 4096;

// What a slice's mass, in units of 2^-40 of its own greatest weight, comes to in those of the row's; `weight` is that
// of the slice's greatest logit in the row. One rounding, in double (a slice's mass has 53 bits at most), then
// downwards.
__device__ __forceinline__ u64 mass_in_row(u64 slice_mass, float weight) {
  return static_cast<u64>(static_cast<double>(slice_mass) * static_cast<double>(weight));
}

// Order-preserving key of a float: unsigned comparison of keys = comparison of numbers. -0 equals +0; NaN and
// -inf, which stand for "impossible", share the lowest key, 0.
__device__ __forceinline__ uint32_t order_key(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (!(x > -INFINITY)) return 0u;
  if (x == 0.0f) return 0x80000000u;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The float that has a key: +0 for both zeros. REQUIRES  key != 0
__device__ __forceinline__ float value_of_key(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// A candidate as one number: greater = better value, then smaller index. Never 0, the rank of "no candidate".
__device__ __forceinline__ u64 rank_of(float value, int index) {
  return static_cast<u64>(order_key(value)) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
__device__ __forceinline__ int index_of(u64 rank) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(rank));
}
__device__ __forceinline__ uint32_t key_of(u64 rank) {
  return static_cast<uint32_t>(rank >> 32);
}
