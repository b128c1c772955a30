// Native twins of kernels/linear.cu, kernels/linear_bulk.cu and kernels/linear_wgmma.cu: the hot path of runs on the CPU.
//
// Weights stay in their dtype and are widened in registers. Blocks of 64 weight rows go to the threads of the
// pool; the inner loops are in dot_products.inc, once per instruction
// set, chosen at load. Bits of an output depend on its token row, its weight row and the instruction set,
// nothing else.
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "../bulk_copy.hpp"
#include "digests.hpp"
#include "rows.hpp"

namespace {

// Enough for a thread to amortise its wake-up, small enough to spread, and what a digest is made of.
constexpr int kBlockWeights = kDigestLen;
constexpr int kBlockTokens = 32;   // 8 KiB of sums on the stack
constexpr int kTileK = 64;         // the kernel's k tile, the unit of splits
constexpr int kPadding = 32;       // token rows are padded to the widest step
constexpr int kMaxStrip = 8;       // tokens of the widest strip
constexpr int kGroupWeights = 16;  // weight rows that stay in the first-level cache between strips
constexpr int kPrefetchRows = 16;  // measured: hardware prefetchers lose the track of short rows

// A block of dot products: result[token * result_stride + row] = dot(weight row, token row).
template <class T>
struct DotBlock {
  const T* weight;
  int64_t weight_stride;
  int num_weights;
  const void* x;  // packed token rows; rows up to a multiple of kMaxStrip exist
  int64_t x_stride;
  int first_token, num_tokens;
  int first_element, length;
  float* result;
  int64_t result_stride;
};

#define LEVEL avx512_bf16
#define LEVEL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")))
#define LEVEL_LANES 16
#define LEVEL_FMA(a, b, c) (Floats) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define LEVEL_WIDEN_F16(halves) (Floats) _mm512_cvtph_ps((__m256i)(halves))
#define LEVEL_BF16_DOT
#include "dot_products.inc"

#define LEVEL avx512
#define LEVEL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#define LEVEL_LANES 16
#define LEVEL_FMA(a, b, c) (Floats) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define LEVEL_WIDEN_F16(halves) (Floats) _mm512_cvtph_ps((__m256i)(halves))
#include "dot_products.inc"

#define LEVEL avx2
#define LEVEL_TARGET __attribute__((target("avx2,fma,f16c")))
#define LEVEL_LANES 8
#define LEVEL_FMA(a, b, c) (Floats) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#define LEVEL_WIDEN_F16(halves) (Floats) _mm256_cvtph_ps((__m128i)(halves))
#include "dot_products.inc"

#define LEVEL baseline
#define LEVEL_TARGET
#define LEVEL_LANES 4
#define LEVEL_FMA(a, b, c) (a) * (b) + (c)
#include "dot_products.inc"

// The inner loops of one instruction set.
template <class T>
struct Routines {
  const char* name;
  bool supported;
  void (*pack_tokens)(const T* x, int64_t x_stride, int num_tokens, int length, int padded, void* packed);
  void (*dot_block)(const DotBlock<T>& block);
};

// The routines of the best instruction set that this machine has and SIMT_VECTORS allows, which names one of
// those below: one choice for the life of the process.
template <class T>
const Routines<T>& routines() {
  static const Routines<T> chosen = [] {
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq");
    const Routines<T> baseline{"baseline", true, baseline::pack_tokens<T>, baseline::dot_block<T>};
    const Routines<T> best_first[] = {
        {"avx512_bf16", has_avx512 && __builtin_cpu_supports("avx512bf16"), avx512_bf16::pack_tokens<T>,
         avx512_bf16::dot_block<T>},
        {"avx512", has_avx512, avx512::pack_tokens<T>, avx512::dot_block<T>},
        {"avx2", has_avx2, avx2::pack_tokens<T>, avx2::dot_block<T>},
    };
    const char* const best_allowed = getenv("SIMT_VECTORS");
    bool allowed = best_allowed == nullptr;
    for (const Routines<T>& routine : best_first) {
      allowed = allowed || strcmp(best_allowed, routine.name) == 0;
      if (allowed && routine.supported) return routine;
    }
    return baseline;
  }();
  return chosen;
}

SIMT_VECTORISED void narrow_row(const float* source, bf16* target, int count) {
  for (int i = 0; i < count; ++i) target[i] = __float2bfloat16(source[i]);
}
SIMT_VECTORISED void narrow_row(const float* source, f16* target, int count) {
  for (int i = 0; i < count; ++i) target[i] = __float2half(source[i]);
}
void narrow_row(const float* source, float* target, int count) {
  std::copy_n(source, count, target);
}

// The epilogue: out[i] = sums[i] + bias[i], rounded to T or kept as f32.
template <class T>
void store_sums(float* sums, const T* bias, void* out, int64_t offset, int count, int out_is_f32) {
  if (bias != nullptr) {
    for (int i = 0; i < count; ++i) sums[i] += simt::widen(bias[i]);
  }
  if (out_is_f32) {
    narrow_row(sums, static_cast<float*>(out) + offset, count);
  } else {
    narrow_row(sums, static_cast<T*>(out) + offset, count);
  }
}

// Packed rows are whole lines: loads across two lines cost 1.7 times the time at 16 tokens.
struct alignas(64) CacheLine {
  float elements[16];
};

// Token rows as the chosen routines read them; kept by the launching thread from call to call, read by all.
template <class T>
const void* packed_tokens(const T* x, int64_t x_stride, int num_rows, int K, int padded) {
  static thread_local std::vector<CacheLine> packed;
  const size_t rows = (num_rows + kMaxStrip - 1) / kMaxStrip * kMaxStrip;
  const size_t lines = rows * padded * sizeof(float) / sizeof(CacheLine);
  if (packed.size() < lines) packed.resize(lines);
  routines<T>().pack_tokens(x, x_stride, num_rows, K, padded, packed.data());
  return packed.data();
}

// The gated activation of `count` rows, gate and up in turns of 8, both rounded to T before.
template <class T>
ROW_BODY void gate(const T* __restrict pairs, float* __restrict gated, int count) {
  for (int turn = 0; turn < count / 16; ++turn) {
    for (int i = 0; i < 8; ++i) {
      const float g = simt::widen(pairs[turn * 16 + i]);
      gated[turn * 8 + i] = g / (1.0f + exp_vectorisable(-g)) * simt::widen(pairs[turn * 16 + 8 + i]);
    }
  }
}

#define GATE_ROW(T)                                                   \
  ROW_KERNEL void gate_row(const T* pairs, float* gated, int count) { \
    gate<T>(pairs, gated, count);                                     \
  }
GATE_ROW(bf16)
GATE_ROW(f16)
GATE_ROW(float)

// What becomes of finished sums.
template <class T>
struct Epilogue {
  const T* bias;
  void* out;
  int64_t out_stride;
  int out_is_f32;
  bool is_gated;              // linear_swiglu
  Digest* digests = nullptr;  // of a head
  int digests_of_row = 0;

