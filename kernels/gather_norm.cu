// WHAT      Rows by index, normed, of up to two matrices at once: what an EAGLE drafter's layer reads of a token, its
//           embedding beside a feature, in one launch that had been four.
// MATH      x = src[p][index[p][r], :]; zeros for an index outside src
//           out[p][r, i] = round(x[i] * rsqrt(mean_i(x[i]^2) + eps) * weight[p][i]), or x[i] without a weight
//           copy[p][r, :] = x, or out[p][r, :] with copies_out[p]
// SHAPES    as in GatherNormParams, all of one dtype; nothing overlaps what is read
// LAUNCH    grid (rows, parts), block a multiple of 32 up to 512 chosen from H alone; one CTA a row and part
// REQUIRES  nothing of H; rows that are 16-byte aligned move 16 bytes at a time
// NUMERICS  the bits of gather_rows.cu and, behind it, rmsnorm.cu
// TWINS     src/kernels/gather_norm.rs, kernels/host/native/gather_norm.cpp, tests/kernels/gather_norm.rs; the oracles
//           are src/reference/gather_rows.rs and src/reference/rmsnorm.rs
//
// Two passes over the row; in the second it comes from L1.
#include "gather_norm.cuh"
#include "elements.cuh"
#include "reduce.cuh"

template <typename T>
__device__ __forceinline__ void gather_norm(const GatherNormParams& p) {
  SHARED(float[32], scratch);
  take_turn();
  const int part = blockIdx.y, H = p.H;
  const int64_t row = blockIdx.x;
  const int64_t src_row = p.index[part] == nullptr ? row : p.index[part][row];
  const bool exists = src_row >= 0 && src_row < p.num_src_rows[part];
  const T* src = static_cast<const T*>(p.src[part]);
  if (exists) src += src_row * p.src_stride[part];
  const T* const weight = static_cast<const T*>(p.weight[part]);
  T* const out = static_cast<T*>(p.out[part]) + row * p.out_stride[part];
  T* const copy =
      p.copy[part] == nullptr ? nullptr : static_cast<T*>(p.copy[part]) + row * p.copy_stride[part];
  const bool aligned = is_aligned16(src) && is_aligned16(weight) && is_aligned16(out) && is_aligned16(copy);
  const bool is_normed = weight != nullptr, copies_out = p.copies_out[part] != 0;
  const int stride = blockDim.x * kVector<T>;

  float squares = 0.0f;
  for (int i = threadIdx.x * kVector<T>; i < H; i += stride) {
    const Vector<T> values = load_vector(src + i, exists ? H - i : 0, aligned, from_float<T>(0.0f));
    if (copy != nullptr && !(is_normed && copies_out)) store_vector(copy + i, values, H - i, aligned);
    if (!is_normed) store_vector(out + i, values, H - i, aligned);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float value = to_float(values.element[j]);
      squares = fmaf(value, value, squares);
    }
  }
  if (!is_normed) return;
  const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(H) + p.eps);

  for (int i = threadIdx.x * kVector<T>; i < H; i += stride) {
    const Vector<T> values = load_vector(src + i, exists ? H - i : 0, aligned, from_float<T>(0.0f));
    const Vector<T> weights = load_vector(weight + i, H - i, aligned, from_float<T>(0.0f));
    const Vector<T> scaled = scaled_vector(values, scale, weights);
    store_vector(out + i, scaled, H - i, aligned);
    if (copy != nullptr && copies_out) store_vector(copy + i, scaled, H - i, aligned);
  }
}

#define GATHER_NORM(dtype, T)                                                \
  extern "C" __global__ void __launch_bounds__(512)                          \
      gather_norm_##dtype(const __grid_constant__ GatherNormParams params) { \
    gather_norm<T>(params);                                                  \
  }                                                                          \
  EXPORT_KERNEL(gather_norm_##dtype)

GATHER_NORM(bf16, bf16)
GATHER_NORM(f16, f16)
GATHER_NORM(f32, float)
