// Digests of logits (kernels/digest.cuh) as the CPU makes them: for the twins of heads and of kernels/draft.cu.
#pragma once
#include "digest.cuh"
#include "exact.hpp"

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
  const int best = argmax(logits, count);
  if (best < 0) return {rank_of(-INFINITY, first_id), 0};
  return {rank_of(logits[best], first_id + best), mass_of_slice(logits, count, logits[best])};
}
