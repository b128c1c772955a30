// Native twins of kernels/copy_rows.cu.
#include "rows.hpp"

namespace {

template <class Word>
void copy_rows(const simt::NativeLaunch& launch, const Word* src, const int* moves, Word* out, int S, int R,
               int H, int src_stride, int out_stride) {
  for_rows(launch.grid.x, H, [&](int64_t row) {
    const int64_t from = moves[2 * row], to = moves[2 * row + 1];
    if (from < 0 || from >= S || to < 0 || to >= R) return;
    std::copy_n(src + from * src_stride, H, out + to * out_stride);
  });
}

NATIVE_TWIN(copy_rows_b16, copy_rows<uint16_t>)
NATIVE_TWIN(copy_rows_b32, copy_rows<uint32_t>)

}  // namespace
