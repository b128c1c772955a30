// WHAT  A row's step to the next position, for the kernel and its native twin. Shapes: advance_rows.cu.
#pragma once

#include "prims.cuh"

struct AdvanceRowsParams {
  const int* drawn;
  const int* row_sequence;
  const int* page_table;
  int* tokens;
  int* positions;
  int* slots;
  int* draw_positions;
  int* prefix_len;
  int num_rows;  // n
  int axes;
  int width;
  int max_pages;
  int page_size;
  int padding;
};
static_assert(sizeof(AdvanceRowsParams) == 88, "layout shared with Rust");
POINTER_FIELDS(AdvanceRowsParams, &AdvanceRowsParams::drawn, &AdvanceRowsParams::row_sequence,
               &AdvanceRowsParams::page_table, &AdvanceRowsParams::tokens, &AdvanceRowsParams::positions,
               &AdvanceRowsParams::slots, &AdvanceRowsParams::draw_positions, &AdvanceRowsParams::prefix_len)

__device__ __forceinline__ void advance_row(const AdvanceRowsParams& p, int row) {
  const int sequence = p.row_sequence[row];
  const int position = p.prefix_len[sequence] + 1;
  const int page = p.page_table[static_cast<int64_t>(sequence) * p.max_pages + position / p.page_size];
  p.tokens[row] = max(p.drawn[row], 0);
  for (int axis = 0; axis < p.axes; ++axis) p.positions[axis * p.width + row] += 1;
  p.slots[row] = page * p.page_size + position % p.page_size;
  p.draw_positions[row] += 1;
  p.prefix_len[sequence] = position;
}
