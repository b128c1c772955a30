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
// LAUNCH    grid (T, slices = ceil(V / 4096)) or (T, 1), which the wrapper chooses for more than 64 rows: they
//           keep a GPU busy by themselves. Block any multiple of 32 up to 1024, no smaller than slices. The
//           result is the same.
//           (T, slices): one CTA a slice, which it reads twice, from memory once. It draws as if the slice were
//           the row; the last CTA of the row draws again where that may differ: see "Slices" below. A row with
//           top-k or top-p has one CTA all the same, the others leave.
//           One CTA a row reads it once for the maximum, three times for top-k and four times for top-p (digits
//           of a radix search, over the few tokens that can matter; before it a sum), once for the draw.
// REQUIRES  1 <= V < 2^18
// NUMERICS  f32; masses are integers (units of 2^-40 of the greatest weight), so that no total depends on
//           order, block size or neighbours: the token is a function of the row, its params, seed and
//           position alone, the same on every machine. NaN and -inf are never drawn. Temperature 0 is the
//           plain argmax, whatever the filters.
// TWINS     src/kernels/sampler.rs, src/reference/sampler.rs, host/native/sampler.cpp,
//           tests/kernels/sampler.rs
// SOURCE    Gumbel-max: Maddison, Tarlow, Minka: A* sampling (2014); noise by position: DESIGN.md, P3
#include "last_block.cuh"
#include "philox.cuh"
#include "ranking.cuh"
#include "sampler.cuh"

__device__ __forceinline__ bool keeps_top_k(const SamplerParams& p, int vocab_size) {
  return p.top_k > 0 && p.top_k < vocab_size;
}

__device__ __forceinline__ float weight_of(float logit, float max_logit, float temperature) {
  return portable_exp(relative_logit(logit, max_logit, temperature));
}

struct SearchState {
  u64 bins[kDigits];
  u64 above;        // measure of the tokens above the current prefix
  u64 wanted;       // what the kept tokens must measure together
  uint32_t prefix;  // leading digits of the bound, as far as known
};

// One digit of the search: the greatest bin at which the total from the top reaches `wanted`; the lowest if
// none does. One warp; lane 0 owns the 32 greatest digits.
__device__ void find_digit(SearchState& state) {
  constexpr int kBinsPerLane = kDigits / kWarp;
  const int greatest = kDigits - 1 - kBinsPerLane * lane_index();
  const int lowest = greatest - kBinsPerLane + 1;
  u64 own = 0;
  for (int digit = greatest; digit >= lowest; --digit) own += state.bins[digit];
  u64 through = own;  // total of the lanes up to this one
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const u64 left = __shfl_up_sync(kWholeWarp, through, distance);
    if (lane_index() >= distance) through += left;
  }
  const u64 above = state.above;
  const u64 wanted = state.wanted;
  const uint32_t prefix = state.prefix;
  __syncwarp();  // the state has been read by all before one lane writes it
  const unsigned reached = __ballot_sync(kWholeWarp, above + through >= wanted);
  const int finder = reached ? __ffs(static_cast<int>(reached)) - 1 : kWarp - 1;
  if (lane_index() == finder) {
    u64 running = above + through - own;
    int digit = greatest;
    while (digit > lowest && running + state.bins[digit] < wanted) running += state.bins[digit--];
    state.above = running;
    state.prefix = prefix << kDigitBits | static_cast<uint32_t>(digit);
  }
}

// The lowest weight (as bits) at which the total from the top reaches `wanted`; 0 if it never does.
// `for_each_weight(use)` calls use(weight, measure) for what this thread brings: what lies below the answer may
// be left out.
template <typename ForEachWeight>
__device__ uint32_t search_bound(u64 wanted, SearchState& state, ForEachWeight&& for_each_weight) {
  if (threadIdx.x == 0) {
    state.above = 0;
    state.wanted = wanted;
    state.prefix = 0;
  }
  uint32_t prefix = 0;
  for (int shift = kKeyBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
    const bool is_first = shift == kKeyBits - kDigitBits;
    for (int digit = threadIdx.x; digit < kDigits; digit += blockDim.x) state.bins[digit] = 0;
    __syncthreads();
    for_each_weight([&](float weight, u64 measure) {
      const uint32_t key = __float_as_uint(weight);
      if (key == 0 || (!is_first && key >> (shift + kDigitBits) != prefix)) return;
      // Integer additions: the bins do not depend on the order of the atomics.
      atomicAdd(&state.bins[key >> shift & (kDigits - 1)], measure);
    });
    __syncthreads();
    if (warp_index() == 0) find_digit(state);
    __syncthreads();
    prefix = state.prefix;
  }
  __syncthreads();  // everyone has read the prefix: the state may be used again
  return prefix;
}

