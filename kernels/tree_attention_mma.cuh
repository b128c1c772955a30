// Tree attention by mma: tree_attention_<dtype>_hd<D>_{narrow,wide} and their windowed forms. MATH, ORDER and the
// contract are in tree_attention.cu, what a CTA does in tree_attention_cta.cuh.
//
// A CTA is four warps. kParts = 1 (wide): each warp has a row tile of its own. kParts = 4 (narrow): the warps share one
// row tile; each scores a quarter of a key tile and accumulates a quarter of the head dimension, which moves no sum.
// ldmatrix takes an address per lane, so gathering the keys of a path into logical order costs one look-up.
#pragma once
#include "softmax_tile.cuh"
#include "tree_attention_cta.cuh"

template <typename T, int kHeadDim, int kParts, bool kWindowed>
__device__ __forceinline__ void tree_attention_mma(const TreeAttentionParams& p) {
  take_turn();
  DYN_SMEM(T, ring);
  tree_attention_cta<SoftmaxTile<T, kHeadDim, kParts>, kWindowed>(p, ring);
}

#define TREE_ATTENTION_MMA(name, T, D, parts, windowed)                      \
  extern "C" __global__ void __launch_bounds__(kMmaThreads, 2)               \
      tree_attention_##name(const __grid_constant__ TreeAttentionParams p) { \
    tree_attention_mma<T, D, parts, windowed>(p);                            \
  }                                                                          \
  EXPORT_KERNEL(tree_attention_##name)
