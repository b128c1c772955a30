// The copy of rows, shared by embedding, gather_rows and copy_rows.
#pragma once
#include "prims.cuh"
#include "elements.cuh"

// A block copies a row, or writes zeros where there is nothing to copy. Any block. Word has the width of an element;
// its meaning does not matter here.
template <typename Word>
__device__ __forceinline__ void copy_columns(const Word* source, Word* out, int num_columns, bool exists) {
  const bool aligned = is_aligned16(source) && is_aligned16(out);
  for (int i = threadIdx.x * kVector<Word>; i < num_columns; i += blockDim.x * kVector<Word>) {
    store_vector(out + i, load_vector(source + i, exists ? num_columns - i : 0, aligned, Word(0)),
                 num_columns - i, aligned);
  }
}

// out[r, :] = source[index[r], :], or zeros if the index lies outside the source: a bad index must not
// read memory. Grid (rows).
template <typename Word>
__device__ __forceinline__ void copy_row(const Word* source, const int* index, Word* out, int num_source_rows,
                                         int num_columns, int source_stride, int out_stride) {
  const int64_t row = blockIdx.x;
  const int64_t source_row = index[row];
  const bool inside = source_row >= 0 && source_row < num_source_rows;
  out += row * out_stride;
  if (inside) source += source_row * source_stride;
  copy_columns(source, out, num_columns, inside);
}