// The k-th greatest weight. `own_best` is the greatest that this thread holds: the k-th greatest of these, each
// another token's, is a bound below which nothing has to be counted. Atomics on 8 bytes are loops, and a row
// has many more tokens than anyone keeps.
__device__ uint32_t top_k_bound(const float* __restrict__ row, int vocab_size, float max_logit,
                                float temperature, int k, float own_best, SearchState& state) {
  uint32_t least = 0;
  if (k < static_cast<int>(blockDim.x)) {
    least = search_bound(k, state, [&](auto&& use) { use(weight_of(own_best, max_logit, temperature), 1); });
  }
  return search_bound(k, state, [&](auto&& use) {
    for_each_quad(row, vocab_size, all_quads(vocab_size), [&](int, const Quad& four) {
      for (float logit : four.logit) {
        const float weight = weight_of(logit, max_logit, temperature);
        if (__float_as_uint(weight) >= least) use(weight, 1);
      }
    });
  });
}

// The greatest weight c whose tokens {w >= c} have p of the mass of the tokens with weights of at least
// `bound`. Tokens of less than their share of what may be left out have no more than that together.
__device__ uint32_t top_p_bound(const float* __restrict__ row, int vocab_size, float max_logit,
                                float temperature, uint32_t bound, float top_p, SearchState& state,
                                u64 (&reduction)[kMaxWarps]) {
  auto for_each_mass = [&](auto&& use) {
    for_each_quad(row, vocab_size, all_quads(vocab_size), [&](int, const Quad& four) {
      for (float logit : four.logit) {
        const float weight = weight_of(logit, max_logit, temperature);
        if (__float_as_uint(weight) >= bound) use(weight, mass_of(weight));
      }
    });
  };
  u64 total = 0;
  for_each_mass([&](float, u64 mass) { total += mass; });
  total = block_combine<Sum>(total, reduction);
  const u64 wanted = wanted_mass(total, top_p);
  const u64 negligible = wanted < total ? (total - wanted) / vocab_size : 0;
  return search_bound(wanted, state, [&](auto&& use) {
    for_each_mass([&](float weight, u64 mass) {
      if (mass > negligible) use(weight, mass);
    });
  });
}

