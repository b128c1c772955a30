// Tree attention by wgmma: tree_attention_wgmma_<dtype>_hd<D> and their windowed forms.
#pragma once
#include "softmax_tile_wgmma.cuh"
#include "tree_attention_cta.cuh"

#if HAS_WGMMA

template <typename T, int kHeadDim, bool kWindowed>
__device__ __forceinline__ void tree_attention_wgmma(const TreeAttentionParams& p) {
  take_turn();
  DYN_SMEM_TILES(T, ring);
  tree_attention_cta<WarpgroupTile<T, kHeadDim>, kWindowed>(p, ring);
}

#define TREE_ATTENTION_WGMMA(name, T, D, windowed)                                 \
  extern "C" __global__ void __launch_bounds__(kWarpgroupThreads, 2)               \
      tree_attention_wgmma_##name(const __grid_constant__ TreeAttentionParams p) { \
    tree_attention_wgmma<T, D, windowed>(p);                                       \
  }                                                                                \
  EXPORT_HOPPER_KERNEL(tree_attention_wgmma_##name)

#endif  // HAS_WGMMA
