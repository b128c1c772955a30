// Native twin of kernels/sampler.cu: the same tokens, found with vectors instead of threads.
//
// Greedy is one vectorised maximum. A draw needs the noise of every token but its exact value (two
// logarithms) of few: a token with the uniform v wins only if relative + gumbel >= best, and gumbel =
// -ln(-ln(1 - v)) <= -ln v, so only if v <= exp(relative - best). The right side is bounded from above by the
// chord of 2^x between integers, which costs one fused multiply-add and a conversion. What passes is computed
// exactly, by the kernel's own functions.
#include <algorithm>
#include <vector>

#include "exact.hpp"
#include "philox_lanes.hpp"
#include "sampler.cuh"

namespace {

constexpr int kBlockTokens = kNoiseTokens;  // looked at together
constexpr float kMargin = 1e-3f;            // far above all roundings of scores, which are at most 110

struct Row {
  const float* logits;
  int vocab_size;
  float max_logit;
  float temperature;
};

// Marks the tokens of the block that may score at least `best_score`. Conservative; see the head of the file.
VECTORISED_EXACT void find_possible_winners(const float (&logits)[kBlockTokens],
                                            const uint32_t (&noise)[kBlockTokens], float max_logit,
                                            float temperature, float best_score,
                                            uint8_t (&possible)[kBlockTokens]) {
  constexpr float kChordScale = 12102203.1615614f;  // 2^23 / ln 2
  constexpr float kChordOffset = 1065353216.0f;     // 127 * 2^23: as bits, 1.0
  for (int i = 0; i < kBlockTokens; ++i) {
    const float headroom = (logits[i] - max_logit) / temperature - best_score + kMargin;
    const float clamped = headroom < 1.0f ? (headroom > -60.0f ? headroom : -60.0f) : 1.0f;
    const int chord_bits = static_cast<int>(fmaf(clamped, kChordScale, kChordOffset));
    const float v = static_cast<float>(static_cast<int>(noise[i] >> 1)) * 0x1p-31f;
    // NaN fails the first comparison of `clamped` and is let through: the exact step sorts it out.
    possible[i] = v <= __int_as_float(chord_bits);
  }
}

// The greatest number of the block, -inf if there is none.
VECTORISED_EXACT float greatest_of(const float (&logits)[kBlockTokens]) {
  float greatest = -INFINITY;
  for (float logit : logits) greatest = logit > greatest ? logit : greatest;
  return greatest;
}

// Gumbel-max over the tokens with weights of at least `bound`; `likeliest` has the greatest logit.
int draw(const Row& row, int likeliest, uint32_t bound, uint64_t seed, int position) {
  u64 best = 0;
  float best_score = -INFINITY;
  const auto offer = [&](int token, float logit, uint32_t word) {
    const float relative = relative_logit(logit, row.max_logit, row.temperature);
    if (!(relative >= kLowestExponent)) return;
    if (bound != 0 && __float_as_uint(portable_exp(relative)) < bound) return;
    const float score = relative + gumbel_of(word);
    const u64 rank = rank_of(score, token);
    if (rank <= best) return;
    best = rank;
    best_score = score;
  };
  // The likeliest token first: a good score early leaves little to compute.
  offer(likeliest, row.max_logit, noise_words(seed, position, likeliest / 4).word[likeliest % 4]);
  const float kept = bound != 0 ? portable_ln(__uint_as_float(bound)) - kMargin : kLowestExponent;
  float logits[kBlockTokens];
  uint32_t noise[kBlockTokens];
  uint8_t possible[kBlockTokens];
  for (int first = 0; first < row.vocab_size; first += kBlockTokens) {
    const int count = std::min(kBlockTokens, row.vocab_size - first);
    std::copy_n(row.logits + first, count, logits);
    std::fill(logits + count, logits + kBlockTokens, -INFINITY);
    // Without a token that is kept and can still win, the block needs no noise at all.
    const float reach = relative_logit(greatest_of(logits), row.max_logit, row.temperature);
    if (!(reach >= kept && reach + kGumbelBound >= best_score)) continue;
    fill_noise(seed, position, first / 4, noise);
    find_possible_winners(logits, noise, row.max_logit, row.temperature, best_score, possible);
    for (int group = 0; group < kBlockTokens; group += 8) {
      uint64_t marks;  // one byte a token; most groups have none
      memcpy(&marks, possible + group, 8);
      for (; marks != 0; marks &= marks - 1) {
        const int i = group + __builtin_ctzll(marks) / 8;
        offer(first + i, logits[i], noise[i]);
      }
    }
  }
  return index_of(best);
}

// The weights of all tokens, as bits.
VECTORISED_EXACT void weigh(const Row& row, uint32_t* keys) {
  for (int i = 0; i < row.vocab_size; ++i)
    keys[i] = __float_as_uint(portable_exp(relative_logit(row.logits[i], row.max_logit, row.temperature)));
}

// The kernel's radix search: the lowest weight at which measures, added up from the top, reach `wanted`. `keys`,
// the weights as bits, shrinks to those that share the digits found.
template <typename Measure>
uint32_t search_bound(std::vector<uint32_t> keys, u64 wanted, const Measure& measure) {
  u64 above = 0;
  uint32_t prefix = 0;
  for (int shift = kKeyBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
    u64 bins[kDigits] = {};
    const auto digit_of = [&](uint32_t key) { return static_cast<int>(key >> shift & (kDigits - 1)); };
    for (uint32_t key : keys) bins[digit_of(key)] += measure(key);
    int digit = kDigits - 1;
    while (digit > 0 && above + bins[digit] < wanted) above += bins[digit--];
    std::erase_if(keys, [&](uint32_t key) { return digit_of(key) != digit; });
    prefix = prefix << kDigitBits | static_cast<uint32_t>(digit);
  }
  return prefix;
}

// The lowest weight, as bits, that all filters keep.
uint32_t kept_bound(const Row& row, const SamplerParams& p) {
  const bool has_top_k = p.top_k > 0 && p.top_k < row.vocab_size, has_top_p = p.top_p < 1.0f;
  uint32_t bound = 0;
  if (has_top_k || has_top_p) {
    std::vector<uint32_t> keys(row.vocab_size);
    weigh(row, keys.data());
    std::erase(keys, 0u);
    if (has_top_k) bound = search_bound(keys, p.top_k, [](uint32_t) -> u64 { return 1; });
    if (has_top_p) {
      std::erase_if(keys, [&](uint32_t key) { return key < bound; });
      const auto mass = [](uint32_t key) { return mass_of(__uint_as_float(key)); };
      u64 total = 0;
      for (uint32_t key : keys) total += mass(key);
      bound = std::max(bound, search_bound(std::move(keys), wanted_mass(total, p.top_p), mass));
    }
  }
  return p.min_p > 0.0f ? std::max(bound, __float_as_uint(p.min_p)) : bound;
}

// A row after the other, whatever the slices: nothing is left to be put together.
void sample(const simt::NativeLaunch& launch, const float* logits, const int* row_sequence,
            const SamplerParams* params, const int* positions, int* out, u64*, unsigned*, int vocab_size,
            int) {
  simt::parallel_for(launch.grid.x, [&](uint32_t row_idx) {
    const float* row = logits + static_cast<int64_t>(row_idx) * vocab_size;
    const SamplerParams& p = params[row_sequence[row_idx]];
    int token = argmax(row, vocab_size);
    if (token >= 0 && p.temperature > 0.0f) {
      const Row scaled = {row, vocab_size, row[token], p.temperature};
      token = draw(scaled, token, kept_bound(scaled, p), p.seed, positions[row_idx]);
    }
    out[row_idx] = token;
  });
}

}  // namespace

NATIVE_TWIN(sample_f32, sample)