// The score in a rank.
__device__ __forceinline__ float score_of(u64 rank) {
  const uint32_t key = key_of(rank);
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// What a thread drew among its tokens.
struct Draw {
  u64 best = 0;  // rank of the best score
  float best_score = -INFINITY, second_score = -INFINITY;
};

// Slices. A slice does not know the greatest logit of its row, to which scores are relative, so it draws relative
// to its own. Without rounding all its scores would be as much greater; with it a difference of two of them is off
// by 7e-5 at most (where the winner can be: (logit - max) / T >= -87 and sums within 110). So the token that wins
// by kNearTie in its slice wins there in the row, too, and the last block of the row needs to score that one alone.
// Else, or where that token counts in the slice and not in the row, which min-p asks for, the last block draws over
// the slice again.
constexpr float kNearTie = 1e-3f;
// min-p relative to a slice's greatest leaves out nothing that counts relative to the row's, whatever the rounding.
constexpr float kMinPSlack = 0.999f;

// The draw among the tokens of a range with weights of at least `bound`. Noise is computed where a token can still
// come within kNearTie of the best.
__device__ __forceinline__ Draw draw(const float* __restrict__ row, int vocab_size, QuadRange range,
                                     float max_logit, float temperature, uint32_t bound, uint64_t seed,
                                     int position) {
  Draw drawn;
  for_each_quad(row, vocab_size, range, [&](int quad, const Quad& four) {
    float relative[4];
    bool can_win[4];
    for (int i = 0; i < 4; ++i) {
      relative[i] = relative_logit(four.logit[i], max_logit, temperature);
      // Written so that NaN is left out. Without a bound, a weight of 0 is still no candidate.
      can_win[i] =
          relative[i] >= kLowestExponent && relative[i] + kGumbelBound >= drawn.best_score - kNearTie;
      if (can_win[i] && bound != 0) can_win[i] = __float_as_uint(portable_exp(relative[i])) >= bound;
    }
    if (!(can_win[0] || can_win[1] || can_win[2] || can_win[3])) return;
    const PhiloxWords noise = noise_words(seed, position, quad);
    for (int i = 0; i < 4; ++i) {
      if (!can_win[i]) continue;
      const float score = relative[i] + gumbel_of(noise.word[i]);
      const u64 rank = rank_of(score, 4 * quad + i);
      if (rank > drawn.best) {
        drawn.second_score = drawn.best_score;
        drawn.best = rank;
        drawn.best_score = score;
      } else if (score > drawn.second_score) {
        drawn.second_score = score;
      }
    }
  });
  return drawn;
}

__device__ __forceinline__ uint32_t bound_of_min_p(float min_p) {
  return min_p > 0.0f ? __float_as_uint(min_p) : 0u;
}

// The bound of all filters.
__device__ __forceinline__ uint32_t kept_bound(const float* __restrict__ row, int vocab_size, float max_logit,
                                               const SamplerParams& p, float own_best, SearchState& search,
                                               u64 (&reduction)[kMaxWarps]) {
  uint32_t floor = 0;
  if (keeps_top_k(p, vocab_size))
    floor = top_k_bound(row, vocab_size, max_logit, p.temperature, p.top_k, own_best, search);
  if (p.top_p < 1.0f) {
    const uint32_t kept =
        top_p_bound(row, vocab_size, max_logit, p.temperature, floor, p.top_p, search, reduction);
    if (kept > floor) floor = kept;
  }
  const uint32_t bound = bound_of_min_p(p.min_p);
  return floor > bound ? floor : bound;
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
               int* __restrict__ out, u64* found, unsigned* tickets, int vocab_size) {
  SHARED(u64[kMaxWarps], reduction);
  SHARED(SearchState, search);
  SHARED(int, is_last);
  SHARED(unsigned[2], again);  // a bit a slice
  take_turn();
  const int row_idx = blockIdx.x, slice = blockIdx.y, num_slices = gridDim.y;
  const float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
  const SamplerParams p = params[row_sequence[row_idx]];
  const bool is_greedy = !(p.temperature > 0.0f);
  const bool has_search = !is_greedy && (keeps_top_k(p, vocab_size) || p.top_p < 1.0f);
  const bool is_sliced = num_slices > 1 && !has_search;
  if (slice > 0 && !is_sliced) return;
  const QuadRange range = is_sliced ? quads_of_slice(slice, vocab_size) : all_quads(vocab_size);

  u64 best = 0;
  for_each_quad(row, vocab_size, range, [&](int quad, const Quad& four) {
    for (int i = 0; i < 4; ++i) best = Maximum::combine(best, rank_of(four.logit[i], 4 * quad + i));
  });
  const float own_best = key_of(best) != 0 ? row[index_of(best)] : -INFINITY;
  best = block_combine<Maximum>(best, reduction);
  const u64 likeliest = best;
  if (!is_greedy && key_of(best) != 0) {
    const float max_logit = row[index_of(best)];
    const uint32_t bound = is_sliced ? bound_of_min_p(kMinPSlack * p.min_p)
                                     : kept_bound(row, vocab_size, max_logit, p, own_best, search, reduction);
    const Draw own =
        draw(row, vocab_size, range, max_logit, p.temperature, bound, p.seed, positions[row_idx]);
    best = block_combine<Maximum>(own.best, reduction);
    if (is_sliced) {
      const float near = score_of(best) - kNearTie;
      const u64 num_near = (own.best_score >= near) + (own.second_score >= near);
      if (block_combine<Sum>(num_near, reduction) != 1) best = 0;
    }
  }
  if (!is_sliced) {
    if (threadIdx.x == 0) out[row_idx] = key_of(likeliest) != 0 ? index_of(best) : -1;
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
      const Draw drawn = draw(row, vocab_size, quads_of_slice(other, vocab_size), max_logit, p.temperature,
                              bound_of_min_p(p.min_p), p.seed, positions[row_idx]);
      best = Maximum::combine(best, drawn.best);
    }
    best = block_combine<Maximum>(best, reduction);
  }
  if (threadIdx.x == 0) out[row_idx] = is_possible ? index_of(best) : -1;
}
EXPORT_KERNEL(sample_f32)
