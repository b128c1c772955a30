// WHAT      tree_attention on Hopper's warpgroup tensor cores: a family beside the tensor-core kernels of
//           tree_attention.cu, for all widths, of which a process uses one (SMART_ATTENTION). Defined in images for
//           sm_90a alone. The combining kernel is that of tree_attention.cu.
// MATH, SHAPES, REQUIRES, ORDER  those of tree_attention.cu, and its parameters
// LAUNCH    tree_attention_wgmma_<bf16|f16>_hd<D>: grid (row tile, unit of keys, sequence * kv head), 128 threads, 64
//           packed rows a CTA; dynamic shared memory: kStages tiles of 64 keys and as many of values, and the queries.
// NUMERICS  those of tree_attention.cu. Within a step tensor cores add as they please, so that bits of the two families
//           may differ on a GPU; on the host driver they are the same.
// TWINS     src/kernels/tree_attention.rs, src/reference/tree_attention.rs, tests/kernels/tree_attention.rs,
//           kernels/host/native/tree_attention.cpp
// SOURCE    FlashAttention-3 (warpgroups, weights as A in registers); the path-wise tail is ours
//
// Roofline: a tile of 64 keys at head_dim 128 is 512 cycles of an SM's tensor cores (m64n64k16 takes 32), however few
// of the 64 rows exist, and DRAM takes about 1700 to bring it to an SM: decoding stays bound by memory. A chunk of a
// prompt is bound by what second-level cache and shared memory bring: 64 rows share each tile that is copied, as in
// the mma family. Nothing here has run on a GPU yet.
//
// Schedule: in step t all threads wait for their copies of tile t and meet; the copy of the tile that takes the place of
// t - 1 is started; then scores, softmax, P*V, each waited for. kStages - 1 tiles are in flight or in use, of two CTAs on
// an SM: one multiplies while the other turns scores into weights. Registers (247 of 255 at head_dim 128) leave no
// room for the scores of a second tile, with which a CTA would overlap both by itself; for that the span's acc
// would have to move to shared memory, which then holds one CTA. Queries in registers (32 more) spilled.
#include "tree_attention_wgmma.cuh"

#if HAS_WGMMA

#define TREE_ATTENTION(D)                          \
  TREE_ATTENTION_WGMMA(bf16_hd##D, bf16, D, false) \
  TREE_ATTENTION_WGMMA(f16_hd##D, f16, D, false)

TREE_ATTENTION(32)
TREE_ATTENTION(64)
TREE_ATTENTION(96)
TREE_ATTENTION(128)

#endif  // HAS_WGMMA
