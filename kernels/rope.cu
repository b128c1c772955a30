// WHAT      Rotary position embedding of q and k, and the write of k and v into the paged cache; before it, for
//           models that have it, RMSNorm of every q and k head.
// MATH      norm, if given (Hugging Face Qwen3): x[i] = round(round(x[i] * rsqrt(mean(x^2) + eps)) * weight[i])
//           half-split rotation (Hugging Face Llama), h = head_dim / 2, (c, s) = cos_sin[position] at i:
//             a' = a c - b s,  b' = b c + a s   for the pairs (a, b) = (x[i], x[i + h]), i < h
//           the position is one of three, by i (M-RoPE, Qwen2-VL): the first below section_end_0, the second below
//           section_end_1, else the third; models with one position end both sections at h
// SHAPES    qkv       T   [rows, (num_q_heads + 2 num_kv_heads) * head_dim]  in   heads of q, of k, of v
//           q_out     T   [rows, num_q_heads * head_dim]                     out
//           k_cache   T   [pages, num_kv_heads, page_size, head_dim]         out  rows slots[..] only
//           v_cache   T   like k_cache                                       out  v is not rotated
//           cos_sin   f32 [max_position, head_dim]                           in   cos[h], sin[h] a row
//           positions i32 [rows]  in  clamped to [0, max_position); with M-RoPE [3, rows], axis_stride = rows apart
//           slots     i32 [rows]  in  page * page_size + offset; outside the cache: k and v are not written
//           q_norm    T   [head_dim]  in  weight of the norm of q heads; null: no norm, of k neither
//           k_norm    T   [head_dim]  in  weight of the norm of k heads; null if q_norm is
// LAUNCH    grid (rows), 128 threads; a thread takes a vector of a and the vector of b that belongs to it.
//           With a norm (num_q_heads + num_kv_heads) * 4 bytes of dynamic shared memory: a warp takes a head for
//           its scale. Without, one branch that all threads take alike: the launch is bound by its loads.
// REQUIRES  head_dim even; rows of qkv and q_out without gaps
// NUMERICS  f32; the rotation rounds once. A head's mean square is summed in an order fixed by head_dim.
// TWINS     src/kernels/rope.rs, src/reference/rope.rs, kernels/host/native/rope.cpp, tests/kernels/rope.rs
#include "prims.cuh"
#include "elements.cuh"
#include "reduce.cuh"

// 1 / rms of one head, the same bits in every lane: lane l adds vectors l, l + 32, ...; then the lanes are added.
template <typename T>
__device__ __forceinline__ float head_scale(const T* head, int head_dim, float eps) {
  const bool aligned = is_aligned16(head);
  float squares = 0.0f;
  for (int i = threadIdx.x % 32 * kVector<T>; i < head_dim; i += 32 * kVector<T>) {
    const Vector<T> values = load_vector(head + i, head_dim - i, aligned, from_float<T>(0.0f));
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float value = to_float(values.element[j]);
      squares = fmaf(value, value, squares);
    }
  }
  return rsqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
}

// The first `valid` elements (at most a vector), scaled, rounded, weighed and rounded again.
template <typename T>
__device__ __forceinline__ void normalise(Vector<T>& values, const T* weight, int valid, float scale) {
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    if (j >= valid) break;
    const float scaled = to_float(from_float<T>(to_float(values.element[j]) * scale));
    values.element[j] = from_float<T>(scaled * to_float(weight[j]));
  }
}

