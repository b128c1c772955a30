// WHAT      The gated activation of a SwiGLU feed-forward layer.
// MATH      out[t,i] = round(silu(gate[t,i]) * up[t,i]),  silu(g) = g / (1 + exp(-g)),  all in f32
// SHAPES    gate_up T [rows, 2 I]  in   gate in columns [0, I), up in [I, 2 I); row stride gate_up_stride
//           out     T [rows, I]    out  row stride out_stride
// LAUNCH    grid (rows, ceil(I / (128 * vector))), 128 threads; one 16-byte vector a thread
// REQUIRES  nothing of I; vectors need 16-byte aligned gate, up and out rows
// NUMERICS  one rounding; a gate of -inf gives NaN, as -inf / inf does in the frameworks
// TWINS     src/kernels/swiglu.rs, src/reference/swiglu.rs, kernels/host/native/swiglu.cpp,
//           tests/kernels/swiglu.rs
#include "prims.cuh"
#include "elements.cuh"

template <typename T>
__device__ __forceinline__ void swiglu(const T* gate_up, T* out, int I, int gate_up_stride, int out_stride) {
  const int64_t row = blockIdx.x;
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * kVector<T>;
  if (i >= I) return;
  const T* const gate = gate_up + row * gate_up_stride;
  const T* const up = gate + I;
  out += row * out_stride;
  const bool aligned = is_aligned16(gate) && is_aligned16(up) && is_aligned16(out);
  const Vector<T> gates = load_vector(gate + i, I - i, aligned, from_float<T>(0.0f));
  const Vector<T> ups = load_vector(up + i, I - i, aligned, from_float<T>(0.0f));
  Vector<T> gated;
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    const float g = to_float(gates.element[j]);
    gated.element[j] = from_float<T>(g / (1.0f + expf(-g)) * to_float(ups.element[j]));
  }
  store_vector(out + i, gated, I - i, aligned);
}

#define SWIGLU(dtype, T)                                                                               \
  extern "C" __global__ void __launch_bounds__(128) swiglu_##dtype(                                    \
      const T* __restrict__ gate_up, T* __restrict__ out, int I, int gate_up_stride, int out_stride) { \
    swiglu<T>(gate_up, out, I, gate_up_stride, out_stride);                                            \
  }                                                                                                    \
  EXPORT_KERNEL(swiglu_##dtype)

SWIGLU(bf16, bf16)
SWIGLU(f16, f16)
SWIGLU(f32, float)
