// Native twin of kernels/advance_rows.cu.
#include "../native.hpp"
#include "advance_rows.cuh"

namespace {

void advance(const simt::NativeLaunch&, AdvanceRowsParams params) {
  for (int row = 0; row < params.num_rows; ++row) advance_row(params, row);
}

NATIVE_TWIN(advance_rows, advance)

}  // namespace
