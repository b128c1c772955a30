// WHAT      Linear layer for few tokens: weights are streamed once, tokens ride along. linear_swiglu: with the gated
//           activation of a SwiGLU layer behind it.
// MATH      y[t,n] = round(sum_k x[t,k] * weight[n,k] + bias[n]), f32 accumulation
//           linear:        out[t,n] = y[t,n]
//           linear_swiglu: out[t,i] = round(silu(y[t,gate(i)]) * y[t,up(i)]),  silu(g) = g / (1 + exp(-g)),
//                          gate(i) = 16 (i / 8) + i % 8,  up(i) = gate(i) + 8
// SHAPES    x        T   [rows, K]          in     row stride x_stride elements
//           weight   T   [N, K]             in
//           bias     T   [N]                in     may be null
//           out      T or f32 [rows, N]     out    row stride out_stride elements; f32 if out_is_f32
//                    T   [rows, N / 2]             of linear_swiglu
//           partial  f32 [splits, rows, N]  out    null where K is not split, or the splits of a tile are a cluster
//           tickets  u32 [tiles]            inout  one for each of the grid's (x, y), 0 before and after
//           digests  Digest [rows, ceil(N / 64)]  out  of f32 outputs that are logits (digest.cuh), where K is not
//                                           split; null: of others. Not of linear_swiglu
// LAUNCH    linear_<bf16|f16>_t<tokens>[_w<weights>]: grid (token tiles, weight tiles, splits of K), 128 threads
//           (_w128: 256), dynamic shared memory kStages * (tokens + weights) * 128 bytes; clusters of all splits
//           where `partial` is null and there are several. linear_f32: 128 threads, grid
//           (ceil(rows / 8), ceil(N / 16)), a warp for 4 weight rows x 8 tokens. May overlap its predecessors:
//           weights are on their way before it waits.
// REQUIRES  bf16, f16: K % 8 == 0, x_stride % 8 == 0, x and weight 16-byte aligned; f32: nothing.
//           linear_swiglu: N % 16 == 0
// NUMERICS  One accumulator an output, ascending K in steps of 16; splits added in ascending order, then the
//           bias; one rounding. The splits depend on (N, K) alone, so no tile and no number of rows changes
//           a bit of a row. linear_swiglu rounds as if gate and up had been written and read again; a gate of
//           -inf gives NaN, as -inf / inf does in the frameworks.
// TWINS     src/kernels/linear.rs, src/reference/linear.rs, kernels/host/native/linear.cpp,
//           tests/kernels/linear.rs
//
// Roofline: a weight is used once a token, so below about 184 tokens on an H200 the time is that of reading
// the weights. Little's law sets the rest: 4.3 TB/s at about 0.7 us is 3 MB in flight, 23 KB an SM. A CTA
// keeps kStages - 1 = 3 tiles of 64 x 64 weights (24 KB) in flight and three or four CTAs share an SM, which
// leaves room for barriers and the tail. Splitting K gives a small N its 512 CTAs. Where the GPU has clusters the
// splits of a tile are one, and each adds up its share of the outputs out of the shared memory of all; elsewhere
// the CTA that ends last adds them up, out of L2 and alone, which saves a launch.
//
// Schedule: weights are the 16-side of mma.m16n8k16 and tokens the 8-side, so the work grows in steps of 8
// tokens. cp.async fills a ring of stages; one barrier a tile both publishes the tile that arrived and frees
// the one before it. Chunk c of row r of a tile lies at chunk c ^ (r % 8), so that copies and ldmatrix touch
// every bank once. Above 64 tokens arithmetic counts: a 128 x 128 tile halves the traffic from L2, and adds
// in the same order. Below, 17 tokens and more share 128 weights where there are enough of them: a tile reads
// tokens / weights bytes of tokens from L2 for each byte of weights. Gate and up rows lie in turns of 8, the two
// halves of an m16 tile: a thread holds both.
#include "prims.cuh"
#include "elements.cuh"
#include "linear_mma.cuh"
#include "reduce.cuh"

