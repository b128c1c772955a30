// Native twins of kernels/vision_attention.cu: a task is one head of one segment, its keys and values widened once.
#include <vector>

#include "rows.hpp"

namespace {

// scores[k] = q . keys[k], keys transposed to [head_dim][len] so that neighbours are summed together.
ROW_KERNEL void score_row(const float* __restrict q, const float* __restrict keys, float* __restrict scores,
                          int len, int head_dim) {
  std::fill_n(scores, len, 0.0f);
  for (int i = 0; i < head_dim; ++i) {
    const float* const key = keys + static_cast<int64_t>(i) * len;
    for (int k = 0; k < len; ++k) scores[k] += q[i] * key[k];
  }
}

// scores[k] = 2^((scores[k] - greatest) scale)
ROW_KERNEL void weigh_row(float* __restrict scores, int len, float scale) {
  constexpr float kLn2 = 0.69314718f;
  float greatest = scores[0];
  for (int k = 1; k < len; ++k) greatest = std::max(greatest, scores[k]);
  for (int k = 0; k < len; ++k) scores[k] = exp_vectorisable((scores[k] - greatest) * (scale * kLn2));
}

ROW_KERNEL void sum_row(const float* __restrict weights, const float* __restrict values,
                        float* __restrict out, int len, int head_dim) {
  std::fill_n(out, head_dim, 0.0f);
  for (int k = 0; k < len; ++k) {
    const float* const value = values + static_cast<int64_t>(k) * head_dim;
    for (int i = 0; i < head_dim; ++i) out[i] += weights[k] * value[i];
  }
}

template <class T>
void vision_attention(const simt::NativeLaunch& launch, const T* qkv, const int* seq_start, T* out,
                      int num_heads, int head_dim, float scale_log2) {
  const int64_t row_stride = 3 * static_cast<int64_t>(num_heads) * head_dim;
  simt::parallel_for(launch.grid.z * num_heads, [&](uint32_t task) {
    std::vector<float> keys, values, scores, q, sums;
    const int head = static_cast<int>(task) % num_heads;
    const int64_t first_row = seq_start[task / num_heads];
    const int len = static_cast<int>(seq_start[task / num_heads + 1] - first_row);
    if (len <= 0) return;
    const T* const heads = qkv + first_row * row_stride + head * head_dim;
    keys.resize(static_cast<size_t>(len) * head_dim);
    values.resize(keys.size());
    scores.resize(len);
    q.resize(head_dim);
    sums.resize(head_dim);
    for (int k = 0; k < len; ++k) {
      const T* const key = heads + k * row_stride + num_heads * head_dim;
      const T* const value = key + num_heads * head_dim;
      for (int i = 0; i < head_dim; ++i) {
        keys[static_cast<size_t>(i) * len + k] = simt::widen(key[i]);
        values[static_cast<size_t>(k) * head_dim + i] = simt::widen(value[i]);
      }
    }
    for (int row = 0; row < len; ++row) {
      for (int i = 0; i < head_dim; ++i) q[i] = simt::widen(heads[row * row_stride + i]);
      score_row(q.data(), keys.data(), scores.data(), len, head_dim);
      weigh_row(scores.data(), len, scale_log2);
      float sum = 0.0f;
      for (float& weight : scores) {
        weight = simt::widen(narrow<T>(weight));
        sum += weight;
      }
      sum_row(scores.data(), values.data(), sums.data(), len, head_dim);
      T* const target = out + ((first_row + row) * num_heads + head) * head_dim;
      for (int i = 0; i < head_dim; ++i) target[i] = narrow<T>(sums[i] / sum);
    }
  });
}

#define TWIN(D)                                                    \
  NATIVE_TWIN(vision_attention_bf16_hd##D, vision_attention<bf16>) \
  NATIVE_TWIN(vision_attention_f16_hd##D, vision_attention<f16>)

TWIN(32)
TWIN(64)
TWIN(80)
TWIN(128)
NATIVE_TWIN(vision_attention_f32, vision_attention<float>)

}  // namespace
