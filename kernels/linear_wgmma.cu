// WHAT      linear and linear_swiglu on Hopper's warpgroup tensor cores: a family beside that of linear.cu,
//           for all widths, of which a process uses one (SMART_LINEAR). Defined in images for sm_90a alone.
// MATH, SHAPES, REQUIRES  those of linear.cu, and its arguments
// LAUNCH    linear_wgmma_<bf16|f16>_t<tokens>[_w<weights>]: grid (token tiles, weight tiles, splits of K), 128
//           threads for each 64 weights of a tile, dynamic shared memory kStages * (tokens + weights) * 128 bytes. May
//           overlap its predecessors: weights are on their way before it waits.
// NUMERICS  those of linear.cu: one accumulator an output, ascending K in steps of 16, splits by (N, K)
//           alone. Within a step tensor cores add as they please, so that bits of the two families may differ
//           on a GPU; on the host driver they are the same.
// TWINS     src/kernels/linear.rs, src/reference/linear.rs, kernels/host/native/linear.cpp,
//           tests/kernels/linear.rs
//
// Roofline: mma reaches 60 to 65 % of Hopper's tensor cores, wgmma all of them; above about 100 tokens that
// decides whether the weights of an H200 can be multiplied as fast as they are read. Below that L2 does: a tile
// of W weights and T tokens reads T / W bytes of tokens for each byte of weights, all of them from L2, which
// gives an SM one and a half times what memory does, at a guess. So where 64 tokens and more come together
// 256 weights share them, in a CTA that has its SM for itself, if the layer has enough weights to keep most SMs
// busy; 32 tokens share 128. Nothing here has run on a GPU yet; what fence_async_proxy costs while copies are
// under way is the first thing to measure.
//
// Schedule: weights are the 64-side of wgmma, tokens the other. cp.async fills a ring of stages. In step t
// all threads wait for their copies of tile t and meet; the products of t are issued; then the slot of tile
// t - 2 is filled anew, with which every warp had finished when it came to the barrier; then the products of
// t - 1 are waited for. So there is always a group of products under way, and tensor cores never drain
// between tiles. kStages - 2 tiles are in flight, of narrow ones three, in so little memory that CTAs share
// an SM; wide ones have an SM for themselves, and two or three.
//
// Tiles of up to 64 tokens are multiplied whole, also where rows are missing: a step of 64 tokens takes 32
// cycles, so a tile of 8 KB of weights 128, and memory takes over 400 to bring them to an SM. Copies of
// missing rows read nothing.
#include "prims.cuh"
#include "linear_tile.cuh"

#if HAS_WGMMA

// The tile of a CTA: a warpgroup for each 64 weights.
template <int kTokens_, int kWeights_, int kStages_>
struct Tile {
  static constexpr int kTokens = kTokens_;
  static constexpr int kWeights = kWeights_;
  static constexpr int kThreads = kWeights / 64 * 128;
  static constexpr int kStages = kStages_;
  static constexpr int kStageElements = (kTokens + kWeights) * kTileK;
  static constexpr int kGroups = kTokens / 8;  // n8 groups of a warp's fragments
  // A tile is being multiplied, and the one before it may still be read.
  static constexpr int kAhead = kStages - 2;
  static_assert(kAhead >= 1, "tiles arrive while others are multiplied");
  static_assert(kTokens % 8 == 0 && kWeights % 64 == 0, "tiles of a stage start on 1024 bytes");
};

template <typename T,      // element type: bf16 or f16
          typename Shape,  // a Tile
          bool kGated>     // linear_swiglu
