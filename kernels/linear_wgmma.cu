// WHAT      linear and linear_swiglu on Hopper's warpgroup tensor cores: a family beside that of linear.cu,
//           for all widths, of which a process uses one (SMART_LINEAR). Defined in images for sm_90a alone.
// MATH, SHAPES, REQUIRES  those of linear.cu
// ARGUMENTS those of linear.cu, x and weight as tensor maps with boxes of 64 columns: of kTokens / num_sharing
//           rows, and of kWeights
// LAUNCH    linear_wgmma_<bf16|f16>_t<tokens>[_w<weights>]: grid (token tiles, weight tiles, splits of K), 128
//           threads for each 64 weights of a tile and 32 more, dynamic shared memory kStages * (tokens + weights) *
//           128 bytes. num_sharing blocks along y form a cluster (1: none has to), with all splits' z, which it takes
//           with K split and `partial` null. May overlap its predecessors: weights are on their way before it waits.
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
// busy; 32 tokens share 128. And the CTAs of a cluster share them once more: each fetches a part of the rows for
// all. Nothing here has run on a GPU yet.
//
// Schedule: weights are the 64-side of wgmma, tokens the other. Tiles come through a ring of slots
// (linear_ring.cuh); a warp has done with a slot once its products of it have ended, which is one tile later: there
// is always a group of products under way, and tensor cores never drain between tiles.
//
// Tiles of up to 64 tokens are multiplied whole, also where rows are missing: a step of 64 tokens takes 32
// cycles, so a tile of 8 KB of weights 128, and memory takes over 400 to bring them to an SM. Boxes
// of missing rows read nothing.
#include "prims.cuh"
#include "linear_ring.cuh"

#if HAS_WGMMA

// The tile of a CTA: a warpgroup for each 64 weights.
template <int kTokens_, int kWeights_, int kStages_>
struct Tile {
  static constexpr int kTokens = kTokens_;
  static constexpr int kWeights = kWeights_;
  static constexpr int kWarps = kWeights / 16;
  static constexpr int kThreads = kWarps * 32 + 32;
  static constexpr int kStages = kStages_;
  static constexpr int kStageElements = (kTokens + kWeights) * kTileK;
  static constexpr int kGroups = kTokens / 8;  // n8 groups of a warp's fragments
  static_assert(kStages >= 3, "tiles arrive while one is multiplied and the one before it may still be read");
};

template <typename T,      // element type: bf16 or f16
          typename Shape,  // a Tile
          bool kGated>     // linear_swiglu
__device__ __forceinline__ void linear_wgmma(const TensorMap& x, const TensorMap& weight,
                                             const LinearOutputs<T>& layer, int num_sharing) {
  let_successor_start();
  DYN_SMEM_TILES(T, stages);
  SHARED(uint64_t[Shape::kStages], full);
  SHARED(uint64_t[Shape::kStages], empty);
  const int lane_idx = threadIdx.x % 32;
  const int warp_idx = threadIdx.x / 32;
  const LinearPlace place = linear_place<Shape>(layer);
  const TileRing<T, Shape> ring{x, weight, place, stages, full, empty, num_sharing};
  ring.open();

  float sums[Shape::kTokens / 2];
#pragma unroll
  for (int i = 0; i < Shape::kTokens / 2; ++i) sums[i] = 0.0f;

  if (ring.fetches()) ring.fill();
  if (ring.multiplies()) {
    int slot = 0, parity = 0, last_slot = 0;
    for (int tile = place.tile_begin; tile < place.tile_end; ++tile) {
      mbarrier_wait(&full[slot], parity);
      const uint64_t weights = wgmma_tile(ring.weights_of(slot) + warp_idx / 4 * (64 * kTileK));
      const uint64_t tokens = wgmma_tile(ring.tokens_of(slot));
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        wgmma<T, Shape::kTokens>(sums, wgmma_step(weights, step), wgmma_step(tokens, step));
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (tile > place.tile_begin) ring.release(tile - 1, last_slot);
      last_slot = slot;
      if (++slot == Shape::kStages) slot = 0, parity ^= 1;
    }
    wgmma_wait<0>();
    wgmma_arrived(sums);
  }
  __syncwarp();

  // sums[4 * group + i]: weight row lane / 4 (+ 8 for i >= 2) of the warp's 16,
  // token 8 * group + 2 * (lane % 4) + i % 2.
  const int first_n = place.weight0 + warp_idx * 16 + lane_idx / 4;
  const int first_token = place.token0 + lane_idx % 4 * 2;
  auto for_each_sum = [&](auto&& use) {
    if (!ring.multiplies()) return;
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
  finish_tile<kGated, Shape>(layer, place, ring.parts(), stages, for_each_sum);
  ring.close();
}

#define LINEAR(name, T, gated, ...) \
  RING_KERNEL(name, T, (Tile<__VA_ARGS__>::kThreads), linear_wgmma<T, Tile<__VA_ARGS__>, gated>)

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
