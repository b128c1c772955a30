// Sums over a warp or a block in a fixed order: the same inputs give the same bits on every run and schedule.
#pragma once
#include "prims.cuh"

// The sum of `value` over the 32 lanes, the same bits in every lane (a butterfly adds commuting pairs).
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

// The sum of `value` over the block, the same bits in every thread.
// `scratch` holds 32 floats of shared memory; a second use of it needs a __syncthreads() between.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int lane_idx = threadIdx.x % 32;
  const int warp_idx = threadIdx.x / 32;
  value = warp_sum(value);
  if (lane_idx == 0) scratch[warp_idx] = value;
  __syncthreads();
  return warp_sum(lane_idx < static_cast<int>(blockDim.x) / 32 ? scratch[lane_idx] : 0.0f);
}

// 32 sums over the warp at once: lane i gets the sum of values[i] over the lanes, for 31 shuffles instead of
// 160. Each step halves the number of sums that a lane still carries and the number of lanes that carry them.
__device__ __forceinline__ float warp_sum_scatter(float (&values)[32]) {
  const int lane_idx = threadIdx.x % 32;
#pragma unroll
  for (int half = 16; half > 0; half /= 2) {
    const bool upper = (lane_idx & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? values[i + half] : values[i];
      const float sent = upper ? values[i] : values[i + half];
      values[i] = kept + __shfl_xor_sync(kWholeWarp, sent, half);
    }
  }
  return values[0];
}
