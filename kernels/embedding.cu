// WHAT      Looks up one table row a token.
// MATH      out[t,:] = table[tokens[t],:]; zeros for a token outside the table
// SHAPES    tokens i32 [rows]     in
//           table  T   [V, H]     in   dense
//           out    T   [rows, H]  out  row stride out_stride
// LAUNCH    grid (rows), 128 threads; 16-byte vectors where both rows are aligned
// NUMERICS  a copy: bits are kept, NaN payloads too
// TWINS     src/kernels/embedding.rs, src/reference/embedding.rs, kernels/host/native/embedding.cpp,
//           tests/kernels/embedding.rs
#include "prims.cuh"
#include "row_copy.cuh"

#define EMBEDDING(dtype, Word)                                                          \
  extern "C" __global__ void __launch_bounds__(128)                                     \
      embedding_##dtype(const int* __restrict__ tokens, const Word* __restrict__ table, \
                        Word* __restrict__ out, int V, int H, int out_stride) {         \
    take_turn();                                                                        \
    copy_row<Word>(table, tokens, out, V, H, H, out_stride);                            \
  }                                                                                     \
  EXPORT_KERNEL(embedding_##dtype)

EMBEDDING(bf16, uint16_t)
EMBEDDING(f16, uint16_t)
EMBEDDING(f32, uint32_t)
