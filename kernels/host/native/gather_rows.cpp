// Native twins of kernels/gather_rows.cu.
#include "row_copy.hpp"

namespace {

template <class Word>
void gather_rows(const simt::NativeLaunch& launch, const Word* src, const int* index, Word* out, int S, int H,
                 int src_stride, int out_stride) {
  copy_rows(launch.grid.x, src, index, out, S, H, src_stride, out_stride);
}

NATIVE_TWIN(gather_rows_b16, gather_rows<uint16_t>)
NATIVE_TWIN(gather_rows_b32, gather_rows<uint32_t>)

}  // namespace
