// Native twin of kernels/draft_noise.cu: the noise of sixteen tokens at once.
#include <algorithm>

#include "digests.hpp"
#include "draft_noise.cuh"
#include "philox_lanes.hpp"

namespace {

constexpr int kLanes = kNoiseQuads;

VECTORISED_EXACT void fill_gumbels(const uint32_t (&words)[kLanes], float (&gumbels)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) gumbels[i] = gumbel_of(words[i]);
}

// The noise of each token. Neighbours share a counter only where draft ids are target ids, so each has its own.
void fill_gumbels_of(uint64_t seed, int position, const int (&tokens)[kLanes], float (&gumbels)[kLanes]) {
  uint32_t quads[kLanes], words[kNoiseTokens], own[kLanes];
  for (int i = 0; i < kLanes; ++i) quads[i] = static_cast<uint32_t>(tokens[i]) / 4;
  fill_noise(seed, position, quads, words);
  for (int i = 0; i < kLanes; ++i) own[i] = words[4 * i + tokens[i] % 4];
  fill_gumbels(own, gumbels);
}

// The bound of a row's filters, as the kernel finds it.
float bound_of(const SamplerParams& p, const Digest* digests, int num_slices, float max_logit) {
  if (!needs_bins(p, num_slices)) return filter_bound(p, kFilterBins - 1);
  unsigned counts[kFilterBins] = {}, masses[kFilterBins] = {};
  for (int slice = 0; slice < num_slices; ++slice) {
    const uint32_t key = key_of(digests[slice].best);
    if (key == 0) continue;
    const float relative = relative_logit(value_of_key(key), max_logit, p.temperature);
    counts[filter_bin(relative)] += 1;
    masses[filter_bin(relative)] += filter_mass(relative);
  }
  for (int bin = 1; bin < kFilterBins; ++bin) {
    counts[bin] += counts[bin - 1];
    masses[bin] += masses[bin - 1];
  }
  // The last bin if none reaches it.
  const auto first_reaching = [](const unsigned (&totals)[kFilterBins], u64 wanted) {
    int bin = 0;
    while (bin < kFilterBins - 1 && totals[bin] < wanted) ++bin;
    return bin;
  };
  int last = kFilterBins - 1;
  if (counts_slices(p, num_slices)) last = first_reaching(counts, p.top_k);
  if (p.top_p < 1.0f) last = std::min(last, first_reaching(masses, wanted_mass(masses[last], p.top_p)));
  return filter_bound(p, last);
}

// Adds the noise to at most kLanes logits of a row, those of draft ids from `first` on.
void add_noise(const DraftNoiseParams& params, const SamplerParams& p, float* logits, int first, int count,
               float max_logit, float bound, int position) {
  float relative[kLanes];
  int tokens[kLanes];
  bool any = false;
  for (int i = 0; i < kLanes; ++i) {
    const int id = first + std::min(i, count - 1);
    relative[i] = relative_logit(logits[id], max_logit, p.temperature);
    tokens[i] = params.d2t == nullptr ? id : id + params.d2t[id];
    any |= relative[i] >= kLeastNoisy;
  }
  if (!any) return;
  float gumbels[kLanes];
  fill_gumbels_of(p.seed, position, tokens, gumbels);
  for (int i = 0; i < count; ++i) {
    if (relative[i] >= kLeastNoisy)
      logits[first + i] = noisy_logit(logits[first + i], relative[i], gumbels[i], p.temperature, bound);
  }
}

void noise(const simt::NativeLaunch& launch, DraftNoiseParams params) {
  const int num_slices = num_digests(params.vocab_size);
  simt::parallel_for(launch.grid.x, [&](uint32_t row_idx) {
    const Digest* const digests = params.digests + static_cast<int64_t>(row_idx) * num_slices;
    Digest* const out = params.out_digests + static_cast<int64_t>(row_idx) * num_slices;
    const ForeseenDraw draw = params.draws[row_idx];
    const SamplerParams p = draw.sequence < 0 ? SamplerParams{} : params.params[draw.sequence];
    u64 best = 0;
    for (int slice = 0; slice < num_slices; ++slice) best = std::max(best, digests[slice].best);
    if (!(p.temperature > 0.0f) || key_of(best) == 0) {
      std::copy_n(digests, num_slices, out);
      return;
    }
    const float max_logit = value_of_key(key_of(best));
    const float bound = bound_of(p, digests, num_slices, max_logit);
    float* const row = params.logits + static_cast<int64_t>(row_idx) * params.vocab_size;
    for (int first = 0; first < params.vocab_size; first += kDigestLen) {
      const int count = std::min(kDigestLen, params.vocab_size - first);
      for (int i = 0; i < count; i += kLanes)
        add_noise(params, p, row, first + i, std::min(kLanes, count - i), max_logit, bound, draw.position);
      out[first / kDigestLen] = digest_of_slice(row + first, first, count);
    }
  });
}

}  // namespace

NATIVE_TWIN(draft_noise_f32, noise)
