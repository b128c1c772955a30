// WHAT      Makes a plain pass the one behind it: every row at the next position of its sequence, its token the
//           one that was drawn, so that the device can go on before the host has seen what was drawn.
// MATH      b = row_sequence[r];  p = prefix_len[b] + 1
//           tokens[r] = max(drawn[r], 0);  positions[a, r] += 1;  draw_positions[r] += 1;  prefix_len[b] = p
//           slots[r] = page_table[b, p / page_size] * page_size + p % page_size
// SHAPES    drawn           i32 [n]             in     -1: nothing could be drawn, the row is nobody's
//           row_sequence    i32 [n]             in
//           page_table      i32 [B, max_pages]  in
//           tokens          i32 [n]             out
//           positions       i32 [axes, width]   inout  rotary positions; the first n of every axis
//           slots           i32 [n]             out    K/V slots
//           draw_positions  i32 [n]             inout  position of the token that is drawn next
//           prefix_len      i32 [B]             inout  of the sequences that have a row
// LAUNCH    grid ceil(n / block), block any: a thread a row
// REQUIRES  a sequence has one row, its root, at most; page_table holds the page of its next position
// TWINS     src/kernels/advance_rows.rs, src/reference/advance_rows.rs, kernels/host/native/advance_rows.cpp,
//           tests/kernels/advance_rows.rs
#include "advance_rows.cuh"

extern "C" __global__ void __launch_bounds__(256)
    advance_rows(const __grid_constant__ AdvanceRowsParams params) {
  take_turn();
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row < params.num_rows) advance_row(params, row);
}
EXPORT_KERNEL(advance_rows)
