// WHAT      linear and linear_swiglu of the family of linear.cu, with tiles that Hopper's copy engine brings: another
//           way to the same bits, of which a process takes the faster one (src/kernels/linear/tuning.rs). Defined in
//           images for sm_90a alone.
// MATH, SHAPES, REQUIRES, NUMERICS  those of linear.cu
// ARGUMENTS, LAUNCH  those of linear_wgmma.cu, by the names linear_bulk_<bf16|f16>_t<tokens>[_w<weights>], 32 threads for
//           each warp of the tile and 32 more
// TWINS     src/kernels/linear.rs, src/reference/linear.rs, kernels/host/native/linear.cpp,
//           tests/kernels/linear.rs
//
// Roofline: of linear.cu's tiles every one reads its tokens from L2 for itself, as a CTA that fills its stages by
// cp.async has not the registers to let more than 128 weights share them. Here one thread fetches, 256 weights share 64
// tokens, and up to four CTAs of a cluster share them once more: at 128 tokens a quarter of a byte of tokens for each byte
// of weights, where it was one. What mma.m16n8k16 reaches of Hopper's tensor cores (60 to 65 %) makes 128 rows about as
// long as their weights take to come. Nothing here has run on a GPU yet.
//
// 128 tokens by 256 weights, 64 by 64 a warp, would halve that once more, but the warp that fetches is the ninth, and
// three warps of a scheduler have 168 registers each: 740 bytes were spilled.
//
// Schedule: tiles come through a ring of slots (linear_ring.cuh); a warp has done with a slot when its last ldmatrix has
// returned, so it gives it back before its products have ended.
#include "prims.cuh"
#include "linear_mma.cuh"
#include "linear_ring.cuh"

#if HAS_WGMMA

template <typename T,      // element type: bf16 or f16
          typename Shape,  // an MmaTile, with a warp that fetches
          bool kGated>     // linear_swiglu
__device__ __forceinline__ void linear_bulk(const TensorMap& x, const TensorMap& weight,
                                            const LinearOutputs<T>& layer, int num_sharing) {
  let_successor_start();
  DYN_SMEM_TILES(T, stages);
  SHARED(uint64_t[Shape::kStages], full);
  SHARED(uint64_t[Shape::kStages], empty);
  const LinearPlace place = linear_place<Shape>(layer);
  const TileRing<T, Shape> ring{x, weight, place, stages, full, empty, num_sharing};
  ring.open();
  MmaSums<T, Shape> sums(place, layer.num_rows);

  if (ring.fetches()) ring.fill();
  if (ring.multiplies()) {
    int slot = 0, parity = 0;
    for (int tile = place.tile_begin; tile < place.tile_end; ++tile) {
      mbarrier_wait(&full[slot], parity);
      sums.multiply(ring.weights_of(slot), ring.tokens_of(slot));
      ring.release(tile, slot);
      if (++slot == Shape::kStages) slot = 0, parity ^= 1;
    }
  }
  __syncwarp();

  auto for_each_sum = [&](auto&& use) {
    if (ring.multiplies()) sums.for_each(layer, place, use);
  };
  finish_tile<kGated, Shape>(layer, place, ring.parts(), stages, for_each_sum);
  ring.close();
}

// Tokens, weights, warps that multiply, of them along the tokens, stages.
#define LINEAR(name, T, gated, tokens, weights, warps, along_tokens, stages) \
  RING_KERNEL(name, T, warps * 32 + 32,                                      \
              linear_bulk<T, MmaTile<tokens, weights, warps, along_tokens, stages, warps * 32 + 32>, gated>)

#define LINEAR_FAMILY(name, T, gated)                 \
  LINEAR(name##_t8, T, gated, 8, 64, 4, 1, 5)         \
  LINEAR(name##_t16, T, gated, 16, 64, 4, 1, 5)       \
  LINEAR(name##_t32_w128, T, gated, 32, 128, 8, 1, 5) \
  LINEAR(name##_t64_w256, T, gated, 64, 256, 8, 1, 5) \
  LINEAR(name##_t128, T, gated, 128, 128, 8, 2, 6)

LINEAR_FAMILY(linear_bulk_bf16, bf16, false)
LINEAR_FAMILY(linear_bulk_f16, f16, false)
LINEAR_FAMILY(linear_swiglu_bulk_bf16, bf16, true)
LINEAR_FAMILY(linear_swiglu_bulk_f16, f16, true)

#endif  // HAS_WGMMA