  // `count` sums of token `row` from weight row `n0` on.
  void store(float* sums, int64_t row, int n0, int count) const {
    const T* const biases = bias == nullptr ? bias : bias + n0;
    if (!is_gated) {
      store_sums(sums, biases, out, row * out_stride + n0, count, out_is_f32);
      if (digests != nullptr)
        digests[row * digests_of_row + n0 / kDigestLen] = digest_of_slice(sums, n0, count);
      return;
    }
    T pairs[kBlockWeights];
    store_sums(sums, biases, pairs, 0, count, 0);
    T* const gated = static_cast<T*>(out) + row * out_stride + n0 / 2;
    gate_row(pairs, sums, count);
    narrow_row(sums, gated, count / 2);
  }
};

// A task has some weight rows and all of K; splits are summed apart and then added, as the kernel does.
template <class T>
void linear(const T* x, const T* weight, const Epilogue<T>& epilogue, int num_rows, int N, int K,
            int x_stride, int split_length) {
  const int padded = (K + kPadding - 1) / kPadding * kPadding;
  const void* const packed = packed_tokens(x, x_stride, num_rows, K, padded);
  const Routines<T> routine = routines<T>();
  const int num_blocks = (N + kBlockWeights - 1) / kBlockWeights;

  simt::parallel_for(num_blocks, [&](uint32_t task) {
    const int n0 = static_cast<int>(task) * kBlockWeights;
    alignas(64) float sums[kBlockTokens * kBlockWeights];
    alignas(64) float split_sums[kBlockTokens * kBlockWeights];
    DotBlock<T> block{.weight_stride = K,
                      .num_weights = std::min(kBlockWeights, N - n0),
                      .x = packed,
                      .x_stride = padded,
                      .result_stride = kBlockWeights};
    for (int token0 = 0; token0 < num_rows; token0 += kBlockTokens) {
      block.first_token = token0;
      block.num_tokens = std::min(kBlockTokens, num_rows - token0);
      for (int k0 = 0; k0 < K; k0 += split_length) {
        block.weight = weight + static_cast<int64_t>(n0) * K + k0;
        block.first_element = k0;
        block.length = std::min(split_length, K - k0);
        block.result = k0 == 0 ? sums : split_sums;
        routine.dot_block(block);
        if (k0 == 0) continue;
        for (int i = 0; i < block.num_tokens * kBlockWeights; ++i) sums[i] += split_sums[i];
      }
      for (int token = 0; token < block.num_tokens; ++token)
        epilogue.store(sums + token * kBlockWeights, token0 + token, n0, block.num_weights);
    }
  });
}

template <class T, bool kGated>
void linear_native(const simt::NativeLaunch&, const T* x, const T* weight, const T* bias, void* out, float*,
                   int num_rows, int N, int K, int x_stride, int out_stride, int tiles_per_split,
                   int out_is_f32, unsigned*, Digest* digests) {
  const Epilogue<T> epilogue{bias, out, out_stride, out_is_f32, kGated, digests, num_digests(N)};
  linear(x, weight, epilogue, num_rows, N, K, x_stride, tiles_per_split * kTileK);
}

// Of the family whose matrices come as tensor maps.
template <class T, bool kGated>
void linear_native_maps(const simt::NativeLaunch&, simt::TensorMap x, simt::TensorMap weight, const T* bias,
                        void* out, float*, int num_rows, int N, int K, int out_stride, int tiles_per_split,
                        int out_is_f32, unsigned*, Digest* digests, int) {
  const Epilogue<T> epilogue{bias, out, out_stride, out_is_f32, kGated, digests, num_digests(N)};
  auto elements = [](const simt::TensorMap& map) { return reinterpret_cast<const T*>(map.base); };
  linear(elements(x), elements(weight), epilogue, num_rows, N, K, static_cast<int>(x.row_bytes / sizeof(T)),
         tiles_per_split * kTileK);
}

template <bool kGated>
void linear_native_f32(const simt::NativeLaunch&, const float* x, const float* weight, const float* bias,
                       float* out, int num_rows, int N, int K, int x_stride, int out_stride) {
  linear(x, weight, Epilogue<float>{bias, out, out_stride, 1, kGated}, num_rows, N, K, x_stride, K);
}

}  // namespace

