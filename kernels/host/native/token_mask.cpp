// Native twin of kernels/token_mask.cu.
#include "native.hpp"

#include <limits>

namespace {

void mask(const simt::NativeLaunch& launch, float* logits, const uint32_t* masks, const int* mask_row,
          const int* d2t, int vocab_size, int num_words) {
  simt::parallel_for(launch.grid.y, [&](uint32_t index) {
    const uint32_t* allowed = masks + static_cast<int64_t>(index) * num_words;
    float* row = logits + static_cast<int64_t>(mask_row[index]) * vocab_size;
    for (int id = 0; id < vocab_size; ++id) {
      const int token = d2t == nullptr ? id : id + d2t[id];
      if (!(allowed[token / 32] >> (token % 32) & 1)) row[id] = -std::numeric_limits<float>::infinity();
    }
  });
}

}  // namespace

NATIVE_TWIN(token_mask_f32, mask)
