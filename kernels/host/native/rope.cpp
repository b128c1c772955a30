// Native twins of kernels/rope.cu.
#include <vector>

#include "rows.hpp"

namespace {

template <class T>
ROW_BODY void rotate(const T* __restrict source, T* __restrict target, const float* __restrict cosines,
                     const float* __restrict sines, int half, int begin, int end) {
  for (int i = begin; i < end; ++i) {
    const float a = simt::widen(source[i]);
    const float b = simt::widen(source[i + half]);
    target[i] = narrow<T>(a * cosines[i] - b * sines[i]);
    target[i + half] = narrow<T>(b * cosines[i] + a * sines[i]);
  }
}

#define ROTATE_HEAD(T)                                                                              \
  ROW_KERNEL void rotate_head(const T* source, T* target, const float* cosines, const float* sines, \
                              int half, int begin, int end) {                                       \
    rotate<T>(source, target, cosines, sines, half, begin, end);                                    \
  }
ROTATE_HEAD(bf16)
ROTATE_HEAD(f16)
ROTATE_HEAD(float)

template <class T>
ROW_BODY void normalise(const T* __restrict source, T* __restrict target, const T* __restrict weight,
                        int head_dim, float eps) {
  const float scale = 1.0f / std::sqrt(sum_of_squares(source, head_dim) / static_cast<float>(head_dim) + eps);
  for (int i = 0; i < head_dim; ++i) {
    const float scaled = simt::widen(narrow<T>(simt::widen(source[i]) * scale));
    target[i] = narrow<T>(scaled * simt::widen(weight[i]));
  }
}

#define NORMALISE_HEAD(T)                                                                                \
  ROW_KERNEL void normalise_head(const T* source, T* target, const T* weight, int head_dim, float eps) { \
    normalise<T>(source, target, weight, head_dim, eps);                                                 \
  }
NORMALISE_HEAD(bf16)
NORMALISE_HEAD(f16)
NORMALISE_HEAD(float)

// The head at `source`, or its norm, which goes to `normed`.
template <class T>
const T* normed_head(const T* source, const T* weight, int head_dim, float eps, std::vector<T>& normed) {
  if (weight == nullptr) return source;
  normed.resize(head_dim);
  normalise_head(source, normed.data(), weight, head_dim, eps);
  return normed.data();
}

template <class T>
void rope_kv_write(const simt::NativeLaunch& launch, const T* qkv, T* q_out, T* k_cache, T* v_cache,
                   const float* cos_sin, const int* positions, const int* slots, const T* q_norm,
                   const T* k_norm, int num_q_heads, int num_kv_heads, int head_dim, int page_size,
                   int num_slots, int max_position, int axis_stride, int section_end_0, int section_end_1,
                   float eps) {
  const int64_t row_elements = static_cast<int64_t>(num_q_heads + 2 * num_kv_heads) * head_dim;
  for_rows(launch.grid.x, row_elements, [&](int64_t row) {
    thread_local std::vector<T> normed;
    const int half = head_dim / 2, ends[3] = {section_end_0, section_end_1, half};
    auto turn = [&](const T* head, T* target) {
      for (int axis = 0, begin = 0; axis < 3 && begin < half; begin = ends[axis++]) {
        const int position = positions[static_cast<int64_t>(axis) * axis_stride + row];
        const float* const cosines =
            cos_sin + static_cast<int64_t>(std::clamp(position, 0, max_position - 1)) * head_dim;
        rotate_head(head, target, cosines, cosines + half, half, begin, ends[axis]);
      }
    };
    const T* source = qkv + row * row_elements;
    T* q = q_out + row * num_q_heads * head_dim;
    for (int head = 0; head < num_q_heads; ++head, source += head_dim, q += head_dim) {
      turn(normed_head(source, q_norm, head_dim, eps, normed), q);
    }
    const int slot = slots[row];
    if (slot < 0 || slot >= num_slots) return;
    const int64_t page = slot / page_size;
    const int page_offset = slot % page_size;
    for (int head = 0; head < num_kv_heads; ++head, source += head_dim) {
      const int64_t at = ((page * num_kv_heads + head) * page_size + page_offset) * head_dim;
      turn(normed_head(source, k_norm, head_dim, eps, normed), k_cache + at);
      std::copy_n(source + num_kv_heads * head_dim, head_dim, v_cache + at);
    }
  });
}

NATIVE_TWIN(rope_kv_write_bf16, rope_kv_write<bf16>)
NATIVE_TWIN(rope_kv_write_f16, rope_kv_write<f16>)
NATIVE_TWIN(rope_kv_write_f32, rope_kv_write<float>)

}  // namespace
