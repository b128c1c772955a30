// WHAT      The activations of feed-forward layers that have no gate.
// MATH      out[i] = round(f(x[i])), all in f32:
//             erf:   f(x) = x / 2 (1 + erf(x / sqrt(2)))
//             tanh:  f(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
//             quick: f(x) = x / (1 + exp(-1.702 x))
// SHAPES    x    T [len]  in   dense
//           out  T [len]  out  dense; may be x itself
// LAUNCH    grid (ceil(len / (256 * vector))), 256 threads; one 16-byte vector a thread
// NUMERICS  one rounding; quick of -inf gives NaN, as -inf / inf does in the frameworks
// TWINS     src/kernels/gelu.rs, src/reference/gelu.rs, kernels/host/native/gelu.cpp, tests/kernels/gelu.rs
// SOURCE    Hendrycks and Gimpel, Gaussian Error Linear Units (arXiv 1606.08415)
#include "prims.cuh"
#include "elements.cuh"

struct GeluErf {
  static __device__ __forceinline__ float of(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
};
struct GeluTanh {
  static __device__ __forceinline__ float of(float x) {
    return 0.5f * x * (1.0f + tanhf(0.79788456f * fmaf(0.044715f * x * x, x, x)));
  }
};
struct GeluQuick {
  static __device__ __forceinline__ float of(float x) { return x / (1.0f + expf(-1.702f * x)); }
};

template <typename T, typename Function>
__device__ __forceinline__ void gelu(const T* x, T* out, int len) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVector<T>;
  if (i >= len) return;
  const int valid = min(len - static_cast<int>(i), kVector<T>);
  const bool aligned = is_aligned16(x) && is_aligned16(out);
  Vector<T> values = load_vector(x + i, valid, aligned, from_float<T>(0.0f));
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    values.element[j] = from_float<T>(Function::of(to_float(values.element[j])));
  }
  store_vector(out + i, values, valid, aligned);
}

#define GELU(function, Function, dtype, T)                                                                   \
  extern "C" __global__ void __launch_bounds__(256) gelu_##function##_##dtype(const T* x, T* out, int len) { \
    gelu<T, Function>(x, out, len);                                                                          \
  }                                                                                                          \
  EXPORT_KERNEL(gelu_##function##_##dtype)

#define GELUS(function, Function)      \
  GELU(function, Function, bf16, bf16) \
  GELU(function, Function, f16, f16)   \
  GELU(function, Function, f32, float)

GELUS(erf, GeluErf)
GELUS(tanh, GeluTanh)
GELUS(quick, GeluQuick)
