// Native twins of kernels/embedding.cu.
#include "row_copy.hpp"

namespace {

template <class Word>
void embedding(const simt::NativeLaunch& launch, const int* tokens, const Word* table, Word* out, int V,
               int H, int out_stride) {
  copy_rows(launch.grid.x, table, tokens, out, V, H, H, out_stride);
}

NATIVE_TWIN(embedding_bf16, embedding<uint16_t>)
NATIVE_TWIN(embedding_f16, embedding<uint16_t>)
NATIVE_TWIN(embedding_f32, embedding<uint32_t>)

}  // namespace
