// WHAT      tree_attention_wgmma_<bf16|f16>_hd<D>_windowed: the kernels of tree_attention_wgmma.cu for rows that see the
//           last p.window keys of their logical order only; a file of its own, as tree_attention_windowed.cu is.
// MATH, SHAPES, LAUNCH, REQUIRES, ORDER, NUMERICS, TWINS: as tree_attention_wgmma.cu
#include "tree_attention_wgmma.cuh"

#if HAS_WGMMA

#define TREE_ATTENTION_WINDOWED(D)                           \
  TREE_ATTENTION_WGMMA(bf16_hd##D##_windowed, bf16, D, true) \
  TREE_ATTENTION_WGMMA(f16_hd##D##_windowed, f16, D, true)

TREE_ATTENTION_WINDOWED(32)
TREE_ATTENTION_WINDOWED(64)
TREE_ATTENTION_WINDOWED(96)
TREE_ATTENTION_WINDOWED(128)

#endif  // HAS_WGMMA
