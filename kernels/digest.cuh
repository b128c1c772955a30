// WHAT      What a head leaves of every 64 logits of a row, so that nobody has to read all of them again: of this
//           *slice* the best token, and the mass relative to it.
//
// MATH      best = the greatest rank_of(logit, id);  mass = sum of mass_of(exp(logit - greatest logit))
//           Maxima and integer sums: no result depends on which lanes have which logits.
#pragma once

#include "portable_math.cuh"

constexpr int kDigestLen = 64;  // logits of a slice: the weights of the narrowest tile of a linear layer

struct alignas(16) Digest {
  u64 best;  // its key is 0 where nothing is possible
  u64 mass;  // units of 2^-40 of the greatest logit's weight; 0 where nothing is possible
};
static_assert(sizeof(Digest) == 16, "layout shared with Rust");

__device__ __forceinline__ int num_digests(int vocab_size) {
  return (vocab_size + kDigestLen - 1) / kDigestLen;
}

// The digest of logits that kLanes neighbouring lanes share, each of which gets it: for_each(use) calls use(logit, id)
// for those of this lane, ids ascending, as often as it is called. The lanes of a warp call together.
template <int kLanes, typename ForEach>
__device__ __forceinline__ Digest digest_of_lanes(ForEach&& for_each) {
  // A comparison of floats for each; ranks of 8 bytes would take several instructions.
  float greatest = -INFINITY;
  int id_of_greatest = -1;
  for_each([&](float logit, int id) {
    if (logit > greatest) {
      greatest = logit;
      id_of_greatest = id;
    } else if (id_of_greatest < 0) {
      id_of_greatest = id;  // NaN or -inf: somebody has to stand for those
    }
  });
  Digest digest{id_of_greatest < 0 ? 0 : rank_of(greatest, id_of_greatest), 0};
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const u64 other = __shfl_xor_sync(kWholeWarp, digest.best, distance);
    digest.best = digest.best > other ? digest.best : other;
  }
  const bool is_possible = key_of(digest.best) != 0;
  const float max_logit = is_possible ? value_of_key(key_of(digest.best)) : NAN;
  for_each([&](float logit, int) {
    digest.mass += mass_of(portable_exp(relative_logit(logit, max_logit, 1.0f)));
  });
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    digest.mass += __shfl_xor_sync(kWholeWarp, digest.mass, distance);
  return digest;
}
