// WHAT      Copies rows of one matrix to rows of another: features of what a round has committed, of all
//           sequences, to their places in the drafter's backlog.
// MATH      out[moves[i, 1], :] = src[moves[i, 0], :]; nothing where either lies outside
// SHAPES    src   T   [S, H]   in     row stride src_stride
//           moves i32 [n, 2]   in     (from, to)
//           out   T   [R, H]   inout  row stride out_stride; must not overlap src
// LAUNCH    grid (n), 128 threads; copy_rows_b16 for 2-byte elements, copy_rows_b32 for 4-byte ones
// REQUIRES  no row of out is the target of two moves
// NUMERICS  a copy: bits are kept, NaN payloads too
// TWINS     src/kernels/copy_rows.rs, src/reference/copy_rows.rs, kernels/host/native/copy_rows.cpp,
//           tests/kernels/copy_rows.rs
#include "prims.cuh"
#include "row_copy.cuh"

template <typename Word>
__device__ __forceinline__ void move_row(const Word* src, const int* moves, Word* out, int S, int R, int H,
                                         int src_stride, int out_stride) {
  const int64_t from = moves[2 * blockIdx.x], to = moves[2 * blockIdx.x + 1];
  if (from < 0 || from >= S || to < 0 || to >= R) return;
  copy_columns(src + from * src_stride, out + to * out_stride, H, true);
}

#define COPY_ROWS(width, Word)                                                                               \
  extern "C" __global__ void __launch_bounds__(128)                                                          \
      copy_rows_##width(const Word* __restrict__ src, const int* __restrict__ moves, Word* __restrict__ out, \
                        int S, int R, int H, int src_stride, int out_stride) {                               \
    take_turn();                                                                                             \
    move_row<Word>(src, moves, out, S, R, H, src_stride, out_stride);                                        \
  }                                                                                                          \
  EXPORT_KERNEL(copy_rows_##width)

COPY_ROWS(b16, uint16_t)
COPY_ROWS(b32, uint32_t)
