// WHAT      Picks rows of a matrix by index.
// MATH      out[r,:] = src[index[r],:]; zeros for an index outside src
// SHAPES    src   T   [S, H]     in   row stride src_stride
//           index i32 [rows]     in
//           out   T   [rows, H]  out  row stride out_stride; must not overlap src
// LAUNCH    grid (rows), 128 threads; gather_rows_b16 for 2-byte elements, gather_rows_b32 for 4-byte ones
// NUMERICS  a copy: bits are kept, NaN payloads too
// TWINS     src/kernels/gather_rows.rs, src/reference/gather_rows.rs, kernels/host/native/gather_rows.cpp,
//           tests/kernels/gather_rows.rs
#include "prims.cuh"
#include "row_copy.cuh"

#define GATHER_ROWS(width, Word)                                                                  \
  extern "C" __global__ void __launch_bounds__(128)                                               \
      gather_rows_##width(const Word* __restrict__ src, const int* __restrict__ index,            \
                          Word* __restrict__ out, int S, int H, int src_stride, int out_stride) { \
    take_turn();                                                                                  \
    copy_row<Word>(src, index, out, S, H, src_stride, out_stride);                                \
  }                                                                                               \
  EXPORT_KERNEL(gather_rows_##width)

GATHER_ROWS(b16, uint16_t)
GATHER_ROWS(b32, uint32_t)
