// WHAT      The residual block of a Medusa head, behind its linear layer; several heads side by side.
// MATH      out[t,g,i] = round(x[t,i] + silu(y[t,g,i])),  silu(y) = y / (1 + exp(-y)),  all in f32
// SHAPES    x    T [rows, H]      in   row stride x_stride; all G groups add to the same
//           y    T [rows, G H]    in   group g in columns [g H, (g + 1) H); row stride y_stride
//           out  T [rows, G H]    out  laid out as y; row stride out_stride; may be y, or x of one group
// LAUNCH    grid (rows, ceil(H / (128 * vector)), G), 128 threads; one 16-byte vector a thread
// REQUIRES  nothing of H; vectors need 16-byte aligned x, y and out at the beginning of a group
// NUMERICS  one rounding; a y of -inf gives NaN, as -inf / inf does in the frameworks
// TWINS     src/kernels/silu_residual.rs, src/reference/silu_residual.rs,
//           kernels/host/native/silu_residual.cpp, tests/kernels/silu_residual.rs
// SOURCE    Cai et al.: Medusa (2024)
#include "prims.cuh"
#include "elements.cuh"

template <typename T>
__device__ __forceinline__ void silu_residual(const T* x, const T* y, T* out, int H, int x_stride,
                                              int y_stride, int out_stride) {
  const int64_t row = blockIdx.x;
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * kVector<T>;
  if (i >= H) return;
  const int64_t group = static_cast<int64_t>(blockIdx.z) * H;
  x += row * x_stride;
  y += row * y_stride + group;
  out += row * out_stride + group;
  const bool aligned = is_aligned16(x) && is_aligned16(y) && is_aligned16(out);
  const Vector<T> xs = load_vector(x + i, H - i, aligned, from_float<T>(0.0f));
  const Vector<T> ys = load_vector(y + i, H - i, aligned, from_float<T>(0.0f));
  Vector<T> sums;
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    const float value = to_float(ys.element[j]);
    sums.element[j] = from_float<T>(to_float(xs.element[j]) + value / (1.0f + expf(-value)));
  }
  store_vector(out + i, sums, H - i, aligned);
}

#define SILU_RESIDUAL(dtype, T)                                                            \
  extern "C" __global__ void __launch_bounds__(128) silu_residual_##dtype(                 \
      const T* x, const T* y, T* out, int H, int x_stride, int y_stride, int out_stride) { \
    take_turn();                                                                           \
    silu_residual<T>(x, y, out, H, x_stride, y_stride, out_stride);                        \
  }                                                                                        \
  EXPORT_KERNEL(silu_residual_##dtype)

SILU_RESIDUAL(bf16, bf16)
SILU_RESIDUAL(f16, f16)
SILU_RESIDUAL(f32, float)
