// WHAT      The noise of a draw: a pure function of (seed, absolute position, token).
// MATH      Philox4x32-10 with key = seed and counter = (token / 4, position, 0, 0). Word token % 4 without
//           its lowest bit is n in [0, 2^31);  v = (n + 1/2) / 2^31;  gumbel = -ln(-ln(1 - v)).
// NUMERICS  1 - v comes from the complement of n, not from a subtraction, so that small v, which make a token
//           win, and small 1 - v keep their relative precision. -3.2 < gumbel < 22.2: tokens keep their law
//           down to probabilities of 2^-32.
// TWINS     src/sampling.rs, host/native/philox_lanes.hpp
// SOURCE    Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011)
#pragma once

#include "portable_math.cuh"

struct PhiloxWords {
  uint32_t word[4];
};

__device__ __forceinline__ PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xd2511f53u) * counter.word[0];
    const uint64_t product1 = static_cast<uint64_t>(0xcd9e8d57u) * counter.word[2];
    counter = {
        {static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return counter;
}

// The noise words of tokens 4 * quad .. 4 * quad + 3.
__device__ __forceinline__ PhiloxWords noise_words(uint64_t seed, int position, int quad) {
  return philox4x32({{static_cast<uint32_t>(quad), static_cast<uint32_t>(position), 0u, 0u}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

constexpr float kGumbelBound = 22.25f;  // above -ln(2^-32), the greatest gumbel

__device__ __forceinline__ float gumbel_of(uint32_t word) {
  constexpr float kUnit = 4.656612873077393e-10f;  // 2^-31
  const int n = static_cast<int>(word >> 1);
  const float v = (static_cast<float>(n) + 0.5f) * kUnit;
  const float complement = (static_cast<float>(0x7fffffff - n) + 0.5f) * kUnit;
  return -portable_ln(v < 0.25f ? -ln_of_parts(-v, 0.0f) : -portable_ln(complement));
}
