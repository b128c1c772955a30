// WHAT  How one sequence samples, and what its filters go by: shared by the kernel, its native twin and
//       src/kernels/sampler.rs (SamplerParams there).
#pragma once

#include "portable_math.cuh"

struct SamplerParams {
  float temperature;  // 0 (or anything not above 0): argmax
  float top_p;        // 1 or more: off
  float min_p;        // 0: off
  int top_k;          // 0 or less: off
  uint64_t seed;
};
static_assert(sizeof(SamplerParams) == 24, "layout shared with Rust");

// The radix search for the lowest weight that a filter keeps goes by digits of the weight's bits, the
// greatest first. As bits, floats from 0 to 1 are ordered, and their leading digits are nearly linear in the
// logarithm: real logits spread over many bins, so that few additions collide.
constexpr int kDigitBits = 10;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kKeyBits = 30;  // 1.0f, the greatest weight, has no more

// What top-p keeps of the mass `total`: p of it, rounded up, at least one unit. One rounding, in double.
__device__ __forceinline__ u64 wanted_mass(u64 total, float p) {
  const double mass = ceil(static_cast<double>(total) * static_cast<double>(p));
  return mass > 1.0 ? static_cast<u64>(mass) : 1;
}
