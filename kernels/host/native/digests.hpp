// Digests of logits (kernels/digest.cuh) as the CPU makes them: for the twins of heads and of kernels/draft.cu.
#pragma once
#include "digest.cuh"
#include "exact.hpp"

// The greatest of up to kDigestLen logits; -inf if none is possible.
VECTORISED_EXACT inline float greatest_of(const float* logits, int count) {
  constexpr int kLanes = 16;
  float lanes[kLanes];
  for (float& lane : lanes) lane = -INFINITY;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane)
      lanes[lane] = logits[i + lane] > lanes[lane] ? logits[i + lane] : lanes[lane];
  for (; i < count; ++i) lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
  float greatest = -INFINITY;
  for (float lane : lanes) greatest = lane > greatest ? lane : greatest;
  return greatest;
}

// The sum of mass_of() over the weights of a slice, in two 20-bit digits: vectors convert floats to 32-bit
// integers only.
VECTORISED_EXACT inline u64 mass_of_slice(const float* logits, int count, float max_logit) {
  constexpr float kDigit = 1048576.0f;  // 2^20; kMassUnit is its square
  u64 high_total = 0, low_total = 0;
  for (int i = 0; i < count; ++i) {
    const float scaled = portable_exp(relative_logit(logits[i], max_logit, 1.0f)) * kDigit;
    const int high = static_cast<int>(scaled);
    const int low = static_cast<int>((scaled - static_cast<float>(high)) * kDigit);
    high_total += static_cast<uint32_t>(high);
    low_total += static_cast<uint32_t>(low);
  }
  return (high_total << 20) + low_total;
}

// The digest of `count` logits, at least one, of which the first is that of token `first_id`.
inline Digest digest_of_slice(const float* logits, int first_id, int count) {
  const float greatest = greatest_of(logits, count);
  if (greatest == -INFINITY) return {rank_of(greatest, first_id), 0};
  int best = 0;
  while (logits[best] != greatest) ++best;
  return {rank_of(greatest, first_id + best), mass_of_slice(logits, count, greatest)};
}
