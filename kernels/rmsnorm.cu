// WHAT      RMS normalisation with the residual add before it and an optional copy of the residual (a tap).
// MATH      residual[t] = round(residual[t] + delta[t]);  tap[t] = residual[t]
//           out[t,i] = round(residual[t,i] * rsqrt(mean_i(residual[t,i]^2) + eps) * weight[i])
// SHAPES    residual T [rows, H]  inout  row stride residual_stride; written only if delta is given
//           delta    T [rows, H]  in     row stride delta_stride; may be null
//           weight   T [H]        in
//           out      T [rows, H]  out    row stride out_stride
//           tap      T [rows, H]  out    row stride tap_stride; may be null
// LAUNCH    grid (rows), block a multiple of 32 up to 512 chosen from H alone; one CTA a row
// REQUIRES  nothing of H; rows that are 16-byte aligned move 16 bytes at a time
// NUMERICS  f32 sums in an order fixed by H and the block; the square is that of the rounded residual
// TWINS     src/kernels/rmsnorm.rs, src/reference/rmsnorm.rs, kernels/host/native/rmsnorm.cpp,
//           tests/kernels/rmsnorm.rs
//
// Two passes over the row; a thread reads back in the second what it alone wrote in the first, from L1.
#include "prims.cuh"
#include "elements.cuh"
#include "reduce.cuh"

template <typename T>
__device__ __forceinline__ void rmsnorm(T* residual, const T* delta, const T* weight, T* out, T* tap, int H,
                                        int residual_stride, int delta_stride, int out_stride, int tap_stride,
                                        float eps) {
  SHARED(float[32], scratch);
  take_turn();
  const int64_t row = blockIdx.x;
  residual += row * residual_stride;
  out += row * out_stride;
  if (delta != nullptr) delta += row * delta_stride;
  if (tap != nullptr) tap += row * tap_stride;
  const bool aligned = is_aligned16(residual) && is_aligned16(delta) && is_aligned16(weight) &&
                       is_aligned16(out) && is_aligned16(tap);
  const int stride = blockDim.x * kVector<T>;

  // residual + delta, and its mean square
  float squares = 0.0f;
  for (int i = threadIdx.x * kVector<T>; i < H; i += stride) {
    Vector<T> sum = load_vector(residual + i, H - i, aligned, from_float<T>(0.0f));
    if (delta != nullptr) {
      const Vector<T> added = load_vector(delta + i, H - i, aligned, from_float<T>(0.0f));
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        sum.element[j] = from_float<T>(to_float(sum.element[j]) + to_float(added.element[j]));
      }
      store_vector(residual + i, sum, H - i, aligned);
    }
    if (tap != nullptr) store_vector(tap + i, sum, H - i, aligned);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float value = to_float(sum.element[j]);
      squares = fmaf(value, value, squares);
    }
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(H) + eps);

  // scale and weight
  for (int i = threadIdx.x * kVector<T>; i < H; i += stride) {
    const Vector<T> values = load_vector(residual + i, H - i, aligned, from_float<T>(0.0f));
    const Vector<T> weights = load_vector(weight + i, H - i, aligned, from_float<T>(0.0f));
    const Vector<T> scaled = scaled_vector(values, scale, weights);
    store_vector(out + i, scaled, H - i, aligned);
  }
}

#define RMSNORM(dtype, T)                                                                                   \
  extern "C" __global__ void __launch_bounds__(512)                                                         \
      rmsnorm_##dtype(T* residual, const T* __restrict__ delta, const T* __restrict__ weight,               \
                      T* __restrict__ out, T* __restrict__ tap, int H, int residual_stride,                 \
                      int delta_stride, int out_stride, int tap_stride, float eps) {                        \
    rmsnorm<T>(residual, delta, weight, out, tap, H, residual_stride, delta_stride, out_stride, tap_stride, \
               eps);                                                                                        \
  }                                                                                                         \
  EXPORT_KERNEL(rmsnorm_##dtype)

RMSNORM(bf16, bf16)
RMSNORM(f16, f16)
RMSNORM(f32, float)