// Copies rows [row0, row0 + kRows) x one k tile of `source` into `tile`; what lies outside the matrix becomes
// zero. kThreads threads of the CTA share the work.
template <int kRows, int kThreads, typename T>
__device__ __forceinline__ void fetch_tile(T* tile, const T* source, int row0, int num_rows,
                                           int64_t row_stride, int k0, int K) {
  constexpr int kRowsPerPass = kThreads / kRowChunks;
  const int chunk = threadIdx.x % kRowChunks;
  const int k = k0 + chunk * kChunk;
#pragma unroll
  for (int first = 0; first < kRows; first += kRowsPerPass) {
    const int row = first + threadIdx.x / kRowChunks;
    if (kRows % kRowsPerPass == 0 || row < kRows) {
      const bool inside = row0 + row < num_rows && k < K;
      cp_async16(swizzled(tile, row, chunk), inside ? source + (row0 + row) * row_stride + k : source,
                 inside);
    }
  }
}

template <typename T,      // element type: bf16 or f16
          typename Shape,  // an MmaTile
          bool kGated>     // linear_swiglu
__device__ __forceinline__ void linear_mma(const T* x, const T* weight, int x_stride,
                                           const LinearOutputs<T>& layer) {
  static_assert(Shape::kWeights % (Shape::kThreads / kRowChunks) == 0,
                "a weight tile is filled in whole passes");
  let_successor_start();
  DYN_SMEM(T, stages);
  const LinearPlace place = linear_place<Shape>(layer);
  // A stage holds the weight tile, then the token tile.
  auto fetch_weights = [&](int tile, int slot) {
    T* const stage = stages + slot * Shape::kStageElements;
    if (tile < place.tile_end) {
      fetch_tile<Shape::kWeights, Shape::kThreads>(stage, weight, place.weight0, layer.N, layer.K,
                                                   tile * kTileK, layer.K);
    }
  };
  // Groups are committed even when empty: the wait counts them.
  auto fetch_tokens = [&](int tile, int slot) {
    T* const stage = stages + slot * Shape::kStageElements + Shape::kWeights * kTileK;
    if (tile < place.tile_end) {
      fetch_tile<Shape::kTokens, Shape::kThreads>(stage, x, place.token0, layer.num_rows, x_stride,
                                                  tile * kTileK, layer.K);
    }
    cp_async_commit();
  };

  MmaSums<T, Shape> sums(place, layer.num_rows);

  // Fill all stages but one, then: wait for the oldest, refill the slot that every warp has left, multiply.
  // Weights come first, while the tokens may still be in the making; they belong to the group of the first.
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) fetch_weights(place.tile_begin + stage, stage);
  wait_for_predecessors();
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) fetch_tokens(place.tile_begin + stage, stage);
  int slot = 0;
  int free_slot = Shape::kStages - 1;
  for (int tile = place.tile_begin; tile < place.tile_end; ++tile) {
    cp_async_wait<Shape::kStages - 2>();
    __syncthreads();
    fetch_weights(tile + Shape::kStages - 1, free_slot);
    fetch_tokens(tile + Shape::kStages - 1, free_slot);
    T* const stage = stages + slot * Shape::kStageElements;
    sums.multiply(stage, stage + Shape::kWeights * kTileK);
    free_slot = slot;
    slot = slot + 1 == Shape::kStages ? 0 : slot + 1;
  }
  cp_async_wait<0>();

  auto for_each_sum = [&](auto&& use) { sums.for_each(layer, place, use); };
  finish_tile<kGated, Shape>(layer, place, ClusterParts{0, 1}, stages, for_each_sum);
}

// Plain FMA: lane l of a warp adds elements 4l..4l+3 of every 128, ascending; then the lanes are added.
constexpr int kThreads = 128;
constexpr int kWarpWeights = 4;
constexpr int kWarpTokens = 8;
static_assert(kWarpWeights * kWarpTokens == 32, "warp_sum_scatter leaves one output in each lane");