NATIVE_TWIN(linear_f32, linear_native_f32<false>)
NATIVE_TWIN(linear_swiglu_f32, linear_native_f32<true>)

#define LINEAR_TWINS(name, twin)     \
  NATIVE_TWIN(name##_t8, twin)       \
  NATIVE_TWIN(name##_t16, twin)      \
  NATIVE_TWIN(name##_t32, twin)      \
  NATIVE_TWIN(name##_t32_w128, twin) \
  NATIVE_TWIN(name##_t64, twin)      \
  NATIVE_TWIN(name##_t128, twin)

#define LINEAR_MMA_TWINS(name, T, gated)        \
  LINEAR_TWINS(name, (linear_native<T, gated>)) \
  NATIVE_TWIN(name##_t64_w128, (linear_native<T, gated>))

LINEAR_MMA_TWINS(linear_bf16, bf16, false)
LINEAR_MMA_TWINS(linear_f16, f16, false)
LINEAR_MMA_TWINS(linear_swiglu_bf16, bf16, true)
LINEAR_MMA_TWINS(linear_swiglu_f16, f16, true)

#define LINEAR_BULK_TWINS(name, T, gated)                      \
  NATIVE_TWIN(name##_t8, (linear_native_maps<T, gated>))       \
  NATIVE_TWIN(name##_t16, (linear_native_maps<T, gated>))      \
  NATIVE_TWIN(name##_t32_w128, (linear_native_maps<T, gated>)) \
  NATIVE_TWIN(name##_t64_w256, (linear_native_maps<T, gated>)) \
  NATIVE_TWIN(name##_t128, (linear_native_maps<T, gated>))

LINEAR_BULK_TWINS(linear_bulk_bf16, bf16, false)
LINEAR_BULK_TWINS(linear_bulk_f16, f16, false)
LINEAR_BULK_TWINS(linear_swiglu_bulk_bf16, bf16, true)
LINEAR_BULK_TWINS(linear_swiglu_bulk_f16, f16, true)

#define LINEAR_WGMMA_TWINS(name, T, gated)                      \
  LINEAR_TWINS(name, (linear_native_maps<T, gated>))            \
  NATIVE_TWIN(name##_t64_w256, (linear_native_maps<T, gated>))  \
  NATIVE_TWIN(name##_t128_w256, (linear_native_maps<T, gated>)) \
  NATIVE_TWIN(name##_t256, (linear_native_maps<T, gated>))

LINEAR_WGMMA_TWINS(linear_wgmma_bf16, bf16, false)
LINEAR_WGMMA_TWINS(linear_wgmma_f16, f16, false)
LINEAR_WGMMA_TWINS(linear_swiglu_wgmma_bf16, bf16, true)
LINEAR_WGMMA_TWINS(linear_swiglu_wgmma_f16, f16, true)
