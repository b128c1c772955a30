// WHAT      Rotary position embedding of patches, in place: half of a head's pairs turn by the patch's row in the
//           picture, half by its column.
// MATH      half-split rotation, h = head_dim / 2, of the pairs (a, b) = (x[i], x[i + h]), i < h:
//             a' = a c - b s,  b' = b c + a s,  (c, s) = cos_sin[positions[axis]] at i mod (h / 2), axis = i / (h / 2)
// SHAPES    qkv       T   [rows, 3 * num_heads * head_dim]  inout  heads of q and of k; those of v stay
//           cos_sin   f32 [max_position, head_dim / 2]      in     cos[h / 2], sin[h / 2] a row
//           positions i32 [2, rows]                         in     row, then column; clamped to [0, max_position)
// LAUNCH    grid (rows), 128 threads, a pair each in turn: pairs of a head are read by neighbours
// REQUIRES  head_dim a multiple of 4
// NUMERICS  f32; rounds once
// TWINS     src/kernels/vision_rope.rs, src/reference/vision_rope.rs, tests/kernels/vision_rope.rs,
//           kernels/host/native/vision_rope.cpp
// SOURCE    Qwen2-VL (arXiv 2409.12191), section 2.1: 2D-RoPE
#include "prims.cuh"

template <typename T>
__device__ __forceinline__ void vision_rope(T* qkv, const float* cos_sin, const int* positions, int num_heads,
                                            int head_dim, int max_position) {
  const int64_t row = blockIdx.x;
  const int half = head_dim / 2, quarter = half / 2;
  int offsets[2];  // of the table's row, by axis
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    const int position = positions[axis * static_cast<int64_t>(gridDim.x) + row];
    offsets[axis] = min(max(position, 0), max_position - 1) * half;
  }
  T* const heads = qkv + row * 3 * num_heads * head_dim;  // of q, then of k
  for (int task = threadIdx.x; task < 2 * num_heads * half; task += blockDim.x) {
    const int i = task % half;
    T* const first = heads + task / half * head_dim + i;
    const float* const angle = cos_sin + (i < quarter ? offsets[0] : offsets[1]) + i % quarter;
    const float c = angle[0], s = angle[quarter];
    const float a = to_float(first[0]), b = to_float(first[half]);
    first[0] = from_float<T>(a * c - b * s);
    first[half] = from_float<T>(b * c + a * s);
  }
}

#define VISION_ROPE(dtype, T)                                                                    \
  extern "C" __global__ void __launch_bounds__(128) vision_rope_##dtype(                         \
      T* __restrict__ qkv, const float* __restrict__ cos_sin, const int* __restrict__ positions, \
      int num_heads, int head_dim, int max_position) {                                           \
    vision_rope<T>(qkv, cos_sin, positions, num_heads, head_dim, max_position);                  \
  }                                                                                              \
  EXPORT_KERNEL(vision_rope_##dtype)

VISION_ROPE(bf16, bf16)
VISION_ROPE(f16, f16)
VISION_ROPE(f32, float)
