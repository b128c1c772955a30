// The copy of indexed rows, shared by the twins of embedding and gather_rows.
#pragma once
#include "rows.hpp"

// out[r, :] = source[index[r], :], or zeros if the index lies outside the source.
template <class Word>
void copy_rows(uint32_t num_rows, const Word* source, const int* index, Word* out, int num_source_rows,
               int num_columns, int64_t source_stride, int64_t out_stride) {
  for_rows(num_rows, num_columns, [&](int64_t row) {
    if (index[row] >= 0 && index[row] < num_source_rows) {
      std::copy_n(source + index[row] * source_stride, num_columns, out + row * out_stride);
    } else {
      std::fill_n(out + row * out_stride, num_columns, Word(0));
    }
  });
}
