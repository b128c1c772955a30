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
// LAUNCH    grid T, block any multiple of 32 up to 1024: one CTA a row. It reads the row once for the
//           maximum, three times for top-k and four times for top-p (digits of a radix search, over the few
//           tokens that can matter; before it a sum), once for the draw.
// REQUIRES  1 <= V < 2^18
// NUMERICS  f32; masses are integers (units of 2^-40 of the greatest weight), so that no total depends on
//           order, block size or neighbours: the token is a function of the row, its params, seed and
//           position alone, the same on every machine. NaN and -inf are never drawn. Temperature 0 is the
//           plain argmax, whatever the filters.
// TWINS     src/kernels/sampler.rs, src/reference/sampler.rs, host/native/sampler.cpp,
//           tests/kernels/sampler.rs
// SOURCE    Gumbel-max: Maddison, Tarlow, Minka: A* sampling (2014); noise by position: DESIGN.md, P3
#include "philox.cuh"
#include "ranking.cuh"
#include "sampler.cuh"

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

// The rank of the best score among the tokens with weights of at least `bound`.
__device__ u64 draw(const float* __restrict__ row, int vocab_size, float max_logit, float temperature,
                    uint32_t bound, uint64_t seed, int position) {
  u64 best = 0;
  float best_score = -INFINITY;
  for_each_quad(row, vocab_size, all_quads(vocab_size), [&](int quad, const Quad& four) {
    float relative[4];
    bool can_win = false;
    for (int i = 0; i < 4; ++i) {
      relative[i] = relative_logit(four.logit[i], max_logit, temperature);
      can_win |= relative[i] + kGumbelBound >= best_score;
    }
    if (!can_win) return;
    const PhiloxWords noise = noise_words(seed, position, quad);
    for (int i = 0; i < 4; ++i) {
      // Written so that NaN is left out. Without a bound, a weight of 0 is still no candidate.
      if (!(relative[i] >= kLowestExponent)) continue;
      if (bound != 0 && __float_as_uint(portable_exp(relative[i])) < bound) continue;
      const float score = relative[i] + gumbel_of(noise.word[i]);
      const u64 rank = rank_of(score, 4 * quad + i);
      if (rank > best) {
        best = rank;
        best_score = score;
      }
    }
  });
  return best;
}

extern "C" __global__ void __launch_bounds__(1024)
    sample_f32(const float* __restrict__ logits, const int* __restrict__ row_sequence,
               const SamplerParams* __restrict__ params, const int* __restrict__ positions,
               int* __restrict__ out, int vocab_size) {
  SHARED(u64[kMaxWarps], reduction);
  SHARED(SearchState, search);
  take_turn();
  const int row_idx = blockIdx.x;
  const float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
  const SamplerParams p = params[row_sequence[row_idx]];

  u64 best = 0;
  for_each_quad(row, vocab_size, all_quads(vocab_size), [&](int quad, const Quad& four) {
    for (int i = 0; i < 4; ++i) best = Maximum::combine(best, rank_of(four.logit[i], 4 * quad + i));
  });
  const float own_best = key_of(best) != 0 ? row[index_of(best)] : -INFINITY;
  best = block_combine<Maximum>(best, reduction);
  const bool is_possible = key_of(best) != 0;

  if (is_possible && p.temperature > 0.0f) {
    const float max_logit = row[index_of(best)];
    uint32_t bound = p.min_p > 0.0f ? __float_as_uint(p.min_p) : 0u;
    uint32_t search_floor = 0;
    if (p.top_k > 0 && p.top_k < vocab_size)
      search_floor = top_k_bound(row, vocab_size, max_logit, p.temperature, p.top_k, own_best, search);
    if (p.top_p < 1.0f) {
      const uint32_t kept =
          top_p_bound(row, vocab_size, max_logit, p.temperature, search_floor, p.top_p, search, reduction);
      if (kept > search_floor) search_floor = kept;
    }
    if (search_floor > bound) bound = search_floor;
    best = draw(row, vocab_size, max_logit, p.temperature, bound, p.seed, positions[row_idx]);
    best = block_combine<Maximum>(best, reduction);
  }
  if (threadIdx.x == 0) out[row_idx] = is_possible ? index_of(best) : -1;
}
EXPORT_KERNEL(sample_f32)
