// WHAT  Data and arithmetic of draft_noise that the kernel, its native twin and src/kernels/draft_noise.rs share.
#pragma once

#include "draft.cuh"
#include "philox.cuh"
#include "sampler.cuh"

// The draw that a row foresees.
struct ForeseenDraw {
  int sequence;  // its entry in `params`; -1: none, the row is left alone
  int position;  // absolute, of the token to be drawn
};
static_assert(sizeof(ForeseenDraw) == 8, "layout shared with Rust");

struct DraftNoiseParams {
  float* logits;                // [R, Vd] inout
  const Digest* digests;        // [R, ceil(Vd / 64)] of the logits as they come
  Digest* out_digests;          // [R, ceil(Vd / 64)] out, of the logits as they leave
  const int* d2t;               // [Vd] offsets from draft to target ids; null: the ids are equal
  const ForeseenDraw* draws;    // [R]
  const SamplerParams* params;  // [B]
  int vocab_size;               // Vd
};
static_assert(sizeof(DraftNoiseParams) == 56, "layout shared with Rust");
POINTER_FIELDS(DraftNoiseParams, &DraftNoiseParams::logits, &DraftNoiseParams::digests,
               &DraftNoiseParams::out_digests, &DraftNoiseParams::d2t, &DraftNoiseParams::draws,
               &DraftNoiseParams::params)

// Tokens further below the greatest keep their logits: each would be drawn once in nine million times.
constexpr float kLeastNoisy = -16.0f;

// Bins by which the bound of filters is found, a quarter of a nat each, from the greatest logit down. Whatever is
// lower is in the last one.
constexpr int kFilterBins = 32;
constexpr float kFilterMassUnit = 524288.0f;  // 2^19: 4096 slices of weight 1 fit

__device__ __forceinline__ int filter_bin(float relative) {
  return static_cast<int>(fminf(relative * -4.0f, kFilterBins - 1.0f));
}

// What a slice's best token adds to its bin.
__device__ __forceinline__ unsigned filter_mass(float relative) {
  return static_cast<unsigned>(portable_exp(relative) * kFilterMassUnit);
}

// Whether top-k leaves anything out, as far as slices can tell.
__device__ __forceinline__ bool counts_slices(const SamplerParams& p, int num_slices) {
  return p.top_k > 0 && p.top_k < num_slices;
}

// Whether the bound has to be looked for among the bins.
__device__ __forceinline__ bool needs_bins(const SamplerParams& p, int num_slices) {
  return p.top_p < 1.0f || counts_slices(p, num_slices);
}

// The bound of the filters, relative to the greatest logit, where top-k and top-p end in bin `last_bin`.
__device__ __forceinline__ float filter_bound(const SamplerParams& p, int last_bin) {
  constexpr float kLeastMinP = 1e-30f;  // a logarithm of normal numbers
  const float of_bins = last_bin >= kFilterBins - 1 ? -INFINITY : -0.25f * static_cast<float>(last_bin + 1);
  const float of_min_p = p.min_p > kLeastMinP ? portable_ln(p.min_p) : -INFINITY;
  return fmaxf(of_bins, of_min_p);
}

// A logit with the noise of its token, and below the bound as much less as it is below.
__device__ __forceinline__ float noisy_logit(float logit, float relative, float gumbel, float temperature,
                                             float bound) {
  const float noisy = fmaf(temperature, gumbel, logit);
  return relative < bound ? fmaf(temperature, relative - bound, noisy) : noisy;
}
