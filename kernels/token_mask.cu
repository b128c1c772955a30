// WHAT      Bans tokens by a bit mask, row by row: what a grammar does not allow at a node of a draft tree.
// MATH      logits[mask_row[m], i] = -inf  where bit i % 32 of masks[m, i / 32] is 0
// SHAPES    logits    f32 [T, V]              inout
//           masks     u32 [M, ceil(V / 32)]   in     bits beyond V are not looked at
//           mask_row  i32 [M]                 in     each row at most once
// LAUNCH    grid (ceil(V / 4096), M), block 128: a thread a word, which it reads once; only banned logits are written
// REQUIRES  mask_row < T
// NUMERICS  none
// TWINS     src/kernels/token_mask.rs, src/reference/token_mask.rs, host/native/token_mask.cpp,
//           tests/kernels/token_mask.rs
#include "prims.cuh"

constexpr int kWordBits = 32;

extern "C" __global__ void __launch_bounds__(128)
    token_mask_f32(float* __restrict__ logits, const uint32_t* __restrict__ masks,
                   const int* __restrict__ mask_row, int vocab_size, int num_words) {
  const int word = blockIdx.x * blockDim.x + threadIdx.x;
  if (word >= num_words) return;
  const uint32_t banned = ~masks[static_cast<int64_t>(blockIdx.y) * num_words + word];
  float* row = logits + static_cast<int64_t>(mask_row[blockIdx.y]) * vocab_size;
  const int first = word * kWordBits;
  const int count = vocab_size - first < kWordBits ? vocab_size - first : kWordBits;
  for (int bit = 0; bit < count; ++bit)
    if (banned >> bit & 1) row[first + bit] = -INFINITY;
}
EXPORT_KERNEL(token_mask_f32)
