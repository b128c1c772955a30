// WHAT      Couples drafts with draws: a drafter's logits get the noise that the target's will have when the token
//           behind the row is drawn, and their digests are made anew.
//
// MATH      A draw is the greatest logit + T * gumbel(seed, position, token) of the target (sampler.cu). So is what a
//           drafter should bring: under the same noise two laws that are alike draw the same token, while the
//           likeliest token is drawn no more often than it is likely. Where r = (logit - max) / T >= -16:
//             logit += T * gumbel(seed, draws[r].position, id + d2t[id]),  less T * (bound - r) if r < bound
//           At T = 0 nothing changes. What the logits are then confident of, as numbers, is who will be drawn.
//           `bound` is about what top-k, top-p and min-p leave out, as if the best token of every 64 were all there
//           are: by quarters of a nat, and nothing that is 7.75 below the greatest. A token below is not left out, for
//           the target may keep it.
// SHAPES    as in DraftNoiseParams
// LAUNCH    grid (R, any), block any multiple of 32: 16 threads a slice of 64 logits
// REQUIRES  1 <= Vd < 2^18
// NUMERICS  f32, by functions that round alike everywhere; maxima and integer sums: the same bits whatever the launch.
//           NaN and -inf stay what they are. Candidates are not draws: whatever this kernel did, texts would be the
//           same.
// TWINS     src/kernels/draft_noise.rs, src/reference/draft_noise.rs, host/native/draft_noise.cpp,
//           tests/kernels/draft_noise.rs
// SOURCE    Gumbel coupling: Daliri, Musco, Suresh: Coupling without communication and drafter-invariant speculative
//           decoding (2024)
#include "draft_noise.cuh"
#include "ranking.cuh"

// The last bin that top-k and top-p keep. One warp, a bin a lane.
__device__ __forceinline__ int last_kept_bin(const SamplerParams& p, int num_slices, u64 count, u64 mass) {
  int last = kFilterBins - 1;
  u64 before = 0;
  if (counts_slices(p, num_slices)) last = reaching_lane(count, p.top_k, before);
  if (p.top_p < 1.0f) {
    if (lane_index() > last) mass = 0;
    u64 total = mass;
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      total += __shfl_xor_sync(kWholeWarp, total, distance);
    before = 0;
    last = min(last, reaching_lane(mass, wanted_mass(total, p.top_p), before));
  }
  return last;
}

// The noise words of a quad of tokens; a draft id's neighbours are often in the same one.
struct HeldNoise {
  int quad = -1;
  PhiloxWords words;

  __device__ __forceinline__ uint32_t word_of(uint64_t seed, int position, int token) {
    if (token / 4 != quad) {
      quad = token / 4;
      words = noise_words(seed, position, quad);
    }
    const uint32_t low = token & 1 ? words.word[1] : words.word[0];
    const uint32_t high = token & 1 ? words.word[3] : words.word[2];
    return token & 2 ? high : low;
  }
};

extern "C" __global__ void __launch_bounds__(256)
    draft_noise_f32(const __grid_constant__ DraftNoiseParams params) {
  static_assert(kFilterBins == kWarp, "a lane a bin");
  SHARED(u64[kMaxWarps], reduction);
  SHARED(unsigned[kFilterBins], counts);
  SHARED(unsigned[kFilterBins], masses);
  SHARED(int, found_bin);
  take_turn();
  const int row_idx = blockIdx.x, vocab_size = params.vocab_size;
  const int num_slices = num_digests(vocab_size);
  const Digest* const digests = params.digests + static_cast<int64_t>(row_idx) * num_slices;
  Digest* const out = params.out_digests + static_cast<int64_t>(row_idx) * num_slices;
  const ForeseenDraw draw = params.draws[row_idx];
  SamplerParams p{};
  if (draw.sequence >= 0) p = params.params[draw.sequence];

  u64 best = 0;
  if (p.temperature > 0.0f) {
    for (int slice = threadIdx.x; slice < num_slices; slice += blockDim.x)
      best = Maximum::combine(best, digests[slice].best);
    best = block_combine<Maximum>(best, reduction);
  }
  if (key_of(best) == 0) {  // greedy, or nothing is possible
    for (int slice = blockIdx.y * blockDim.x + threadIdx.x; slice < num_slices;
         slice += gridDim.y * blockDim.x)
      out[slice] = digests[slice];
    return;
  }
  const float max_logit = value_of_key(key_of(best));

  int last_bin = kFilterBins - 1;
  if (needs_bins(p, num_slices)) {
    if (threadIdx.x < kFilterBins) counts[threadIdx.x] = masses[threadIdx.x] = 0;
    __syncthreads();
    for (int slice = threadIdx.x; slice < num_slices; slice += blockDim.x) {
      const uint32_t key = key_of(digests[slice].best);
      if (key == 0) continue;
      const float relative = relative_logit(value_of_key(key), max_logit, p.temperature);
      atomicAdd(&counts[filter_bin(relative)], 1u);
      atomicAdd(&masses[filter_bin(relative)], filter_mass(relative));
    }
    __syncthreads();
    if (warp_index() == 0) {
      const int last = last_kept_bin(p, num_slices, counts[lane_index()], masses[lane_index()]);
      if (lane_index() == 0) found_bin = last;
    }
    __syncthreads();
    last_bin = found_bin;
  }
  const float bound = filter_bound(p, last_bin);

  float* const row = params.logits + static_cast<int64_t>(row_idx) * vocab_size;
  const int stride = gridDim.y * blockDim.x / kLanesOfSlice;
  // Lanes beyond the last slice go along: a warp makes digests together.
  for (int first = blockIdx.y * blockDim.x / kLanesOfSlice; first < num_slices; first += stride) {
    const int slice = first + threadIdx.x / kLanesOfSlice;
    const int quad = slice * kLanesOfSlice + lane_index() % kLanesOfSlice, first_id = 4 * quad;
    Quad four = first_id < vocab_size ? load_quad(row, quad, vocab_size) : Quad{};
    HeldNoise noise;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int id = first_id + i;
      if (id >= vocab_size) continue;
      const float relative = relative_logit(four.logit[i], max_logit, p.temperature);
      if (!(relative >= kLeastNoisy)) continue;  // NaN, too
      const int token = params.d2t == nullptr ? id : id + params.d2t[id];
      const float gumbel = gumbel_of(noise.word_of(p.seed, draw.position, token));
      four.logit[i] = noisy_logit(four.logit[i], relative, gumbel, p.temperature, bound);
      row[id] = four.logit[i];
    }
    const Digest digest = digest_of_quads(four, first_id, vocab_size);
    if (slice < num_slices && lane_index() % kLanesOfSlice == 0) out[slice] = digest;
  }
}
EXPORT_KERNEL(draft_noise_f32)