__device__ __forceinline__ void linear_wgmma(const LinearOperands<T>& layer) {
  let_successor_start();
  DYN_SMEM_TILES(T, stages);
  const int lane_idx = threadIdx.x % 32;
  const int warp_idx = threadIdx.x / 32;
  const LinearPlace place = linear_place<Shape>(layer);

  // A stage holds the weight tile, then the token tile.
  auto fetch_weights = [&](int tile, int slot) {
    T* const stage = stages + slot * Shape::kStageElements;
    if (tile < place.tile_end) {
      fetch_tile<Shape::kWeights, Shape::kThreads>(stage, layer.weight, place.weight0, layer.N, layer.K,
                                                   tile * kTileK, layer.K);
    }
  };
  // Groups are committed even when empty: the wait counts them.
  auto fetch_tokens = [&](int tile, int slot) {
    T* const stage = stages + slot * Shape::kStageElements + Shape::kWeights * kTileK;
    if (tile < place.tile_end) {
      fetch_tile<Shape::kTokens, Shape::kThreads>(stage, layer.x, place.token0, layer.num_rows,
                                                  layer.x_stride, tile * kTileK, layer.K);
    }
    cp_async_commit();
  };

  float sums[Shape::kTokens / 2];
#pragma unroll
  for (int i = 0; i < Shape::kTokens / 2; ++i) sums[i] = 0.0f;

  auto multiply = [&](int slot) {
    T* const stage = stages + slot * Shape::kStageElements;
    const uint64_t weights = wgmma_tile(stage + warp_idx / 4 * (64 * kTileK));
    const uint64_t tokens = wgmma_tile(stage + Shape::kWeights * kTileK);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileK / 16; ++step) {
      wgmma<T, Shape::kTokens>(sums, wgmma_step(weights, step), wgmma_step(tokens, step));
    }
    wgmma_commit();
  };

  // Weights come first, while the tokens may still be in the making; they belong to the group of the first.
#pragma unroll
  for (int stage = 0; stage < Shape::kAhead; ++stage) fetch_weights(place.tile_begin + stage, stage);
  wait_for_predecessors();
#pragma unroll
  for (int stage = 0; stage < Shape::kAhead; ++stage) fetch_tokens(place.tile_begin + stage, stage);
  int slot = 0;
  int free_slot = Shape::kAhead;
  for (int tile = place.tile_begin; tile < place.tile_end; ++tile) {
    cp_async_wait<Shape::kAhead - 1>();
    fence_async_proxy();
    __syncthreads();
    multiply(slot);
    fetch_weights(tile + Shape::kAhead, free_slot);
    fetch_tokens(tile + Shape::kAhead, free_slot);
    wgmma_wait<1>();
    slot = slot + 1 == Shape::kStages ? 0 : slot + 1;
    free_slot = free_slot + 1 == Shape::kStages ? 0 : free_slot + 1;
  }
  cp_async_wait<0>();
  wgmma_wait<0>();
  wgmma_arrived(sums);

  // sums[4 * group + i]: weight row lane / 4 (+ 8 for i >= 2) of the warp's 16,
  // token 8 * group + 2 * (lane % 4) + i % 2.
  const int first_n = place.weight0 + warp_idx * 16 + lane_idx / 4;
  const int first_token = place.token0 + lane_idx % 4 * 2;
  auto for_each_sum = [&](auto&& use) {
#pragma unroll
    for (int group = 0; group < Shape::kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = first_n + i / 2 * 8;
        const int token = first_token + group * 8 + i % 2;
        if (n < layer.N && token < layer.num_rows) {
          use(i, n, token, sums[group * 4 + i], sums[group * 4 + (i + 2) % 4]);
        }
      }
    }
  };
  finish_tile<kGated, Shape>(layer, place, stages, for_each_sum);
}

#define LINEAR(name, T, gated, tokens, weights, stages)                  \
  LINEAR_KERNEL(name, T, (Tile<tokens, weights, stages>::kThreads),      \
                (linear_wgmma<T, Tile<tokens, weights, stages>, gated>)) \
  EXPORT_HOPPER_KERNEL(name)

#define LINEAR_FAMILY(name, T, gated)             \
  LINEAR(name##_t8, T, gated, 8, 64, 5)           \
  LINEAR(name##_t16, T, gated, 16, 64, 5)         \
  LINEAR(name##_t32, T, gated, 32, 64, 5)         \
  LINEAR(name##_t32_w128, T, gated, 32, 128, 5)   \
  LINEAR(name##_t64, T, gated, 64, 64, 5)         \
  LINEAR(name##_t64_w256, T, gated, 64, 256, 5)   \
  LINEAR(name##_t128, T, gated, 128, 128, 7)      \
  LINEAR(name##_t128_w256, T, gated, 128, 256, 4) \
  LINEAR(name##_t256, T, gated, 256, 128, 4)

LINEAR_FAMILY(linear_wgmma_bf16, bf16, false)
LINEAR_FAMILY(linear_wgmma_f16, f16, false)
LINEAR_FAMILY(linear_swiglu_wgmma_bf16, bf16, true)
LINEAR_FAMILY(linear_swiglu_wgmma_f16, f16, true)

#endif  // HAS_WGMMA
