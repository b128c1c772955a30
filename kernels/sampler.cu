// WHAT      The next token of every row of logits: argmax, or a seeded draw after temperature, top-k, top-p
//           and min-p.
// MATH      w_i = exp((logit_i - max) / T)    weight of token i: its probability over the greatest one
//           top-k  keeps w_i >= the k-th greatest weight (ties kept)
//           top-p  keeps w_i >= c: the greatest weight c whose tokens {w_j >= c} have p of the mass that
//                  top-k kept
//           min-p  keeps w_i >= min_p
//           token = argmax over the kept of (logit_i - max) / T + gumbel(seed, position, i), ties to the
//           smaller id. A filter is a lower bound on the weight, so all of them are one: the greatest.
// SHAPES    logits        f32 [T, V]         in
//           row_sequence  i32 [T]            in   row of `params`
//           params        SamplerParams [B]  in
//           positions     i32 [T]            in   absolute position of the token being drawn
//           out           i32 [T]            out  the token; -1 if no logit is a number above -inf
//           found         u64 [T, slices, 2] scratch  what the blocks of a row leave to the last of them
//           tickets       u32 [T]            inout  0 between launches;  of a block a row: both null
//           kept_quads                       by fours, weights that a part keeps in dynamic shared memory: as many
//                                            float4 as that has
// LAUNCH    grid (T, slices) with slices = ceil(V / 4096), rounded up to whole clusters; or (T, 1), which the wrapper
//           chooses for more than 64 rows: they keep a GPU busy by themselves. Clusters of up to 8 blocks along y, or
//           none. Block any multiple of 32 up to 1024, no smaller than slices. The result is the same.
//           (T, slices): one CTA a slice, which it reads twice, from memory once. It draws as if the slice were
//           the row; the last CTA of the row draws again where that may differ: see "Slices" below.
//           A row with top-k or top-p is shared by the blocks of its first cluster, a part of the row each; the others
//           leave. Without clusters it has one CTA, the only part. A part reads its logits for the maximum, once for
//           their weights, once for the draw; its weights three times for top-k and four times for top-p (digits of
//           a radix search, over the few tokens that can matter; before it a sum). Parts meet 2 times, 3 more for
//           top-k and 4 for top-p, and before they leave. Weights that are not kept are computed whenever they are
//           read, of logits that are read again. See sampler_bound.cuh.
// REQUIRES  1 <= V < 2^18
// NUMERICS  f32; masses are integers (units of 2^-40 of the greatest weight), so that no total depends on
//           order, block size, parts or neighbours: the token is a function of the row, its params, seed and
//           position alone, the same on every machine. NaN and -inf are never drawn. Temperature 0 is the
//           plain argmax, whatever the filters.
// TWINS     src/kernels/sampler.rs, src/reference/sampler.rs, host/native/sampler.cpp,
//           tests/kernels/sampler.rs
// SOURCE    Gumbel-max: Maddison, Tarlow, Minka: A* sampling (2014); noise by position: ARCHITECTURE.md, invariants
#include "last_block.cuh"
#include "philox.cuh"
#include "sampler_bound.cuh"

__device__ __forceinline__ bool keeps_top_k(const SamplerParams& p, int vocab_size) {
  return p.top_k > 0 && p.top_k < vocab_size;
}

