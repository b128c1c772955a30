// The noise words of many tokens at once: philox4x32() of kernels/philox.cuh with a counter a vector lane.
#pragma once
#include <immintrin.h>

#include "native.hpp"
#include "philox.cuh"

constexpr int kNoiseQuads = 16;  // counters a call
constexpr int kNoiseTokens = 4 * kNoiseQuads;

// Four counters in 64-bit lanes. Only the low halves count: a 32-bit multiplication reads no others.
struct CounterLanes {
  __m256i c0, c1, c2, c3;
};

// Four independent chains of vectors hide the latency of the multiplications.
__attribute__((target("avx2"))) inline void fill_noise_avx2(uint64_t seed, int position,
                                                            const uint32_t (&quads)[kNoiseQuads],
                                                            uint32_t (&words)[kNoiseTokens]) {
  constexpr int kChains = kNoiseQuads / 4;
  CounterLanes chains[kChains];
  for (int chain = 0; chain < kChains; ++chain) {
    const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(quads + 4 * chain));
    chains[chain] = {_mm256_cvtepu32_epi64(own), _mm256_set1_epi64x(static_cast<uint32_t>(position)),
                     _mm256_setzero_si256(), _mm256_setzero_si256()};
  }
  const __m256i multiplier0 = _mm256_set1_epi64x(0xd2511f53u), multiplier1 = _mm256_set1_epi64x(0xcd9e8d57u);
  __m256i key0 = _mm256_set1_epi64x(static_cast<uint32_t>(seed)), key1 = _mm256_set1_epi64x(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (CounterLanes& c : chains) {
      const __m256i product0 = _mm256_mul_epu32(c.c0, multiplier0);
      const __m256i product1 = _mm256_mul_epu32(c.c2, multiplier1);
      c.c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c.c1), key0);
      c.c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c.c3), key1);
      c.c1 = product1;
      c.c3 = product0;
    }
    key0 = _mm256_add_epi32(key0, _mm256_set1_epi64x(0x9e3779b9u));
    key1 = _mm256_add_epi32(key1, _mm256_set1_epi64x(0xbb67ae85u));
  }
  // Lane i of a chain becomes words 4 * i .. 4 * i + 3.
  const __m256i low_half = _mm256_set1_epi64x(0xffffffffu);
  for (int chain = 0; chain < kChains; ++chain) {
    const CounterLanes& c = chains[chain];
    const __m256i words01 = _mm256_or_si256(_mm256_and_si256(c.c0, low_half), _mm256_slli_epi64(c.c1, 32));
    const __m256i words23 = _mm256_or_si256(_mm256_and_si256(c.c2, low_half), _mm256_slli_epi64(c.c3, 32));
    const __m256i even = _mm256_unpacklo_epi64(words01, words23);
    const __m256i odd = _mm256_unpackhi_epi64(words01, words23);
    __m256i* out = reinterpret_cast<__m256i*>(words + 16 * chain);
    _mm256_storeu_si256(out, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}

// words[4 * i + j] is the noise of token 4 * quads[i] + j.
inline void fill_noise(uint64_t seed, int position, const uint32_t (&quads)[kNoiseQuads],
                       uint32_t (&words)[kNoiseTokens]) {
  if (__builtin_cpu_supports("avx2")) return fill_noise_avx2(seed, position, quads, words);
  for (int i = 0; i < kNoiseQuads; ++i) {
    const PhiloxWords noise = noise_words(seed, position, static_cast<int>(quads[i]));
    memcpy(words + 4 * i, noise.word, sizeof noise.word);
  }
}

// words[i] is the noise of token 4 * first_quad + i.
inline void fill_noise(uint64_t seed, int position, int first_quad, uint32_t (&words)[kNoiseTokens]) {
  uint32_t quads[kNoiseQuads];
  for (int i = 0; i < kNoiseQuads; ++i) quads[i] = static_cast<uint32_t>(first_quad + i);
  fill_noise(seed, position, quads, words);
}
