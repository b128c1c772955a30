// WHAT  Words from where the host has put them, page-locked memory that the GPU sees at the same address, or to it:
//       the copy that host_words.cu and draft.cu share.
#pragma once

#include "prims.cuh"

// Copies out[0..n], which must not overlap src; the threads of a grid share the words. A warp reads or writes 128 bytes in
// a row, which is one request of the bus; what a thread reads is under way together, up to four words.
__device__ __forceinline__ void copy_words(const uint32_t* __restrict__ src, uint32_t* __restrict__ out,
                                           int n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    out[i] = src[i];
  }
}