template <bool kGated>
__device__ __forceinline__ void linear_fma(const float* x, const float* weight, const float* bias, float* out,
                                           int num_rows, int N, int K, int x_stride, int out_stride) {
  take_turn();
  const int lane_idx = threadIdx.x % 32;
  const int token0 = blockIdx.x * kWarpTokens;
  const int weight0 = (blockIdx.y * (kThreads / 32) + threadIdx.x / 32) * kWarpWeights;
  // Whole warps leave, and no barrier follows; gated CTAs, which have one, are always full.
  if (weight0 >= N) return;
  const bool aligned = is_aligned16(x) && is_aligned16(weight) && x_stride % 4 == 0 && K % 4 == 0;

  float sums[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) sums[i] = 0.0f;
  for (int k = lane_idx * 4; k < K; k += 128) {
    Vector<float> weights[kWarpWeights];
#pragma unroll
    for (int m = 0; m < kWarpWeights; ++m) {
      const int row = min(weight0 + m, N - 1);  // a row past the end repeats the last one and is not stored
      weights[m] = load_vector(weight + static_cast<int64_t>(row) * K + k, K - k, aligned, 0.0f);
    }
#pragma unroll
    for (int token = 0; token < kWarpTokens; ++token) {
      const int row = min(token0 + token, num_rows - 1);
      const auto values = load_vector(x + static_cast<int64_t>(row) * x_stride + k, K - k, aligned, 0.0f);
#pragma unroll
      for (int m = 0; m < kWarpWeights; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& sum = sums[m * kWarpTokens + token];
          sum = fmaf(weights[m].element[i], values.element[i], sum);
        }
      }
    }
  }
  const float sum = warp_sum_scatter(sums);
  const int n = weight0 + lane_idx / kWarpTokens;
  const int token = token0 + lane_idx % kWarpTokens;
  const int64_t row = static_cast<int64_t>(token) * out_stride;
  if constexpr (!kGated) {
    if (n < N && token < num_rows) out[row + n] = with_bias(sum, bias, n);
  } else {
    // 16 weight rows a CTA: the first two warps have the gates, the others what is gated.
    SHARED(float[kThreads], finished);
    finished[threadIdx.x] = with_bias(sum, bias, n);
    __syncthreads();
    if (threadIdx.x < kThreads / 2 && token < num_rows) {
      out[row + n / 16 * 8 + n % 8] =
          swiglu<float>(finished[threadIdx.x], finished[threadIdx.x + kThreads / 2]);
    }
  }
}

#define LINEAR_FMA(name, gated)                                                                           \
  extern "C" __global__ void __launch_bounds__(kThreads)                                                  \
      name(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, \
           float* __restrict__ out, int num_rows, int N, int K, int x_stride, int out_stride) {           \
    linear_fma<gated>(x, weight, bias, out, num_rows, N, K, x_stride, out_stride);                        \
  }                                                                                                       \
  EXPORT_KERNEL(name)

LINEAR_FMA(linear_f32, false)
LINEAR_FMA(linear_swiglu_f32, true)

#define LINEAR(name, T, gated, ...)                                                                          \
  extern "C" __global__ void __launch_bounds__(MmaTile<__VA_ARGS__>::kThreads)                               \
      name(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,                \
           void* __restrict__ out, float* partial, int num_rows, int N, int K, int x_stride, int out_stride, \
           int tiles_per_split, int out_is_f32, unsigned* tickets, Digest* digests) {                        \
    const LinearOutputs<T> layer{bias,       out,     partial, num_rows, N, K, out_stride, tiles_per_split,  \
                                 out_is_f32, tickets, digests};                                              \
    linear_mma<T, MmaTile<__VA_ARGS__>, gated>(x, weight, x_stride, layer);                                  \
  }                                                                                                          \
  EXPORT_KERNEL(name)

#define LINEAR_FAMILY(name, T, gated)                 \
  LINEAR(name##_t8, T, gated, 8, 64, 4, 1, 4)         \
  LINEAR(name##_t16, T, gated, 16, 64, 4, 1, 4)       \
  LINEAR(name##_t32, T, gated, 32, 64, 4, 1, 4)       \
  LINEAR(name##_t32_w128, T, gated, 32, 128, 8, 1, 4) \
  LINEAR(name##_t64, T, gated, 64, 64, 4, 2, 3)       \
  LINEAR(name##_t64_w128, T, gated, 64, 128, 8, 2, 3) \
  LINEAR(name##_t128, T, gated, 128, 128, 4, 2, 3)

LINEAR_FAMILY(linear_bf16, bf16, false)
LINEAR_FAMILY(linear_f16, f16, false)
LINEAR_FAMILY(linear_swiglu_bf16, bf16, true)
LINEAR_FAMILY(linear_swiglu_f16, f16, true)
