// WHAT      tree_attention_<bf16|f16>_hd<D>_<narrow|wide>_windowed: the tensor-core kernels of tree_attention.cu for
//           rows that see the last p.window keys of their logical order only. A file of its own, so that models without
//           a window load none of it and both compile side by side.
// MATH, SHAPES, LAUNCH, REQUIRES, ORDER, NUMERICS, TWINS: as tree_attention.cu
#include "tree_attention_mma.cuh"

#define TREE_ATTENTION_WINDOWED(D)                                   \
  TREE_ATTENTION_MMA(bf16_hd##D##_narrow_windowed, bf16, D, 4, true) \
  TREE_ATTENTION_MMA(bf16_hd##D##_wide_windowed, bf16, D, 1, true)   \
  TREE_ATTENTION_MMA(f16_hd##D##_narrow_windowed, f16, D, 4, true)   \
  TREE_ATTENTION_MMA(f16_hd##D##_wide_windowed, f16, D, 1, true)

TREE_ATTENTION_WINDOWED(32)
TREE_ATTENTION_WINDOWED(64)
TREE_ATTENTION_WINDOWED(96)
TREE_ATTENTION_WINDOWED(128)