template <typename T>
__device__ __forceinline__ void rope_kv_write(const T* qkv, T* q_out, T* k_cache, T* v_cache,
                                              const float* cos_sin, const int* positions, const int* slots,
                                              const T* q_norm, const T* k_norm, int num_q_heads,
                                              int num_kv_heads, int head_dim, int page_size, int num_slots,
                                              int max_position, int axis_stride, int section_end_0,
                                              int section_end_1, float eps) {
  DYN_SMEM(float, scales);  // of the q and k heads, if they are normalised
  take_turn();
  const int64_t row = blockIdx.x;
  const int num_heads = num_q_heads + 2 * num_kv_heads;
  const int half = head_dim / 2;
  const int vectors = (half + kVector<T> - 1) / kVector<T>;  // of half a head
  // Row of the table by axis; without M-RoPE the three are one.
  auto table_row = [&](int axis) {
    const int position = positions[static_cast<int64_t>(axis) * axis_stride + row];
    return cos_sin + static_cast<int64_t>(min(max(position, 0), max_position - 1)) * head_dim;
  };
  const float* const by_first = table_row(0);
  const float* const by_second = table_row(1);
  const float* const by_third = table_row(2);
  const int slot = slots[row];
  const int64_t page = slot / page_size;
  const int page_offset = slot % page_size;
  const T zero = from_float<T>(0.0f);

  if (q_norm != nullptr) {
    for (int head = threadIdx.x / 32; head < num_q_heads + num_kv_heads; head += blockDim.x / 32) {
      const float scale = head_scale(qkv + (row * num_heads + head) * head_dim, head_dim, eps);
      if (threadIdx.x % 32 == 0) scales[head] = scale;
    }
    __syncthreads();
  }

  for (int task = threadIdx.x; task < num_heads * vectors; task += blockDim.x) {
    const int head = task / vectors;
    const int i = task % vectors * kVector<T>;
    const bool is_q = head < num_q_heads;
    const bool is_v = head >= num_q_heads + num_kv_heads;
    if (!is_q && (slot < 0 || slot >= num_slots)) continue;

    const T* const source = qkv + (row * num_heads + head) * head_dim;
    T* target;
    if (is_q) {
      target = q_out + (row * num_q_heads + head) * head_dim;
    } else {
      const int kv_head = (head - num_q_heads) % num_kv_heads;
      // cache[page][kv_head][page_offset]
      target =
          (is_v ? v_cache : k_cache) + ((page * num_kv_heads + kv_head) * page_size + page_offset) * head_dim;
    }
    const bool aligned = is_aligned16(source) && is_aligned16(source + half) && is_aligned16(target) &&
                         is_aligned16(target + half);
    Vector<T> first = load_vector(source + i, half - i, aligned, zero);
    Vector<T> second = load_vector(source + half + i, half - i, aligned, zero);
    if (q_norm != nullptr && !is_v) {
      const T* const weight = is_q ? q_norm : k_norm;
      normalise(first, weight + i, half - i, scales[head]);
      normalise(second, weight + half + i, half - i, scales[head]);
    }
    if (!is_v) {
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        if (i + j >= half) break;
        const float a = to_float(first.element[j]);
        const float b = to_float(second.element[j]);
        const float* const angle = i + j < section_end_0   ? by_first
                                   : i + j < section_end_1 ? by_second
                                                           : by_third;
        const float c = angle[i + j];
        const float s = angle[half + i + j];
        first.element[j] = from_float<T>(a * c - b * s);
        second.element[j] = from_float<T>(b * c + a * s);
      }
    }
    store_vector(target + i, first, half - i, aligned);
    store_vector(target + half + i, second, half - i, aligned);
  }
}

#define ROPE_KV_WRITE(dtype, T)                                                                              \
  extern "C" __global__ void __launch_bounds__(128) rope_kv_write_##dtype(                                   \
      const T* __restrict__ qkv, T* __restrict__ q_out, T* __restrict__ k_cache, T* __restrict__ v_cache,    \
      const float* __restrict__ cos_sin, const int* __restrict__ positions, const int* __restrict__ slots,   \
      const T* __restrict__ q_norm, const T* __restrict__ k_norm, int num_q_heads, int num_kv_heads,         \
      int head_dim, int page_size, int num_slots, int max_position, int axis_stride, int section_end_0,      \
      int section_end_1, float eps) {                                                                        \
    rope_kv_write<T>(qkv, q_out, k_cache, v_cache, cos_sin, positions, slots, q_norm, k_norm, num_q_heads,   \
                     num_kv_heads, head_dim, page_size, num_slots, max_position, axis_stride, section_end_0, \
                     section_end_1, eps);                                                                    \
  }                                                                                                          \
  EXPORT_KERNEL(rope_kv_write_##dtype)

ROPE_KV_WRITE(bf16, bf16)
ROPE_KV_WRITE(f16, f16)
ROPE_KV_WRITE(f32, float)
