// WHAT      Which of several blocks that bring their parts of a result is the last, and so puts them together.
//           Nobody waits: the others have left by then.
//
// REQUIRES  every thread of the block calls; the ticket is 0 before the launch, as it is again after it: a
//           captured graph replays. What the others have written is read by load_fresh().
#pragma once

#include "prims.cuh"

// Whether this block is the last of `num_blocks` with this ticket to come here: then it sees what all of them have
// written before they came. `is_last` is shared memory that nobody needs at the moment.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned num_blocks, int& is_last) {
  __syncthreads();
  // One thread speaks for all: barriers hand on to it, and from it, what the fences order.
  if (threadIdx.x == 0) {
    fence_gpu();
    // Counts to the last block and back to 0, for the next launch.
    is_last = atomicInc(ticket, num_blocks - 1) == num_blocks - 1;
    fence_gpu();
  }
  __syncthreads();
  return is_last;
}
