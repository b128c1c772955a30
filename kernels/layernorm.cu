// WHAT      Layer normalisation with the residual add before it.
// MATH      residual[t] = round(residual[t] + delta[t])
//           out[t,i] = round((residual[t,i] - mean) * rsqrt(var + eps) * weight[i] + bias[i]),
//           mean and var (over H, not H - 1) of the row after the add
// SHAPES    residual T [rows, H]  inout  dense; written only if delta is given
//           delta    T [rows, H]  in     dense; may be null
//           weight   T [H]        in
//           bias     T [H]        in
//           out      T [rows, H]  out    dense; may be residual itself if delta is null
// LAUNCH    grid (rows), block a multiple of 32 up to 512 chosen from H alone; one CTA a row
// REQUIRES  nothing of H; rows that are 16-byte aligned move 16 bytes at a time
// NUMERICS  f32 sums in an order fixed by H and the block; the variance is that of the differences from the mean
// TWINS     src/kernels/layernorm.rs, src/reference/layernorm.rs, kernels/host/native/layernorm.cpp,
//           tests/kernels/layernorm.rs
//
// Three passes over the row; a thread reads back what it alone wrote or read before, from L1.
#include "prims.cuh"
#include "elements.cuh"
#include "reduce.cuh"

template <typename T>
__device__ __forceinline__ void layernorm(T* residual, const T* delta, const T* weight, const T* bias, T* out,
                                          int H, float eps) {
  SHARED(float[32], sum_scratch);
  SHARED(float[32], square_scratch);
  const int64_t row = blockIdx.x;
  residual += row * H;
  out += row * H;
  if (delta != nullptr) delta += row * H;
  const bool aligned = is_aligned16(residual) && is_aligned16(delta) && is_aligned16(weight) &&
                       is_aligned16(bias) && is_aligned16(out);
  const int stride = blockDim.x * kVector<T>;
  const T zero = from_float<T>(0.0f);

  // residual + delta, and its mean
  float sum = 0.0f;
  for (int i = threadIdx.x * kVector<T>; i < H; i += stride) {
    Vector<T> values = load_vector(residual + i, H - i, aligned, zero);
    if (delta != nullptr) {
      const Vector<T> added = load_vector(delta + i, H - i, aligned, zero);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        values.element[j] = from_float<T>(to_float(values.element[j]) + to_float(added.element[j]));
      }
      store_vector(residual + i, values, H - i, aligned);
    }
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) sum += to_float(values.element[j]);
  }
  const float mean = block_sum(sum, sum_scratch) / static_cast<float>(H);

  // the variance
  float squares = 0.0f;
  for (int i = threadIdx.x * kVector<T>; i < H; i += stride) {
    const Vector<T> values = load_vector(residual + i, H - i, aligned, zero);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float difference = i + j < H ? to_float(values.element[j]) - mean : 0.0f;
      squares = fmaf(difference, difference, squares);
    }
  }
  const float scale = rsqrtf(block_sum(squares, square_scratch) / static_cast<float>(H) + eps);

  // scale, weight and bias
  for (int i = threadIdx.x * kVector<T>; i < H; i += stride) {
    Vector<T> values = load_vector(residual + i, H - i, aligned, zero);
    const Vector<T> weights = load_vector(weight + i, H - i, aligned, zero);
    const Vector<T> biases = load_vector(bias + i, H - i, aligned, zero);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float scaled = (to_float(values.element[j]) - mean) * scale;
      values.element[j] =
          from_float<T>(fmaf(scaled, to_float(weights.element[j]), to_float(biases.element[j])));
    }
    store_vector(out + i, values, H - i, aligned);
  }
}

#define LAYERNORM(dtype, T)                                                                     \
  extern "C" __global__ void __launch_bounds__(512)                                             \
      layernorm_##dtype(T* residual, const T* __restrict__ delta, const T* __restrict__ weight, \
                        const T* __restrict__ bias, T* out, int H, float eps) {                 \
    layernorm<T>(residual, delta, weight, bias, out, H, eps);                                   \
  }                                                                                             \
  EXPORT_KERNEL(layernorm_##dtype)

LAYERNORM(bf16, bf16)
LAYERNORM(f16, f16)
LAYERNORM(f32, float)
