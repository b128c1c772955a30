// WHAT      The lowest weight that top-k and top-p keep of a row whose tokens are in parts: a radix search over the
//           weights' bits.
// MATH      See sampler.cu. Counts and masses are integers, so their totals depend neither on order nor on parts.
//
// Every digit of a search is a histogram of the tokens that share the digits before it, of the parts together. A part
// adds up its own, and the totals of every 32 neighbouring bins; when all have met one warp of each part finds, from
// the top, the group and then the bin in which the total is reached: it reads 2 x 32 numbers of each part, and one
// meeting a digit is enough. Histograms take turns in two places, so that the next may be made while others read.
#pragma once

#include "row_parts.cuh"
#include "sampler.cuh"

struct SearchState {
  u64 bins[2][kDigits];
  u64 groups[2][kWarp];  // totals of kDigits / kWarp bins
  uint32_t prefix;       // leading digits of the bound, as far as known
};
static_assert(kDigits == kWarp * kWarp, "a group has a bin for each lane, and there is one for each lane");

// Adds to a bin of shared memory by halves: an addition of 8 bytes is a loop there, of 4 an instruction. The order
// decides who carries, not how often.
__device__ __forceinline__ void add_to_bin(u64& bin, u64 measure) {
  unsigned* halves = reinterpret_cast<unsigned*>(&bin);
  const unsigned low = static_cast<unsigned>(measure);
  const unsigned before = atomicAdd(halves, low);
  const unsigned high = static_cast<unsigned>(measure >> 32) + (before + low < before);
  if (high != 0) atomicAdd(halves + 1, high);
}

// The weights of a part's tokens. Those of the first `num_kept` quads are computed once and kept in shared memory,
// where every thread reads what it has written itself; of the others they are computed whenever they are asked for.
struct PartWeights {
  const float* __restrict__ row;
  int vocab_size;
  QuadRange range;
  float max_logit, temperature;
  float4* kept;
  int num_kept;

  __device__ __forceinline__ float weight_of(float logit) const {
    return portable_exp(relative_logit(logit, max_logit, temperature));
  }

  // Once, before anything else.
  __device__ __forceinline__ void keep() const {
    const QuadRange quads{range.first, range.first + num_kept};
    for_each_quad(row, vocab_size, quads, [&](int quad, const Quad& four) {
      if (quad >= quads.end) return;
      kept[quad - quads.first] = make_float4(weight_of(four.logit[0]), weight_of(four.logit[1]),
                                             weight_of(four.logit[2]), weight_of(four.logit[3]));
    });
  }

  template <typename Use>
  __device__ __forceinline__ void for_each_weight(Use&& use) const {
    for (int i = threadIdx.x; i < num_kept; i += blockDim.x) {
      const float4 weights = kept[i];
      use(weights.x);
      use(weights.y);
      use(weights.z);
      use(weights.w);
    }
    for_each_quad(row, vocab_size, {range.first + num_kept, range.end}, [&](int, const Quad& four) {
      for (float logit : four.logit) use(weight_of(logit));
    });
  }

  // Whether a quad may have a weight of at least `bound`: it has none where it is kept and all four are less.
  __device__ __forceinline__ bool may_reach(int quad, uint32_t bound) const {
    const int i = quad - range.first;
    if (i >= num_kept) return true;
    const float4 four = kept[i];
    // As weights are not below 0, the greatest as floats are so as bits.
    return __float_as_uint(fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w))) >= bound;
  }
};

__device__ __forceinline__ void clear_bins(u64 (&bins)[kDigits]) {
  for (int digit = threadIdx.x; digit < kDigits; digit += blockDim.x) bins[digit] = 0;
}

// The totals of groups of bins, a warp each.
__device__ __forceinline__ void add_up_groups(const u64 (&bins)[kDigits], u64 (&groups)[kWarp]) {
  for (int group = warp_index(); group < kWarp; group += num_warps()) {
    u64 total = bins[group * kWarp + lane_index()];
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      total += __shfl_xor_sync(kWholeWarp, total, distance);
    if (lane_index() == 0) groups[group] = total;
  }
}

class Search {
 public:
  // The state's first histogram has been cleared, and the block has met since or does so before the first search.
  __device__ __forceinline__ Search(SearchState& state) : state_(state) {}

