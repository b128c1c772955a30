// WHAT      Words between device memory and page-locked memory of the host, which the GPU sees at the same
//           address: small copies that a kernel makes when its turn comes, where the copy engine would have to
//           be woken, and a flag that the host may watch, where it would have to ask the driver.
// MATH      fetch_words:  out[i] = src[i], src of the host
//           post_words:   out[i] = src[i], out of the host; then *flag = ticket
// SHAPES    src     32 bits [n]  in
//           out     32 bits [n]  out    must not overlap src
//           flag    i32 [1]      out    of the host
//           ticket  i32          in     what the host waits for
// LAUNCH    fetch_words: grid any, block any; post_words: grid 1, block any: the flag follows a barrier of
//           all who have written
// REQUIRES  n >= 0
// NUMERICS  a copy: bits are kept. A host that has seen `ticket` sees all words of `out`, and what every
//           earlier launch has written to its memory.
// TWINS     src/kernels/host_words.rs, kernels/host/native/host_words.cpp, tests/kernels/host_words.rs; the
//           oracle is a copy
//
// Reads wait for the bus, about a microsecond: a block of 1024 threads has 4 KiB under way or more, the grid what a
// pass needs.
#include "host_words.cuh"

extern "C" __global__ void __launch_bounds__(1024) fetch_words(const uint32_t* src, uint32_t* out, int n) {
  take_turn();
  copy_words(src, out, n);
}
EXPORT_KERNEL(fetch_words)

extern "C" __global__ void __launch_bounds__(1024)
    post_words(const uint32_t* src, uint32_t* out, int* flag, int ticket, int n) {
  take_turn();
  copy_words(src, out, n);
  __syncthreads();
  if (threadIdx.x == 0) store_release_system(flag, ticket);
}
EXPORT_KERNEL(post_words)