// The score in a rank.
__device__ __forceinline__ float score_of(u64 rank) {
  const uint32_t key = key_of(rank);
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// Slices. A slice does not know the greatest logit of its row, to which scores are relative, so it draws relative
// to its own. Without rounding all its scores would be as much greater; with it a difference of two of them is off
// by 7e-5 at most (where the winner can be: (logit - max) / T >= -87 and sums within 110). So the token that wins
// by kNearTie in its slice wins there in the row, too, and the last block of the row needs to score that one alone.
// Else, or where that token counts in the slice and not in the row, which min-p asks for, the last block draws over
// the slice again.
constexpr float kNearTie = 1e-3f;
// min-p relative to a slice's greatest leaves out nothing that counts relative to the row's, whatever the rounding.
constexpr float kMinPSlack = 0.999f;

// What a thread drew among its tokens.
struct Draw {
  u64 best = 0;  // rank of the best score
  float best_score = -INFINITY, second_score = -INFINITY;

  // Takes in the tokens of a quad with weights of at least `bound`. Noise is computed where a token can still come
  // within kNearTie of the best.
  __device__ __forceinline__ void take(int quad, const Quad& four, const PartWeights& weights, uint32_t bound,
                                       uint64_t seed, int position) {
    float relative[4];
    bool can_win[4];
    for (int i = 0; i < 4; ++i) {
      relative[i] = relative_logit(four.logit[i], weights.max_logit, weights.temperature);
      // Written so that NaN is left out. Without a bound, a weight of 0 is still no candidate.
      can_win[i] = relative[i] >= kLowestExponent && relative[i] + kGumbelBound >= best_score - kNearTie;
      if (can_win[i] && bound != 0) can_win[i] = __float_as_uint(portable_exp(relative[i])) >= bound;
    }
    if (!(can_win[0] || can_win[1] || can_win[2] || can_win[3])) return;
    const PhiloxWords noise = noise_words(seed, position, quad);
    for (int i = 0; i < 4; ++i) {
      if (!can_win[i]) continue;
      const float score = relative[i] + gumbel_of(noise.word[i]);
      const u64 rank = rank_of(score, 4 * quad + i);
      if (rank > best) {
        second_score = best_score;
        best = rank;
        best_score = score;
      } else if (score > second_score) {
        second_score = score;
      }
    }
  }
};

// The draw among the tokens of a part with weights of at least `bound`.
__device__ __forceinline__ Draw draw(const PartWeights& weights, uint32_t bound, uint64_t seed,
                                     int position) {
  Draw drawn;
  auto take = [&](int quad, const Quad& four) {
    const float most = fmaxf(fmaxf(four.logit[0], four.logit[1]), fmaxf(four.logit[2], four.logit[3]));
    if (most > -INFINITY) drawn.take(quad, four, weights, bound, seed, position);
  };
  auto may_reach = [&](int quad) { return weights.may_reach(quad, bound); };
  for_each_quad(weights.row, weights.vocab_size, weights.range, take, may_reach);
  return drawn;
}

__device__ __forceinline__ uint32_t bound_of_min_p(float min_p) {
  return min_p > 0.0f ? __float_as_uint(min_p) : 0u;
}

// The bound of all filters.
__device__ __forceinline__ uint32_t kept_bound(const PartWeights& weights, const SamplerParams& p,
                                               float own_best, const RowParts& parts, SearchState& state,
                                               u64& slot, u64 (&reduction)[kMaxWarps]) {
  Search search(state);
  weights.keep();
  uint32_t floor = 0;
  if (keeps_top_k(p, weights.vocab_size)) floor = top_k_bound(weights, p.top_k, own_best, parts, search);
  if (p.top_p < 1.0f)
    floor = max(floor, top_p_bound(weights, floor, p.top_p, parts, search, slot, reduction));
  return max(floor, bound_of_min_p(p.min_p));
}

// What the last block of a row makes of one slice: `likeliest` and `drawn` are what its block left there.
struct SliceInRow {
  u64 candidate = 0;  // rank of its score
  bool again = false;

  __device__ SliceInRow(const float* __restrict__ row, float max_logit, const SamplerParams& p, int position,
                        u64 likeliest, u64 drawn) {
    if (key_of(likeliest) == 0) return;
    const float most = relative_logit(row[index_of(likeliest)], max_logit, p.temperature);
    if (!(most >= kLowestExponent) || portable_exp(most) < kMinPSlack * p.min_p) return;
    again = drawn == 0;
    if (again) return;
    const int token = index_of(drawn);
    const float relative = relative_logit(row[token], max_logit, p.temperature);
    // No other token of the slice has a better score, and this one's is below that of the likeliest of the row.
    if (!(relative >= kLowestExponent)) return;
    again = __float_as_uint(portable_exp(relative)) < bound_of_min_p(p.min_p);
    if (again) return;
    const PhiloxWords noise = noise_words(p.seed, position, token / 4);
    const uint32_t word = token % 4 < 2 ? (token % 4 == 0 ? noise.word[0] : noise.word[1])
                                        : (token % 4 == 2 ? noise.word[2] : noise.word[3]);
    candidate = rank_of(relative + gumbel_of(word), token);
  }
};

extern "C" __global__ void __launch_bounds__(1024)
    sample_f32(const float* __restrict__ logits, const int* __restrict__ row_sequence,
               const SamplerParams* __restrict__ params, const int* __restrict__ positions,
               int* __restrict__ out, u64* found, unsigned* tickets, int vocab_size, int kept_quads) {
  DYN_SMEM(float4, kept);
  SHARED(u64[kMaxWarps], reduction);
  SHARED(u64[3], slots);  // where parts leave their greatest logit, their mass, their draw
  SHARED(SearchState, search);
  SHARED(int, is_last);
  SHARED(unsigned[2], again);  // a bit a slice
  take_turn();
  const int row_idx = blockIdx.x, slice = blockIdx.y;
  const int num_slices = (vocab_size + kSliceLen - 1) / kSliceLen;
  const float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
  const SamplerParams p = params[row_sequence[row_idx]];
  const bool is_greedy = !(p.temperature > 0.0f);
  const bool has_search = !is_greedy && (keeps_top_k(p, vocab_size) || p.top_p < 1.0f);
  const bool is_sliced = gridDim.y > 1 && !has_search;
  const RowParts parts = is_sliced ? RowParts{} : RowParts::of_cluster();
  // Whole clusters leave, or blocks that have nothing to do with others.
  if (slice >= (is_sliced ? num_slices : parts.count)) return;
  const QuadRange range = is_sliced ? quads_of_slice(slice, vocab_size) : parts.quads(vocab_size);
  if (has_search) clear_bins(search.bins[0]);

  float own_best = -INFINITY;
  int own_token = 0;
  for_each_quad(row, vocab_size, range, [&](int quad, const Quad& four) {
    for (int i = 0; i < 4; ++i) {
      // The first of equals, as tokens come in order; NaN is not above anything.
      if (!(four.logit[i] > own_best)) continue;
      own_best = four.logit[i];
      own_token = 4 * quad + i;
    }
  });
  u64 best = own_best > -INFINITY ? rank_of(own_best, own_token) : 0;
  best = parts.combine<Maximum>(best, slots[0], reduction);
  const u64 likeliest = best;
  if (!is_greedy && key_of(best) != 0) {
    const int num_kept = has_search ? min(kept_quads, range.end - range.first) : 0;
    const PartWeights weights{row, vocab_size, range, row[index_of(best)], p.temperature, kept, num_kept};
    uint32_t bound = bound_of_min_p(kMinPSlack * p.min_p);
    if (!is_sliced) bound = kept_bound(weights, p, own_best, parts, search, slots[1], reduction);
    const Draw own = draw(weights, bound, p.seed, positions[row_idx]);
    best = parts.combine<Maximum>(own.best, slots[2], reduction);
    if (is_sliced) {
      const float near = score_of(best) - kNearTie;
      const u64 num_near = (own.best_score >= near) + (own.second_score >= near);
      if (block_combine<Sum>(num_near, reduction) != 1) best = 0;
    }
  }
  if (!is_sliced) {
    if (parts.own == 0 && threadIdx.x == 0) out[row_idx] = key_of(likeliest) != 0 ? index_of(best) : -1;
    parts.leave();
    return;
  }

  u64* row_found = found + static_cast<int64_t>(row_idx) * num_slices * 2;
  if (threadIdx.x == 0) {
    row_found[2 * slice] = likeliest;
    row_found[2 * slice + 1] = best;
  }
  if (!is_last_block(tickets + row_idx, num_slices, is_last)) return;
  // A thread a slice.
  u64 slice_likeliest = 0, slice_drawn = 0;
  if (static_cast<int>(threadIdx.x) < num_slices) {
    slice_likeliest = load_fresh(row_found + 2 * threadIdx.x);
    slice_drawn = load_fresh(row_found + 2 * threadIdx.x + 1);
  }
  best = block_combine<Maximum>(slice_likeliest, reduction);
  const bool is_possible = key_of(best) != 0;
  if (is_possible && !is_greedy) {
    const float max_logit = row[index_of(best)];
    const SliceInRow own(row, max_logit, p, positions[row_idx], slice_likeliest, slice_drawn);
    const unsigned votes = __ballot_sync(kWholeWarp, own.again);
    if (warp_index() < 2 && lane_index() == 0) again[warp_index()] = votes;
    __syncthreads();
    best = own.candidate;
    for (int other = 0; other < num_slices; ++other) {
      if (!(again[other / kWarp] >> other % kWarp & 1)) continue;
      const PartWeights weights{row,  vocab_size, quads_of_slice(other, vocab_size), max_logit, p.temperature,
                                kept, 0};
      const Draw drawn = draw(weights, bound_of_min_p(p.min_p), p.seed, positions[row_idx]);
      best = Maximum::combine(best, drawn.best);
    }
    best = block_combine<Maximum>(best, reduction);
  }
  if (threadIdx.x == 0) out[row_idx] = is_possible ? index_of(best) : -1;
}
EXPORT_KERNEL(sample_f32)