  // The lowest weight (as bits) at which the total of all parts from the top reaches `wanted`; 0 if it never does. Of
  // its `num_digits` leading digits, with zeros behind them. `for_each_weight(use)` calls use(weight, measure) for what
  // this thread brings: what lies below the answer may be left out.
  template <typename ForEachWeight>
  __device__ __forceinline__ uint32_t bound(u64 wanted, int num_digits, const RowParts& parts,
                                            ForEachWeight&& for_each_weight) {
    uint32_t prefix = 0;
    u64 above = 0;  // measure of the tokens above the prefix; in the first warp
    int shift = kKeyBits;
#pragma unroll 1
    for (; num_digits > 0; --num_digits) {
      shift -= kDigitBits;
      u64(&bins)[kDigits] = state_.bins[turn_];
      u64(&groups)[kWarp] = state_.groups[turn_];
      for_each_weight([&](float weight, u64 measure) {
        const uint32_t key = __float_as_uint(weight);
        if (key == 0 || key >> (shift + kDigitBits) != prefix) return;
        add_to_bin(bins[key >> shift & (kDigits - 1)], measure);
      });
      __syncthreads();
      add_up_groups(bins, groups);
      parts.meet();
      // Whoever has come here has read the histogram before.
      turn_ ^= 1;
      clear_bins(state_.bins[turn_]);
      if (warp_index() == 0) {
        const int group =
            kWarp - 1 - reaching_lane(parts.total(&groups[kWarp - 1 - lane_index()]), wanted, above);
        const u64* const greatest = &bins[group * kWarp + kWarp - 1];
        const int lane = reaching_lane(parts.total(greatest - lane_index()), wanted, above);
        if (lane_index() == 0)
          state_.prefix = prefix << kDigitBits | static_cast<uint32_t>(group * kWarp + kWarp - 1 - lane);
      }
      __syncthreads();
      prefix = state_.prefix;
    }
    return prefix << shift;
  }

 private:
  SearchState& state_;
  int turn_ = 0;  // the histogram that is cleared; the same in all parts
};

// The k-th greatest weight. `own_best` is the greatest that this thread holds: the k-th greatest of these in the part,
// each another token's, is a bound below which the part has nothing to count, and so is one a little lower. A row has
// many more tokens than anyone keeps.
__device__ __forceinline__ uint32_t top_k_bound(const PartWeights& weights, int k, float own_best,
                                                const RowParts& parts, Search& search) {
  uint32_t least = 0;
  if (k < static_cast<int>(blockDim.x)) {
    least = search.bound(k, 1, RowParts{}, [&](auto&& use) { use(weights.weight_of(own_best), 1); });
  }
  return search.bound(k, kKeyBits / kDigitBits, parts, [&](auto&& use) {
    weights.for_each_weight([&](float weight) {
      if (__float_as_uint(weight) >= least) use(weight, 1);
    });
  });
}

// The greatest weight c whose tokens {w >= c} have p of the mass of the tokens with weights of at least `bound`. Tokens
// of less than their share of what may be left out have no more than that together.
__device__ __forceinline__ uint32_t top_p_bound(const PartWeights& weights, uint32_t bound, float top_p,
                                                const RowParts& parts, Search& search, u64& slot,
                                                u64 (&reduction)[kMaxWarps]) {
  u64 total = 0;
  weights.for_each_weight([&](float weight) {
    if (__float_as_uint(weight) >= bound) total += mass_of(weight);
  });
  total = parts.combine<Sum>(total, slot, reduction);
  const u64 wanted = wanted_mass(total, top_p);
  const u64 negligible = wanted < total ? (total - wanted) / weights.vocab_size : 0;
  // Less than any weight of more mass, whatever the rounding: most tokens cost a comparison.
  const uint32_t least =
      max(bound, __float_as_uint(static_cast<float>(negligible) * (0.999999f / kMassUnit)));
  return search.bound(wanted, kKeyBits / kDigitBits, parts, [&](auto&& use) {
    weights.for_each_weight([&](float weight) {
      if (__float_as_uint(weight) < least) return;
      const u64 mass = mass_of(weight);
      if (mass > negligible) use(weight, mass);
    });
  });
}
