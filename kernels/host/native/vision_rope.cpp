// Native twins of kernels/vision_rope.cu.
#include "rows.hpp"

namespace {

template <class T>
void vision_rope(const simt::NativeLaunch& launch, T* qkv, const float* cos_sin, const int* positions,
                 int num_heads, int head_dim, int max_position) {
  const int half = head_dim / 2, quarter = half / 2;
  const int64_t num_rows = launch.grid.x, row_elements = 3 * static_cast<int64_t>(num_heads) * head_dim;
  for_rows(launch.grid.x, row_elements, [&](int64_t row) {
    T* head = qkv + row * row_elements;
    for (int i = 0; i < 2 * num_heads; ++i, head += head_dim) {
      for (int axis = 0; axis < 2; ++axis) {
        const int position = std::clamp(positions[axis * num_rows + row], 0, max_position - 1);
        const float* const cosines = cos_sin + static_cast<int64_t>(position) * half;
        T* const first = head + axis * quarter;
        for (int j = 0; j < quarter; ++j) {
          const float a = simt::widen(first[j]), b = simt::widen(first[j + half]);
          first[j] = narrow<T>(a * cosines[j] - b * cosines[j + quarter]);
          first[j + half] = narrow<T>(b * cosines[j] + a * cosines[j + quarter]);
        }
      }
    }
  });
}

NATIVE_TWIN(vision_rope_bf16, vision_rope<bf16>)
NATIVE_TWIN(vision_rope_f16, vision_rope<f16>)
NATIVE_TWIN(vision_rope_f32, vision_rope<float>)

}  // namespace
