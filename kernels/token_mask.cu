// WHAT      Bans tokens by a bit mask, row by row: what a grammar does not allow at a node of a draft tree. The logits may be a drafter's,
//           over a vocabulary of its own.
// MATH      logits[mask_row[m], i] = -inf  where bit t % 32 of masks[m, t / 32] is 0, t = i + d2t[i]
// SHAPES    logits    f32 [T, Vd]  inout
//           masks     u32 [M, W]   in     bits beyond those named are not looked at
//           mask_row  i32 [M]      in     each row at most once
//           d2t       i32 [Vd]     in     offsets from draft to target ids; null: t = i
// LAUNCH    grid (ceil(Vd / 4096), M), block 128: a thread 32 logits, of which only the banned are written. Where ids are equal these are one
//           word of the mask, read once
// REQUIRES  mask_row < T, 0 <= t < 32 W
// NUMERICS  none
// TWINS     src/kernels/token_mask.rs, src/reference/token_mask.rs, host/native/token_mask.cpp,
//           tests/kernels/token_mask.rs
#include "prims.cuh"

constexpr int kWordBits = 32;

extern "C" __global__ void __launch_bounds__(128)
    token_mask_f32(float* __restrict__ logits, const uint32_t* __restrict__ masks,
                   const int* __restrict__ mask_row, const int* __restrict__ d2t, int vocab_size,
                   int num_words) {
  const int first = (blockIdx.x * blockDim.x + threadIdx.x) * kWordBits;
  if (first >= vocab_size) return;
  const uint32_t* mask = masks + static_cast<int64_t>(blockIdx.y) * num_words;
  float* row = logits + static_cast<int64_t>(mask_row[blockIdx.y]) * vocab_size;
  const int count = vocab_size - first < kWordBits ? vocab_size - first : kWordBits;
  uint32_t allowed = 0;
  if (d2t == nullptr) {
    allowed = mask[first / kWordBits];
  } else {
    for (int bit = 0; bit < count; ++bit) {
      const int token = first + bit + d2t[first + bit];
      allowed |= (mask[token / kWordBits] >> (token % kWordBits) & 1u) << bit;
    }
  }
  for (int bit = 0; bit < count; ++bit)
    if (!(allowed >> bit & 1u)) row[first + bit] = -INFINITY;
}
EXPORT_KERNEL(token_mask_f32)
